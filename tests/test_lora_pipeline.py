# SPDX-License-Identifier: Apache-2.0
"""Adapters in the pipeline by diffusers' names: files, state dicts, several at once, offloading."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pai_painter import PaiPainterForImageGeneration, PaiPainterPipeline
from pai_painter.lora import add_lora, save_lora

FILE = "pytorch_lora_weights.safetensors"
SAME = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
def logits_of(pipe: PaiPainterPipeline) -> torch.Tensor:
    ids = pipe.processor(text=["红苹果", "熊猫"], return_tensors="pt")["input_ids"]
    codes = torch.randint(pipe.model.config.image_vocab_size, (2, 16), generator=torch.Generator().manual_seed(5))
    return pipe.model.eval()(torch.cat([ids, codes], dim=1)).logits


def adapter_of(folder: Path, output: Path, seed: int, **options: Any) -> Path:
    painter = PaiPainterForImageGeneration.from_pretrained(folder)
    add_lora(painter, **{"rank": 3, "alpha": 6, **options})
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in painter.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    save_lora(painter, output)
    return output


@pytest.fixture
def adapter(tiny_painter: Path, tmp_path: Path) -> Path:
    return adapter_of(tiny_painter, tmp_path / "adapter", seed=0)


@pytest.fixture
def adapted(pipe: PaiPainterPipeline, adapter: Path) -> torch.Tensor:
    """What the pipeline computes with the adapter, which is out again."""
    pipe.load_lora_weights(adapter)
    logits = logits_of(pipe)
    pipe.unload_lora_weights()
    assert not torch.allclose(logits_of(pipe), logits, **SAME)
    return logits


# -- saving and loading


@pytest.mark.parametrize("target_modules", [None, ["embed_tokens", "q_proj", "lm_head"]])
def test_saved_as_diffusers_does_and_loaded(
    pipe: PaiPainterPipeline, tiny_painter: Path, tmp_path: Path, target_modules: list[str] | None
) -> None:
    pipe.load_lora_weights(adapter_of(tiny_painter, tmp_path / "adapter", 0, target_modules=target_modules))
    expected = logits_of(pipe)
    pipe.save_lora_weights(tmp_path / "saved", pipe.model)
    assert [path.name for path in (tmp_path / "saved").iterdir()] == [FILE]
    assert all(name.startswith(("model.model.", "model.lm_head.")) for name in load_file(tmp_path / "saved" / FILE))
    with safe_open(tmp_path / "saved" / FILE, framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["model.r"], settings["model.lora_alpha"]) == (3, 6)
    for options in ({}, {"weight_name": FILE}):
        pipe.unload_lora_weights()
        pipe.load_lora_weights(tmp_path / "saved", **options)
        assert torch.equal(logits_of(pipe), expected)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "saved" / FILE)  # the file itself
    assert torch.equal(logits_of(pipe), expected)


def test_files_by_name_and_subfolder(
    pipe: PaiPainterPipeline, adapter: Path, adapted: torch.Tensor, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "all" / "one")
    pipe.load_lora_weights(tmp_path / "all", subfolder="one", weight_name="adapter_model.safetensors")
    assert torch.equal(logits_of(pipe), adapted)
    pipe.save_lora_weights(tmp_path / "all", pipe.model, weight_name="style.safetensors")
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "all", weight_name="style.safetensors")
    assert torch.equal(logits_of(pipe), adapted)


def test_a_repository_that_was_downloaded_before(
    pipe: PaiPainterPipeline, adapter: Path, adapted: torch.Tensor, tmp_path: Path
) -> None:
    pipe.load_lora_weights(adapter)
    repository, commit = tmp_path / "models--me--styles", "0123456789" * 4
    pipe.save_lora_weights(repository / "snapshots" / commit / "ink", pipe.model, weight_name="ink.safetensors")
    pipe.unload_lora_weights()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True, "subfolder": "ink"}
    pipe.load_lora_weights("me/styles", weight_name="ink.safetensors", **options)
    assert torch.equal(logits_of(pipe), adapted)


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model."])
def test_state_dicts_with_each_prefix(
    pipe: PaiPainterPipeline, tiny_painter: Path, tmp_path: Path, prefix: str
) -> None:
    folder = adapter_of(tiny_painter, tmp_path / "scale-1", seed=0, rank=3, alpha=3)
    pipe.load_lora_weights(folder)
    expected, weights = logits_of(pipe), get_peft_model_state_dict(pipe.model)
    pipe.unload_lora_weights()
    pipe.load_lora_weights({prefix + name: weight.clone() for name, weight in weights.items()}, adapter_name="mine")
    assert pipe.get_active_adapters() == ["mine"]
    assert torch.equal(logits_of(pipe), expected)


def test_ranks_are_read_off_a_state_dict(pipe: PaiPainterPipeline) -> None:
    state_dict = {
        "model.layers.0.mlp.fc_1.lora_A.weight": torch.randn(2, 16),
        "model.layers.0.mlp.fc_1.lora_B.weight": torch.randn(64, 2),
        "lm_head.lora_A.weight": torch.randn(5, 16),
        "lm_head.lora_B.weight": torch.randn(64, 5),
    }
    pipe.load_lora_weights(state_dict)
    assert pipe.model.lm_head.scaling == {"default": 1.0}
    delta = state_dict["lm_head.lora_B.weight"] @ state_dict["lm_head.lora_A.weight"]
    torch.testing.assert_close(pipe.model.lm_head.get_delta_weight("default"), delta)


def test_a_state_dict_is_saved_with_its_settings(pipe: PaiPainterPipeline, adapter: Path, tmp_path: Path) -> None:
    pipe.load_lora_weights(adapter)
    weights, settings = get_peft_model_state_dict(pipe.model), pipe.model.peft_config["default"].to_dict()
    PaiPainterPipeline.save_lora_weights(tmp_path / "dict", weights, model_lora_adapter_metadata=settings)
    PaiPainterPipeline.save_lora_weights(tmp_path / "model", pipe.model)
    found, expected = (load_file(tmp_path / kind / FILE) for kind in ("dict", "model"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    PaiPainterPipeline.save_lora_weights(tmp_path / "nobody", pipe.model, is_main_process=False)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "dict")
    assert pipe.model.lm_head.__class__ is torch.nn.Linear
    assert pipe.model.peft_config["default"].lora_alpha == 6


def damaged_settings(folder: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"model.rank_of_honour": 3})}
    save_file(load_file(folder / FILE), folder / FILE, metadata=metadata)


@pytest.mark.parametrize(
    ("break_it", "options", "kind", "message"),
    [
        (lambda folder: (folder / FILE).write_bytes(b"short"), {}, ValueError, "are damaged or truncated"),
        (damaged_settings, {}, ValueError, "doesn't fit .*rank_of_honour"),
        (lambda folder: (folder / FILE).unlink(), {}, OSError, f"no adapter_config.json and no {FILE}"),
        (lambda folder: None, {"weight_name": "other.safetensors"}, OSError, "has no other.safetensors"),
        (lambda folder: None, {"weight_name": "old.bin"}, ValueError, "from .safetensors files only"),
        (lambda folder: None, {"subfolder": "no"}, OSError, "contains no adapter"),
        (lambda folder: None, {"hotswap": True}, TypeError, "hotswap"),
        (lambda folder: None, {"adaptername": "a"}, TypeError, "adaptername"),
    ],
)
def test_what_can_not_be_loaded_is_named(
    pipe: PaiPainterPipeline, adapter: Path, tmp_path: Path, break_it: Any, options: dict, kind: type, message: str
) -> None:
    plain = logits_of(pipe)
    pipe.load_lora_weights(adapter)
    pipe.save_lora_weights(tmp_path / "saved", pipe.model)
    pipe.unload_lora_weights()
    break_it(tmp_path / "saved")
    with pytest.raises(kind, match=message):
        pipe.load_lora_weights(tmp_path / "saved", **options)
    assert torch.equal(logits_of(pipe), plain)


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({}, "no LoRA weights"),
        ({"unet.down.lora_A.weight": torch.ones(1, 1)}, "is no LoRA weight of a painter"),
        ({"model.layers.0.mlp.fc_1.weight": torch.ones(1, 1)}, "is no LoRA weight of a painter"),
        ({"lm_head.lora_A.weight": torch.ones(2, 16)}, "missing: lm_head.lora_B.weight"),
        (
            {"lm_head.lora_A.weight": torch.ones(2, 9), "lm_head.lora_B.weight": torch.ones(64, 2)},
            "mismatched: lm_head.lora_A.weight",
        ),
        ({"lm_head.lora_A.weight": 7}, "is no LoRA weight"),
        (
            {"lm_head.lora_A.weight": torch.full((2, 16), torch.nan), "lm_head.lora_B.weight": torch.ones(64, 2)},
            "hold NaN or infinity",
        ),
    ],
)
def test_state_dicts_that_do_not_fit(pipe: PaiPainterPipeline, state_dict: dict, message: str) -> None:
    plain = logits_of(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(state_dict)
    assert torch.equal(logits_of(pipe), plain)
    assert pipe.get_list_adapters() == {}


def test_nothing_to_save(pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no adapter to save"):
        pipe.save_lora_weights(tmp_path, pipe.model)
    for options in ({"safe_serialization": False}, {"weight_name": "weights.bin"}):
        with pytest.raises(ValueError, match=r"\.safetensors only"):
            pipe.save_lora_weights(tmp_path, pipe.model, **options)


# -- several at once


@pytest.fixture
def two(pipe: PaiPainterPipeline, tiny_painter: Path, tmp_path: Path) -> PaiPainterPipeline:
    """With two adapters, `ink` and `oil`."""
    for seed, name in enumerate(("ink", "oil")):
        pipe.load_lora_weights(adapter_of(tiny_painter, tmp_path / name, seed), adapter_name=name)
    return pipe


def test_adapters_are_mixed_by_weight(two: PaiPainterPipeline) -> None:
    layer = two.model.model.layers[0].attn.q_proj
    ink, oil = (layer.get_delta_weight(name) for name in ("ink", "oil"))
    base = layer.base_layer.weight.clone()
    for weights in ([0.25, 0.5], [{"model": 0.25}, {"model": 0.5}]):
        two.set_adapters(["ink", "oil"], weights)
        assert two.get_active_adapters() == ["ink", "oil"]
        mixed = logits_of(two)
        two.fuse_lora()
        torch.testing.assert_close(layer.base_layer.weight, base + 0.25 * ink + 0.5 * oil)
        torch.testing.assert_close(logits_of(two), mixed, **SAME)
        two.unfuse_lora()
    two.set_adapters("ink")
    alone = logits_of(two)
    two.delete_adapters("oil")
    assert two.get_list_adapters() == {"model": ["ink"]}
    assert torch.equal(logits_of(two), alone)


def test_one_of_several_is_fused(two: PaiPainterPipeline) -> None:
    two.set_adapters("ink")
    expected = logits_of(two)
    two.set_adapters(["ink", "oil"])
    two.fuse_lora(adapter_names=["ink"])
    assert two.fused_loras == {"ink"}
    two.unload_lora_weights()
    torch.testing.assert_close(logits_of(two), expected, **SAME)


def test_deleting_all_leaves_the_model_as_it_was(two: PaiPainterPipeline, tiny_painter: Path, tmp_path: Path) -> None:
    plain = PaiPainterPipeline.from_pretrained(tiny_painter)
    two.delete_adapters(["ink", "oil"])
    assert list(two.model.state_dict()) == list(plain.model.state_dict())
    assert torch.equal(logits_of(two), logits_of(plain))
    two.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits_of(PaiPainterPipeline.from_pretrained(tmp_path / "whole")), logits_of(plain))


def test_names_that_are_not_there(two: PaiPainterPipeline) -> None:
    for use in (
        lambda: two.set_adapters("acrylic"),
        lambda: two.delete_adapters("acrylic"),
        lambda: two.fuse_lora(adapter_names=["acrylic"]),
    ):
        with pytest.raises(ValueError, match="acrylic"):
            use()
    with pytest.raises(ValueError, match="is not equal to the length of the weights"):
        two.set_adapters(["ink", "oil"], [0.5])
    two.fuse_lora()
    with pytest.raises(ValueError, match="oil can't be deleted while fused"):
        two.delete_adapters("oil")


# -- offloading


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_adapters_under_offloading(
    pipe: PaiPainterPipeline, adapter: Path, adapted: torch.Tensor, offload: str
) -> None:
    plain = logits_of(pipe)
    getattr(pipe, offload)(device="cpu")
    pipe.load_lora_weights(adapter)
    assert hasattr(pipe.model, "_hf_hook")
    torch.testing.assert_close(logits_of(pipe), adapted, **SAME)
    pipe.fuse_lora()
    torch.testing.assert_close(logits_of(pipe), adapted, **SAME)
    pipe.unfuse_lora()
    pipe.delete_adapters("default")
    assert hasattr(pipe.model, "_hf_hook")
    torch.testing.assert_close(logits_of(pipe), plain, **SAME)
    assert pipe("红苹果", seed=1).images
