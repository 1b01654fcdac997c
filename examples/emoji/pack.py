# SPDX-License-Identifier: Apache-2.0
"""
Turns the trained painter into the folder that ships: half precision, recommended settings, model card.

    python examples/emoji/pack.py --painter examples/emoji/runs/painter --output src/pai_painter/demo_model
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

from pai_painter import PaiPainterForImageGeneration, PaiPainterProcessor

HERE = Path(__file__).parent
# Found with evaluate.py: see this folder's README.
RECOMMENDED = {"temperature": 0.6, "top_k": 100, "top_p": 1.0, "best_of": 16}


def pack(painter: Path, output: Path) -> None:
    """Writes `output` anew; it is complete or not there."""
    model = PaiPainterForImageGeneration.from_pretrained(painter, dtype=torch.float32)
    model.generation_config.update(**RECOMMENDED)
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        setattr(model.config, name, 0.0)
    model.half()
    # Stored in half precision, loaded in float32: half is slow, or not there, on the CPUs that a demo runs on.
    model.config.dtype = model.config.vq_config.dtype = torch.float32
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        fresh = Path(folder) / "demo_model"
        model.save_pretrained(fresh)
        PaiPainterProcessor.from_pretrained(painter).save_pretrained(fresh)
        shutil.copy(HERE / "painter" / "vocab.txt", fresh)
        shutil.copy(HERE / "MODEL_CARD.md", fresh / "README.md")
        shutil.rmtree(output, ignore_errors=True)
        fresh.rename(output)
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    print(f"{output}: {size:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--painter", type=Path, default=HERE / "runs" / "painter")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    pack(arguments.painter, arguments.output)


if __name__ == "__main__":
    main()
