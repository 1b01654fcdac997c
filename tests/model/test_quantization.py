# SPDX-License-Identifier: Apache-2.0
"""Weights of 8 bits through transformers' `quantization_config`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterProcessor
from pai_painter.cpu.decoding import is_as_built

torchao = pytest.importorskip("torchao", reason="torchao isn't installed")


@pytest.fixture(scope="module")
def quantised() -> PaiPainterForImageGeneration:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head", "vqgan"])
    return PaiPainterForImageGeneration.from_pretrained(DEMO_MODEL, quantization_config=config)


def inputs() -> torch.Tensor:
    return PaiPainterProcessor.from_pretrained(DEMO_MODEL)(text=["红苹果", "一只熊猫"], return_tensors="pt")[
        "input_ids"
    ]


def test_the_transformers_weights_are_whole_numbers(quantised: Any) -> None:
    weight = quantised.model.layers[0].mlp.fc_1.weight
    assert type(weight) is not torch.nn.Parameter
    assert not is_as_built(quantised)  # `generate` paints
    for plain in (quantised.lm_head.weight, quantised.vqgan.decoder.conv_in.weight):
        assert type(plain) is torch.nn.Parameter


def test_it_paints_nearly_the_same(quantised: Any) -> None:
    painter = PaiPainterForImageGeneration.from_pretrained(DEMO_MODEL)
    painted = quantised.generate_images(inputs(), seed=0, best_of=1)
    assert painted.pixel_values.isfinite().all()
    sequence = torch.cat([inputs(), painter.generate_images(inputs(), seed=0, best_of=1).image_tokens], 1)
    with torch.no_grad():
        exact, rounded = painter(sequence).logits, quantised(sequence).logits
    assert (exact.argmax(-1) == rounded.argmax(-1)).float().mean() > 0.9


def test_speeds_that_round_again_are_refused(quantised: Any) -> None:
    with pytest.raises(ValueError, match="Only `speed='exact'` goes with"):
        quantised.generate_images(inputs(), speed="fastest")


def test_what_is_quantised_is_saved_and_loaded(quantised: Any, tmp_path: Path) -> None:
    quantised.save_pretrained(tmp_path)
    again = PaiPainterForImageGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(inputs()).logits, quantised(inputs()).logits)
