# SPDX-License-Identifier: Apache-2.0
"""
Turns the trained painter into the folder that ships: half precision, recommended settings, model card.

    python examples/emoji/pack.py --painter examples/emoji/runs/painter --output src/pai_painter/demo_model
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from pai_painter import PaiPainterForImageGeneration, PaiPainterProcessor
from pai_painter.model.sampling_pai_painter import default_generation_config

HERE = Path(__file__).parent
# Found with evaluate.py: see this folder's README.
RECOMMENDED = {"temperature": 0.6, "top_k": 100, "top_p": 1.0, "best_of": 2}


def pack(painter: Path, output: Path) -> None:
    """Writes `output` anew; it is complete or not there."""
    model = PaiPainterForImageGeneration.from_pretrained(painter, dtype=torch.float32)
    model.generation_config = default_generation_config(model.config)
    model.generation_config.update(**RECOMMENDED)
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        setattr(model.config, name, 0.0)
    model.half()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        fresh = Path(folder) / "demo_model"
        processor = PaiPainterProcessor.from_pretrained(painter)
        processor.check_model(model.config)
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        state_loading_precision(fresh / "config.json")
        shutil.copy(HERE / "painter" / "vocab.txt", fresh)
        shutil.copy(HERE / "MODEL_CARD.md", fresh / "README.md")
        for path in fresh.iterdir():
            path.chmod(0o644)
        shutil.rmtree(output, ignore_errors=True)
        fresh.rename(output)
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    print(f"{output}: {size:.1f} MB")


def state_loading_precision(config_file: Path) -> None:
    """
    The weights are stored in half precision; this has transformers load them in float32, since half precision is slow,
    or not there, on the CPUs that a demo runs on. Also drops the name of the folder that the VQGAN was trained in.
    """
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["dtype"] = config["vq_config"]["dtype"] = "float32"
    config["vq_config"].pop("_name_or_path", None)
    config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--painter", type=Path, default=HERE / "runs" / "painter")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    pack(arguments.painter, arguments.output)


if __name__ == "__main__":
    main()
