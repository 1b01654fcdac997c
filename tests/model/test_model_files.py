# SPDX-License-Identifier: Apache-2.0
"""Folders whose files are damaged or don't belong together: refused in one sentence, before anything is painted."""

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

from pai_painter import (
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterModel,
    PaiPainterPipeline,
    PaiPainterVQConfig,
    PaiPainterVQModel,
)
from pai_painter.cli import app
from pai_painter.convert import convert
from pai_painter.data.image_token_files import PictureVQGAN
from pai_painter.lora import load_painter
from pai_painter.model.model_files_pai_painter import read_adapter_folder
from pai_painter.model_info import describe_model
from pai_painter.training.arguments import PainterModelArguments
from pai_painter.training.painter_model import build_painter

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
JSON_FILES = [
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
    "adapter_config.json",
]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "list": lambda content: b"[]",
    "number": lambda content: b"1",
    "text": lambda content: b'"text"',
    "null": lambda content: b"null",
    "NaN": lambda content: b"NaN",
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "Latin-1": lambda content: b'{"a": "\xe9"}',
    "deep": lambda content: b"[" * 100_000,
    "pointer": lambda content: POINTER,
}


@pytest.fixture
def folder(tiny_painter: Path, tmp_path: Path) -> Path:
    """The tiny painter, to be changed."""
    return Path(shutil.copytree(tiny_painter, tmp_path / "painter"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> Path:
    """The folder's weights in several files, and the index of them."""
    PaiPainterForImageGeneration.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder / "model.safetensors.index.json"


def paint_error(folder: Path) -> str:
    """The one sentence in which `pai-painter paint` ends."""
    words = ["paint", "红苹果", "--model", str(folder), "--output", str(folder.parent / "picture.png")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert not (folder.parent / "picture.png").exists()
    assert re.fullmatch(r"Error: .+[.)]\n", result.stderr), result.stderr
    assert "unexpected" not in result.stderr
    return result.stderr


# JSON


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", JSON_FILES)
def test_damaged_json_is_one_sentence_that_names_the_file(folder: Path, name: str, damage: str) -> None:
    if name == "model.safetensors.index.json":
        shard(folder)
    if name == "adapter_config.json":
        (folder / "config.json").unlink()
        (folder / name).write_text('{"peft_type": "LORA", "r": 2}', encoding="utf-8")
    content = DAMAGES[damage]((folder / name).read_bytes())
    (folder / name).write_bytes(content)
    error = paint_error(folder)
    assert name in error
    assert ("git lfs pull" in error) == (damage == "pointer")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("tokenizer_config.json", {"do_lower_case": 1.5}, "tokenizer"),
        ("tokenizer_config.json", {"model_max_length": []}, "tokenizer"),
        ("tokenizer.json", {"added_tokens": 3}, "tokenizer"),
        ("processor_config.json", {"image_processor": []}, "processor_config.json"),
        ("processor_config.json", {"image_processor": {"size": "big"}}, "processor"),
        ("tokenizer_config.json", {"image_vocab_size": math.nan}, "tokenizer"),
        ("config.json", {"vq_config": []}, "config.json"),
        ("config.json", {"vq_config": {"resolution": "16"}}, "config.json"),
        ("config.json", {"hidden_size": None}, "config.json"),
        ("config.json", {"hidden_size": -16}, "config.json"),
    ],
)
def test_odd_values_are_one_sentence(folder: Path, name: str, changes: dict, words: str) -> None:
    edit(folder / name, **changes)
    assert words in paint_error(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_map": ["model-00001-of-00003.safetensors"]}, "needs the objects"),
        ({"metadata": None}, "needs the objects"),
        ({"weight_map": {"lm_head.weight": 3}}, "3 isn't the name of a file"),
        ({"weight_map": {"lm_head.weight": "../../model.safetensors"}}, "isn't the name of a file"),
        ({"weight_map": {"lm_head.weight": "other.safetensors"}}, "lacks other.safetensors"),
        ({"weight_map": {}}, "needs the objects"),
    ],
)
def test_an_index_that_is_not_one(folder: Path, change: dict, words: str) -> None:
    edit(shard(folder), **change)
    assert words in paint_error(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert f"lacks {lost.name}" in paint_error(folder)


def test_shards_that_are_all_there_are_loaded(folder: Path) -> None:
    whole = PaiPainterForImageGeneration.from_pretrained(folder).state_dict()
    shard(folder)
    loaded = PaiPainterForImageGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": 0},
        {"temperature": "warm"},
        {"temperature": math.nan},
        {"top_k": "x"},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_p": 1.5},
        {"top_p": []},
        {"best_of": 0},
        {"best_of": 1e9},
        {"best_of": 10**9},
        {"best_of": True},
        {"max_length": 20},
        {"max_length": "x"},
        {"max_new_tokens": 3},
    ],
)
def test_settings_out_of_range_are_noticed_on_loading(folder: Path, settings: dict) -> None:
    edit(folder / "generation_config.json", **settings)
    with pytest.raises(ValueError, match=r"^The generation_config\.json of .* isn't a painter's: ") as error:
        AutoModel.from_pretrained(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=next(iter(settings))):
        describe_model(folder)


