# SPDX-License-Identifier: Apache-2.0
"""The VQGAN's loss, and where its gradients go."""

import pytest
import torch
from tiny_world import VQGAN

from pai_painter.model.configuration_pai_painter import PaiPainterVQConfig
from pai_painter.model.modeling_vqgan import PaiPainterVQModel
from pai_painter.training.arguments import VQGANTrainingArguments
from pai_painter.training.train_vqgan import VQGANObjective, blank_patches


@pytest.fixture
def vqgan() -> PaiPainterVQModel:
    torch.manual_seed(0)
    vqgan = PaiPainterVQModel(PaiPainterVQConfig(**VQGAN))
    vqgan.quantize.embedding.weight.data.normal_(std=0.3)
    vqgan.quantize.embedding.weight.requires_grad_(False)
    return vqgan


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def objective(vqgan: PaiPainterVQModel, **options: object) -> VQGANObjective:
    return VQGANObjective(vqgan, VQGANTrainingArguments(output_dir="unused", **options))


@pytest.mark.parametrize("quantise", [False, True])
def test_the_formula(vqgan: PaiPainterVQModel, pictures: torch.Tensor, quantise: bool) -> None:
    weights = {"l2_weight": 3.0, "gradient_weight": 0.7, "commitment_weight": 0.4}
    outputs = objective(vqgan, **weights)(pictures, quantise=quantise)
    latents = vqgan.encode_latents(pictures)
    if quantise:
        encoded = vqgan.encode(pictures)
        painted, commitment = vqgan.decode(encoded.image_tokens), (latents - encoded.quantized).pow(2).mean()
        assert torch.equal(outputs["image_tokens"], encoded.image_tokens.flatten())
    else:
        painted, commitment = vqgan.decode_latents(latents), 0.0
    error = painted - pictures
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    pixels = error.abs().mean() + 3.0 * error.square().mean() + 0.7 * edges
    torch.testing.assert_close(outputs["pixels_loss"], pixels.detach())
    torch.testing.assert_close(outputs["loss"], pixels + 0.4 * commitment)
    # What the codebook learns from, patch by patch in raster order.
    torch.testing.assert_close(outputs["latents"][16 + 7], latents[1, :, 1, 3])
    torch.testing.assert_close(outputs["errors"][16 + 7], error[1, :, 4:8, 12:16].abs().mean())


def test_gradients_go_straight_through(vqgan: PaiPainterVQModel, pictures: torch.Tensor) -> None:
    objective(vqgan, commitment_weight=0.0)(pictures, quantise=True)["loss"].backward()
    assert vqgan.encoder.conv_in.weight.grad.abs().sum() > 0
    assert vqgan.quant_conv.weight.grad.abs().sum() > 0
    assert vqgan.decoder.conv_out.weight.grad.abs().sum() > 0
    assert vqgan.quantize.embedding.weight.grad is None

    # The encoder's gradient is the decoder's, at the codes, handed over as it is.
    latents = vqgan.encode_latents(pictures)
    quantized = vqgan.encode(pictures).quantized.detach().requires_grad_()
    error = vqgan.decode_latents(quantized) - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    (error.abs().mean() + 2 * error.square().mean() + edges).backward()
    (expected,) = torch.autograd.grad(latents, vqgan.quant_conv.weight, quantized.grad)
    torch.testing.assert_close(vqgan.quant_conv.weight.grad, expected)


def test_half_precision_takes_the_nearest_codes(vqgan: PaiPainterVQModel, pictures: torch.Tensor) -> None:
    entries = vqgan.quantize.embedding.weight
    # Entries that are far from zero and near to each other: bfloat16 products can't tell them apart.
    vqgan.quant_conv.bias.data.fill_(10.0)
    entries.data.add_(10.0)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = objective(vqgan)(pictures, quantise=True)
    distances = torch.cdist(outputs["latents"].double(), entries.double())
    chosen = distances.gather(1, outputs["image_tokens"][:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.min(1).values, atol=1e-3, rtol=0)


def test_blank_patches() -> None:
    pictures = torch.ones(2, 3, 16, 16)
    pictures[0, 1, 4, 8] = 127 / 127.5 * 2 - 1  # one pixel of one channel is a little darker
    pictures[1, :, :, 15] = -1.0
    blank = blank_patches(pictures, 4)
    assert blank.shape == (2, 4, 4)
    expected = torch.ones(2, 4, 4, dtype=torch.bool)
    expected[0, 1, 2] = False
    expected[1, :, 3] = False
    assert torch.equal(blank, expected)
    assert not blank_patches(torch.full((1, 3, 16, 16), 254 / 127.5 - 1), 4).any()
    assert blank_patches(torch.full((1, 3, 16, 16), 255 / 127.5 - 1), 4).all()


def test_blank_patches_are_code_0(vqgan: PaiPainterVQModel) -> None:
    pictures = torch.ones(1, 3, 16, 16)
    pictures[..., :8] = 0.0
    outputs = objective(vqgan, blank_code=True)(pictures, quantise=True)
    codes = outputs["image_tokens"].view(4, 4)
    assert (codes[:, 2:] == 0).all()
    assert torch.equal(codes[:, :2], vqgan.encode(pictures).image_tokens.view(4, 4)[:, :2])
    plain = objective(vqgan)(pictures, quantise=True)["image_tokens"]
    assert torch.equal(plain, vqgan.encode(pictures).image_tokens.flatten())
