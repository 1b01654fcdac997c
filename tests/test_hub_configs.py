# SPDX-License-Identifier: Apache-2.0
"""What the published models' repositories hold beside their weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration, PaiPainterProcessor

ROOT = Path(__file__).parent.parent
# Transformer, codec, together.
PARAMETERS = {
    "pai-painter-base-zh": (126_669_312, 76_073_859, 202_743_171),
    "pai-painter-large-zh": (357_795_840, 76_073_859, 433_869_699),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes(name: str) -> None:
    with torch.device("meta"):
        painter = PaiPainterForImageGeneration(PaiPainterConfig.from_pretrained(ROOT / "hub_configs" / name))
    whole = painter.num_parameters()
    codec = painter.vqgan.num_parameters()
    assert (whole - codec, codec, whole) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_captions(name: str) -> None:
    processor = PaiPainterProcessor.from_pretrained(ROOT / "hub_configs" / name)
    assert (processor.text_length, processor.image_processor.size) == (32, {"shortest_edge": 256})
    vocabulary = (ROOT / "tests" / "golden" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    ids = processor(text="宽松T恤", return_tensors="pt")["input_ids"][0] - 16384
    assert [vocabulary[index] for index in ids[:4]] == ["宽", "松", "t", "恤"]
    assert (ids[4:] == 0).all()


def test_the_tool_writes_what_is_there(tmp_path: Path) -> None:
    words = ["tools/make_hub_configs.py", "--vocabulary", "tests/golden/vocab.txt", "--output", str(tmp_path)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    for name in PARAMETERS:
        for file in sorted((tmp_path / name).iterdir()):
            assert file.read_bytes() == (ROOT / "hub_configs" / name / file.name).read_bytes(), file.name