# Numbers


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("model.layers.1.mlp.fc_1.weight", [PaiPainterForImageGeneration, PaiPainterModel, AutoModel]),
        ("lm_head.weight", [PaiPainterForImageGeneration, PaiPainterPipeline, load_painter]),
        ("vqgan.quantize.embedding.weight", [PaiPainterForImageGeneration, PaiPainterVQModel, PictureVQGAN]),
    ],
)
def test_weights_that_are_not_finite_are_named(folder: Path, name: str, ways: list, number: float) -> None:
    edit_weights(folder, lambda weights: weights[name].view(-1)[-1:].fill_(number))
    for way in ways:
        load = getattr(way, "from_pretrained", way)
        with pytest.raises(ValueError, match=r"hold NaN or infinity \(in float32\): ") as error:
            load(folder)
        assert str(error.value).endswith(f"{name.partition('.')[2]}.")  # a part's weights have shorter names
    assert "NaN or infinity" in paint_error(folder)
    with pytest.raises(ValueError, match="NaN or infinity"):
        convert(folder, folder.parent / "converted", to="easynlp")


def test_weights_too_large_for_half_precision_are_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights["model.norm.weight"].mul_(1e6))
    PaiPainterForImageGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"infinity \(in float16\): model\.norm\.weight\."):
        PaiPainterForImageGeneration.from_pretrained(folder, dtype=torch.float16)


def test_large_finite_weights_are_taken(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights["model.embed_positions"].fill_(3e38))  # whose sum is infinite
    PaiPainterForImageGeneration.from_pretrained(folder)


# Sizes


def _train(folder: Path) -> Any:
    return build_painter(PainterModelArguments(model_name_or_path=str(folder)))


@pytest.mark.parametrize(
    "load", [PaiPainterPipeline.from_pretrained, load_painter, PictureVQGAN.from_pretrained, _train]
)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_max_length": 9}, "`text_length` of its vocabulary and settings is 9 instead of 8"),
        ({"image_vocab_size": 65}, "`image_vocab_size` of its vocabulary and settings is 65 instead of 64"),
        (
            {"image_processor": {"size": 8192}},
            "`image_processor.size` of its vocabulary and settings is 8192 instead of 16",
        ),
    ],
)
def test_the_processor_must_be_the_models(folder: Path, load: Callable, changes: dict, words: str) -> None:
    name = "processor_config.json" if "image_processor" in changes else "tokenizer_config.json"
    edit(folder / name, **changes)
    with pytest.raises(ValueError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**6}, "`num_hidden_layers` must lie between 1 and 1,000"),
        ({"num_hidden_layers": 900, "hidden_size": 1024}, "which describes"),
        ({"hidden_size": 10**9}, "which describes|can't be built"),
        ({"intermediate_size": 10**9}, "which describes"),
        ({"text_vocab_size": 10**9}, "which describes"),
        ({"hidden_size": 2**31 - 2, "intermediate_size": 64}, "can't be built"),
        ({"hidden_size": 10**30}, "must lie between"),
        ({"vq_config": {"embed_dim": 10**9}}, "which describes"),
        ({"vq_config": {"num_res_blocks": 10**6}}, "`num_res_blocks` must lie between 1 and 1,000"),
        ({"vq_config": {"base_channels": 10**6 * 4}}, "which describes"),
        ({"vq_config": {"channel_multiplier": [1, 1, 10**6]}}, "`channel_multiplier` must"),
        ({"vq_config": {"resolution": 2**20}}, "which describes"),
    ],
)
def test_sizes_that_the_weights_do_not_have_take_no_memory(folder: Path, changes: dict, words: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vq_config = config["vq_config"] | changes.get("vq_config", {})
    edit(folder / "config.json", **changes | {"vq_config": vq_config})
    start = time.process_time()
    with pytest.raises(ValueError, match=words):
        PaiPainterForImageGeneration.from_pretrained(folder)
    if "vq_config" in changes and "resolution" not in changes["vq_config"]:
        with pytest.raises(ValueError, match=words):
            PaiPainterVQModel.from_pretrained(folder)
    with suppress(ValueError):  # it may also tell these sizes
        describe_model(folder)
    assert time.process_time() - start < 20


def test_configurations_of_large_models_are_fine() -> None:
    PaiPainterConfig(num_hidden_layers=96, hidden_size=12288, num_attention_heads=96)
    PaiPainterVQConfig(resolution=1024, num_res_blocks=8)


# Git LFS


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "vocab.txt", "tokenizer.json", "config.json"]
)
def test_a_git_lfs_pointer_is_called_one(folder: Path, name: str) -> None:
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    assert f"{name} is a Git LFS pointer, not the file itself: please run `git lfs pull` in {folder}." in (
        paint_error(folder)
    )
    with pytest.raises(OSError, match="git lfs pull"):
        convert(folder, folder.parent / "converted", to="easynlp")


def test_a_shard_that_is_a_git_lfs_pointer(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("model-*.safetensors"))[-1].write_bytes(POINTER)
    assert "git lfs pull" in paint_error(folder)


def test_an_adapter_that_is_a_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}', encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(POINTER)
    with pytest.raises(OSError, match="git lfs pull"):
        read_adapter_folder(tmp_path)
