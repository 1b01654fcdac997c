# SPDX-License-Identifier: Apache-2.0
"""The configurations: sizes that are refused, other programs' names, saving and loading."""

import json
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import GOLDEN, vqgan_config
from transformers import AutoConfig

from pai_painter import PaiPainterConfig, PaiPainterVQConfig

EASYNLP = json.loads((GOLDEN / "easynlp_tiny/config.json").read_text(encoding="utf-8"))
DDCONFIG = json.loads((GOLDEN / "easynlp_tiny/dims.json").read_text(encoding="utf-8"))["ddconfig"]


def test_the_defaults_are_the_published_base_model() -> None:
    config = PaiPainterConfig()
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (12, 12, 768)
    assert (config.vocab_size, config.image_vocab_size, config.max_position_embeddings) == (37_512, 16_384, 288)
    assert (config.text_length, config.num_image_tokens, config.image_grid) == (32, 256, 16)
    assert (config.intermediate_size, config.hidden_act, config.layer_norm_eps) == (3072, "gelu", 1e-5)
    assert config.num_unmasked == 0
    vqgan = config.vq_config
    assert isinstance(vqgan, PaiPainterVQConfig)
    assert (vqgan.base_channels, vqgan.channel_multiplier, vqgan.num_res_blocks) == (128, (1, 1, 2, 2, 4), 2)
    assert (vqgan.attn_resolutions, vqgan.latent_channels, vqgan.embed_dim) == ((16,), 256, 256)
    assert (vqgan.norm_num_groups, vqgan.norm_eps, vqgan.resolution) == (32, 1e-6, 256)


