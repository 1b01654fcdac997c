# SPDX-License-Identifier: Apache-2.0
"""The golden painters and what the original programs computed with them, for the tests of the model."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModel

from pai_painter import PaiPainterForImageGeneration, PaiPainterVQConfig

GOLDEN = Path(__file__).parent / "golden"
PAINTERS = ("easynlp_tiny", "easynlp_tiny_prefix")  # the second with n_unmasked = 32
TEXT_LENGTH, CODES = 32, 16


def vqgan_config(folder: str = "easynlp_tiny") -> PaiPainterVQConfig:
    """EasyNLP doesn't write its VQGAN's sizes down; these are the golden painters'."""
    dims = json.loads((GOLDEN / folder / "dims.json").read_text(encoding="utf-8"))
    return PaiPainterVQConfig.from_ddconfig(dims["ddconfig"], dims["n_embed"], dims["embed_dim"])


def golden_painter(folder: str = "easynlp_tiny", **options: Any) -> PaiPainterForImageGeneration:
    """A painter from an untouched EasyNLP folder."""
    return AutoModel.from_pretrained(GOLDEN / folder, vq_config=vqgan_config(folder), **options)


@cache
def expected(folder: str = "easynlp_tiny") -> dict[str, torch.Tensor]:
    """What the original program computed; not to be written to."""
    return load_file(GOLDEN / folder / "expected.safetensors")


def whole_sequence(folder: str = "easynlp_tiny") -> torch.Tensor:
    """Captions and codes, (3, 48)."""
    return torch.cat([expected(folder)["text_ids"], expected(folder)["codes"]], dim=1)


def picture_labels(folder: str = "easynlp_tiny") -> torch.Tensor:
    """The sequence with -100 on the caption, (3, 48)."""
    return whole_sequence(folder).index_fill(1, torch.arange(TEXT_LENGTH), -100)
