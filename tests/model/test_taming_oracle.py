# SPDX-License-Identifier: Apache-2.0
"""VQGAN and transformer held against taming-transformers itself, at random weights and sizes."""

import importlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration, PaiPainterVQConfig, PaiPainterVQModel

pytest.importorskip(
    "taming", reason="taming-transformers is the oracle: pip install --no-deps taming-transformers-rom1504==0.0.6"
)


def rearrange(tensor: torch.Tensor, pattern: str) -> torch.Tensor:
    """What taming uses of einops: swapping axes."""
    before, after = (side.split() for side in pattern.split("->"))
    return tensor.permute([before.index(axis) for axis in after])


@pytest.fixture(scope="module")
def taming() -> Iterator[types.SimpleNamespace]:
    """Its model files alone, without the training frameworks and the old transformers that they import."""
    stubs = {
        "pytorch_lightning": {"LightningModule": torch.nn.Module},
        "taming.main": {"instantiate_from_config": lambda config: torch.nn.Identity()},  # the loss
        "einops": {"rearrange": rearrange},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in stubs.items():
            module = types.ModuleType(name)
            vars(module).update(attributes)
            patch.setitem(sys.modules, name, module)
        patch.setattr(transformers, "top_k_top_p_filtering", None, raising=False)
        yield types.SimpleNamespace(
            VQModel=importlib.import_module("taming.models.vqgan").VQModel,
            GPT=importlib.import_module("taming.modules.transformer.mingpt").GPT,
        )


def shake(model: torch.nn.Module, scale: float) -> None:
    """Moves every weight, so that none is as it starts: norms aren't 1 and 0, codebook entries lie apart."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=scale)


@pytest.mark.parametrize(
    ("sizes", "n_embed", "embed_dim"),
    [
        # attention at two resolutions, multipliers that go up and down, latents wider than the entries
        ({"resolution": 32, "ch_mult": (1, 3, 2), "attn_resolutions": [16, 8], "num_res_blocks": 2}, 50, 24),
        # attention at full resolution, other channels in and out, entries wider than the latents
        ({"ch_mult": [2, 1], "attn_resolutions": [16], "in_channels": 1, "out_ch": 4, "z_channels": 5}, 33, 9),
        # one level: nothing is made smaller
        ({"resolution": 8, "ch_mult": [1], "attn_resolutions": []}, 40, 16),
    ],
    ids=["two attentions", "other channels", "one level"],
)
@torch.no_grad()
def test_the_vqgan_is_tamings(
    taming: types.SimpleNamespace, sizes: dict[str, Any], n_embed: int, embed_dim: int
) -> None:
    ddconfig: dict[str, Any] = {"double_z": False, "z_channels": 48, "resolution": 16, "in_channels": 3, "out_ch": 3}
    ddconfig |= {"ch": 32, "num_res_blocks": 1, "dropout": 0.0} | sizes
    torch.manual_seed(0)
    oracle = taming.VQModel(ddconfig, lossconfig=None, n_embed=n_embed, embed_dim=embed_dim).eval()
    shake(oracle, 0.05)
    oracle.quantize.embedding.weight.normal_()
    vqgan = PaiPainterVQModel(PaiPainterVQConfig.from_ddconfig(ddconfig, n_embed, embed_dim)).eval()
    vqgan.load_state_dict(oracle.state_dict())
    oracle, vqgan = oracle.double(), vqgan.double()  # in which processors agree to more digits than are compared

    image = torch.rand(3, ddconfig["in_channels"], ddconfig["resolution"], ddconfig["resolution"]).double() * 2 - 1
    quantized, _, (_, _, codes) = oracle.encode(image)
    found = vqgan.encode(image)
    assert torch.equal(found.image_tokens.flatten(), codes)
    assert len(codes.unique()) > 5  # else it says little
    torch.testing.assert_close(found.quantized, quantized, atol=1e-5, rtol=0)

    pixels = vqgan.decode(found.image_tokens)
    assert pixels.abs().max() > 0.1
    torch.testing.assert_close(pixels, oracle.decode(found.quantized), atol=1e-5, rtol=0)
    torch.testing.assert_close(vqgan(image).pixel_values, oracle(image)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_unmasked", [0, 5, 9])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_transformer_is_mingpts(
    taming: types.SimpleNamespace, tmp_path: Path, n_unmasked: int, attention: str
) -> None:
    """By way of an EasyNLP folder, which holds minGPT's weights with a head for the image codes only."""
    vqgan = PaiPainterVQConfig(
        resolution=8, base_channels=4, channel_multiplier=[1, 1], num_res_blocks=1, attn_resolutions=[],
        latent_channels=4, embed_dim=4, num_embeddings=30, norm_num_groups=2,
    )  # fmt: skip
    text_length, codes, text_vocab = 9, vqgan.num_image_tokens, 21
    sizes = {"block_size": text_length + codes, "n_layer": 3, "n_head": 3, "n_embd": 24, "n_unmasked": n_unmasked}
    torch.manual_seed(0)
    oracle = taming.GPT(vocab_size=30 + text_vocab, **sizes).eval()
    shake(oracle, 0.1)

    weights = {f"transformer.{name}": weight for name, weight in oracle.state_dict().items()}
    weights["transformer.head.weight"] = weights["transformer.head.weight"][:30].clone()
    weights |= {f"first_stage_model.{name}": weight for name, weight in PaiPainterVQModel(vqgan).state_dict().items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    config = sizes | {"model_type": "artist", "vocab_size": 51, "img_vocab_size": 30, "text_vocab_size": text_vocab}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    painter = PaiPainterForImageGeneration.from_pretrained(tmp_path, vq_config=vqgan, attn_implementation=attention)
    assert isinstance(painter.config, PaiPainterConfig)

    ids = torch.randint(51, (4, text_length + codes))
    wanted = oracle(ids)[0][..., :30]
    assert wanted.std() > 0.1
    torch.testing.assert_close(painter(ids).logits, wanted, atol=1e-5, rtol=0)
    for length in (1, text_length - 2, text_length + 1):
        torch.testing.assert_close(painter(ids[:, :length]).logits, oracle(ids[:, :length])[0][..., :30])