@pytest.mark.parametrize(
    "vq_config", [None, {}, {"resolution": 64}, PaiPainterVQConfig(resolution=64)], ids=["none", "empty", "dict", "own"]
)
def test_the_vqgan_can_be_given_in_every_form(vq_config: Any) -> None:
    config = PaiPainterConfig(vq_config=vq_config)
    assert isinstance(config.vq_config, PaiPainterVQConfig)
    side = 64 if vq_config else 256
    assert config.vq_config.resolution == side
    assert config.max_position_embeddings == 32 + (side // 16) ** 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 100}, r"`resolution` \(100\) must be divisible by 16: 5 levels halve it 4 times"),
        ({"resolution": 0}, "`resolution` must lie between 1 and 2,147,483,647, got 0"),
        ({"in_channels": 0}, "`in_channels` must lie between 1 and"),
        ({"num_res_blocks": -1}, "`num_res_blocks` must lie between 1 and 1,000, got -1"),
        ({"norm_num_groups": 0}, "`norm_num_groups` must lie between 1 and"),
        ({"num_embeddings": 0}, "`num_embeddings` must lie between 1 and"),
        ({"channel_multiplier": []}, r"`channel_multiplier` must hold at most 31 numbers from 1 to 1000, got \[\]"),
        ({"channel_multiplier": [1, 0]}, "`channel_multiplier` must hold at most 31 numbers from 1 to 1000"),
        ({"base_channels": 48}, r"`base_channels` × 1 = 48 must be divisible by `norm_num_groups` \(32\)"),
        ({"dropout": 1.0}, r"`dropout` is a dropout rate and must lie in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, "`dropout` is a dropout rate"),
    ],
    ids=str,
)
def test_vqgans_that_cannot_be_built_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        PaiPainterVQConfig(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 770}, r"`hidden_size` \(770\) must be divisible by `num_attention_heads` \(12\)"),
        ({"text_length": 0}, "`text_length` must lie between 1 and"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must lie between 1 and"),
        ({"intermediate_size": 0}, "`intermediate_size` must lie between 1 and"),
        ({"text_vocab_size": -5}, "`text_vocab_size` must lie between 1 and 2,147,483,647, got -5"),
        ({"image_vocab_size": 100}, r"`image_vocab_size` \(100\) must be the size of the VQGAN's codebook .* = 16384"),
        ({"vq_config": {"num_embeddings": 8}}, r"`image_vocab_size` \(16384\) must be .* = 8"),
        ({"vq_config": PaiPainterConfig()}, "`vq_config` must be a PaiPainterVQConfig, got PaiPainterConfig"),
        ({"num_unmasked": 33}, r"`num_unmasked` must lie between 0 and `text_length` \(32\), got 33"),
        ({"num_unmasked": -1}, "`num_unmasked` must lie between 0"),
        ({"embd_pdrop": 1.5}, "`embd_pdrop` is a dropout rate"),
        ({"resid_pdrop": -0.1}, "`resid_pdrop` is a dropout rate"),
        ({"attn_pdrop": 1}, "`attn_pdrop` is a dropout rate"),
        ({"tie_word_embeddings": True}, "`tie_word_embeddings` must be false"),
    ],
    ids=lambda value: str(list(value) if isinstance(value, dict) else value)[:40],
)
def test_painters_that_cannot_be_built_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        PaiPainterConfig(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (PaiPainterVQConfig, "resolution", "256"),
        (PaiPainterVQConfig, "resolution", 256.0),
        (PaiPainterVQConfig, "resolution", True),
        (PaiPainterVQConfig, "channel_multiplier", [1, "2"]),
        (PaiPainterVQConfig, "attn_resolutions", 16),
        (PaiPainterVQConfig, "encoder_attention", 1),
        (PaiPainterVQConfig, "norm_eps", "1e-6"),
        (PaiPainterConfig, "hidden_size", "768"),
        (PaiPainterConfig, "num_hidden_layers", 12.0),
        (PaiPainterConfig, "hidden_act", None),
        (PaiPainterConfig, "vq_config", 5),
        (PaiPainterConfig, "use_cache", "yes"),
    ],
)
def test_values_of_another_type_are_refused_by_name(cls: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^Field '{name}' .*, got ") as error:
        cls(**{name: value})
    assert "\n" not in str(error.value)
    config = cls()
    with pytest.raises(ValueError, match=f"^Field '{name}'"):
        setattr(config, name, value)


def test_tamings_names_are_read() -> None:
    config = PaiPainterVQConfig.from_ddconfig(DDCONFIG, n_embed=64, embed_dim=32)
    assert config.to_dict() == PaiPainterVQConfig(
        resolution=8, base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[4],
        latent_channels=32, embed_dim=32, num_embeddings=64,
    ).to_dict()  # fmt: skip
    without = {name: value for name, value in DDCONFIG.items() if name != "double_z"}
    more = PaiPainterVQConfig.from_ddconfig(without, n_embed=64, embed_dim=32, norm_num_groups=8)
    assert more.norm_num_groups == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"double_z": True}, "`double_z: true` belongs to a KL autoencoder"),
        ({"resamp_with_conv": False}, r"unknown: \['resamp_with_conv'\]"),
        ({"ch": None}, r"missing here: \['ch'\], unknown: none"),
        ({"ch": "32"}, "Field 'base_channels' expected int, got str"),
    ],
    ids=str,
)
def test_a_ddconfig_that_is_no_vqgans_is_refused(change: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in (DDCONFIG | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        PaiPainterVQConfig.from_ddconfig(given, n_embed=64, embed_dim=32)


@pytest.mark.parametrize("as_dict", [True, False])
def test_easynlps_names_are_read(as_dict: bool) -> None:
    vqgan = vqgan_config()
    given = EASYNLP | {"n_unmasked": 7, "embd_pdrop": 0.1, "resid_pdrop": 0.2, "attn_pdrop": 0.3}
    config = PaiPainterConfig.from_dict(given, vq_config=vqgan.to_dict() if as_dict else vqgan)
    wanted = PaiPainterConfig(
        vq_config=vqgan, image_vocab_size=64, text_vocab_size=256, text_length=32, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_unmasked=7, embd_pdrop=0.1, resid_pdrop=0.2, attn_pdrop=0.3,
    )  # fmt: skip
    assert config.to_dict() == wanted.to_dict()


def test_the_published_config_needs_nothing_passed() -> None:
    sizes = {"vocab_size": 37512, "img_vocab_size": 16384, "text_vocab_size": 21128, "block_size": 288}
    sizes |= {"n_layer": 24, "n_head": 16, "n_embd": 1024}
    config = PaiPainterConfig.from_dict(EASYNLP | sizes)
    large = PaiPainterConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
    assert config.to_dict() == large.to_dict()
    longer = PaiPainterConfig.from_dict(EASYNLP | sizes | {"block_size": 256 + 64})
    assert longer.text_length == 64


@pytest.mark.parametrize("name", ["block_size", "img_vocab_size", "text_vocab_size", "n_layer", "n_head", "n_embd"])
def test_an_easynlp_config_that_lacks_a_size_is_refused(name: str) -> None:
    given = {key: value for key, value in EASYNLP.items() if key != name}
    with pytest.raises(ValueError, match=f"EasyNLP's .* but lacks {name}"):
        PaiPainterConfig.from_dict(given, vq_config=vqgan_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_unmasked": 33}, "`num_unmasked` must lie between 0"),
        ({"block_size": 16}, "16 positions and 64 image tokens, which doesn't fit"),
        ({"img_vocab_size": 128}, "128 image tokens, which doesn't fit a VQGAN of 16 tokens per picture out of 64"),
        ({"n_head": 3}, r"`hidden_size` \(32\) must be divisible by `num_attention_heads` \(3\)"),
    ],
    ids=str,
)
def test_an_easynlp_config_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaiPainterConfig.from_dict(EASYNLP | change, vq_config=vqgan_config())


def test_the_vqgan_of_an_easynlp_folder_is_f16_16384_unless_given() -> None:
    config = PaiPainterVQConfig.from_pretrained(GOLDEN / "easynlp_tiny")
    assert config.to_dict() == PaiPainterVQConfig().to_dict()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    vqgan = vqgan_config()
    vqgan.encoder_attention = False
    config = PaiPainterConfig(
        vq_config=vqgan, image_vocab_size=64, text_vocab_size=100, text_length=7, hidden_size=24,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=50, num_unmasked=7, resid_pdrop=0.25,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for loaded in (PaiPainterConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, PaiPainterConfig)
        assert isinstance(loaded.vq_config, PaiPainterVQConfig)
        assert loaded.to_diff_dict() == config.to_diff_dict()
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (saved["intermediate_size"], saved["vq_config"]["encoder_attention"]) == (50, False)
    assert PaiPainterVQConfig.from_pretrained(tmp_path).to_diff_dict() == vqgan.to_diff_dict()


def test_a_vqgan_config_is_saved_and_loaded_alone(tmp_path: Path) -> None:
    vqgan_config().save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, PaiPainterVQConfig)
    assert loaded.to_diff_dict() == vqgan_config().to_diff_dict()


def test_sizes_that_were_changed_are_checked_on_saving(tmp_path: Path) -> None:
    config = PaiPainterConfig()
    config.hidden_size = 770
    with pytest.raises(ValueError, match=r"^`hidden_size` \(770\) must be divisible"):
        config.save_pretrained(tmp_path)


def test_values_can_be_changed_while_loading() -> None:
    config = PaiPainterConfig.from_pretrained(GOLDEN / "easynlp_tiny", vq_config=vqgan_config(), resid_pdrop=0.3)
    assert config.resid_pdrop == 0.3
    config, unused = PaiPainterConfig.from_pretrained(
        GOLDEN / "easynlp_tiny", vq_config=vqgan_config(), return_unused_kwargs=True, foo=1
    )
    assert unused == {"foo": 1}
    assert config.image_grid == 4
