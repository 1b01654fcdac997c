# SPDX-License-Identifier: Apache-2.0
"""Folders in both layouts, the Auto classes, and weights that don't fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import GOLDEN, PAINTERS, expected, golden_painter, vqgan_config, whole_sequence
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

from pai_painter import (
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterImageProcessor,
    PaiPainterModel,
    PaiPainterProcessor,
    PaiPainterTokenizer,
    PaiPainterVQModel,
)

LAYOUTS = ("native", "easynlp")
Weights = dict[str, torch.Tensor]

# One of each kind: the native name, and EasyNLP's.
KINDS = {
    "token embedding": ("model.embed_tokens.weight", "transformer.tok_emb.weight"),
    "positions": ("model.embed_positions", "transformer.pos_emb"),
    "first norm": ("model.layers.1.ln_1.weight", "transformer.blocks.1.ln1.weight"),
    "second norm": ("model.layers.0.ln_2.bias", "transformer.blocks.0.ln2.bias"),
    "query": ("model.layers.0.attn.q_proj.weight", "transformer.blocks.0.attn.query.weight"),
    "key": ("model.layers.0.attn.k_proj.bias", "transformer.blocks.0.attn.key.bias"),
    "value": ("model.layers.1.attn.v_proj.weight", "transformer.blocks.1.attn.value.weight"),
    "attention's output": ("model.layers.1.attn.out_proj.bias", "transformer.blocks.1.attn.proj.bias"),
    "first of the MLP": ("model.layers.0.mlp.fc_1.weight", "transformer.blocks.0.mlp.0.weight"),
    "second of the MLP": ("model.layers.1.mlp.fc_2.bias", "transformer.blocks.1.mlp.2.bias"),
    "final norm": ("model.norm.bias", "transformer.ln_f.bias"),
    "head": ("lm_head.weight", "transformer.head.weight"),
} | {
    kind: (f"vqgan.{name}", f"first_stage_model.{name}")
    for kind, name in {
        "encoder's convolution": "encoder.down.0.block.0.conv1.weight",
        "encoder's attention": "encoder.mid.attn_1.q.weight",
        "downsampling": "encoder.down.0.downsample.conv.bias",
        "decoder's convolution": "decoder.up.1.block.0.conv2.weight",
        "decoder's norm": "decoder.norm_out.weight",
        "decoder's attention": "decoder.up.1.attn.1.proj_out.weight",
        "codebook": "quantize.embedding.weight",
        "before the codebook": "quant_conv.weight",
        "after the codebook": "post_quant_conv.bias",
    }.items()
}


@pytest.fixture(scope="module")
def painter() -> PaiPainterForImageGeneration:
    return golden_painter()


@pytest.fixture(scope="module")
def native_folder(painter: PaiPainterForImageGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    painter.save_pretrained(folder)
    PaiPainterProcessor.from_pretrained(GOLDEN / "easynlp_tiny", size=8).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(native_folder: Path, tmp_path: Path) -> Callable[[str, Callable[[Weights], Any]], Path]:
    """A copy of a folder, in one layout or the other, whose weights were changed."""

    def make(layout: str, change: Callable[[Weights], Any]) -> Path:
        source = native_folder if layout == "native" else GOLDEN / "easynlp_tiny"
        shutil.copy(source / "config.json", tmp_path)
        if layout == "native":
            weights = load_file(source / "model.safetensors")
            change(weights)
            save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        else:
            weights = torch.load(source / "pytorch_model.bin", weights_only=True)
            change(weights)
            torch.save(weights, tmp_path / "pytorch_model.bin")
        return tmp_path

    return make


def load(folder: Path, layout: str, **options: Any) -> Any:
    if layout == "easynlp":
        options["vq_config"] = vqgan_config()
    return AutoModel.from_pretrained(folder, **options)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_weight_is_an_error_that_names_it(changed: Callable, layout: str, kind: str) -> None:
    native, easynlp = KINDS[kind]
    folder = changed(layout, lambda weights: weights.pop(native if layout == "native" else easynlp))
    with pytest.raises(ValueError, match="1 don't") as error:
        load(folder, layout)
    assert f"missing: {native}." in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_mismatched_weight_is_an_error_that_names_both_shapes(changed: Callable, layout: str, kind: str) -> None:
    native, easynlp = KINDS[kind]
    shapes: list[tuple[int, ...]] = []

    def grow(weights: Weights) -> None:
        name = native if layout == "native" else easynlp
        shapes.append(tuple(weights[name].shape))
        weights[name] = torch.cat([weights[name], weights[name]]).contiguous()
        shapes.append(tuple(weights[name].shape))

    folder = changed(layout, grow)
    with pytest.raises(ValueError, match="1 don't") as error:
        load(folder, layout)
    assert f"mismatched: {native} is {shapes[1]}, must be {shapes[0]}." in str(error.value)


@pytest.mark.parametrize(
    ("layout", "added", "listed"),
    [
        ("native", "model.layers.2.ln_1.weight", "model.layers.2.ln_1.weight"),  # a block more than the config says
        ("native", "model.embed_tokens.bias", "model.embed_tokens.bias"),
        ("native", "lm_head.bias", "lm_head.bias"),
        ("native", "vqgan.encoder.down.2.block.0.conv1.weight", "vqgan.encoder.down.2.block.0.conv1.weight"),
        ("native", "transformer.extra.weight", "transformer.extra.weight"),
        ("native", "extra", "extra"),
        ("easynlp", "transformer.blocks.2.ln1.weight", "model.layers.2.ln_1.weight"),
        ("easynlp", "transformer.tok_emb.bias", "model.embed_tokens.bias"),
        ("easynlp", "transformer.head.bias", "lm_head.bias"),
        ("easynlp", "transformer.extra.weight", "transformer.extra.weight"),
        ("easynlp", "first_stage_model.loss.logvar", "vqgan.loss.logvar"),
        ("easynlp", "extra", "extra"),
    ],
)
def test_an_unknown_weight_is_an_error_that_names_it(changed: Callable, layout: str, added: str, listed: str) -> None:
    folder = changed(layout, lambda weights: weights.update({added: torch.zeros(3)}))
    with pytest.raises(ValueError, match="1 don't") as error:
        load(folder, layout)
    assert f"unexpected: {listed}." in str(error.value)


def test_all_that_does_not_fit_is_listed_at_once(changed: Callable) -> None:
    def spoil(weights: Weights) -> None:
        del weights["model.norm.weight"], weights["vqgan.quant_conv.bias"]
        weights["more"] = torch.zeros(1)

    with pytest.raises(ValueError, match=r"3 don't: missing: model\.norm\.weight; missing: .*; unexpected: more\."):
        load(changed("native", spoil), "native")


@pytest.mark.parametrize(
    ("cls", "part", "rest"),
    [
        (PaiPainterModel, "model.norm.weight", "vqgan.extra"),
        (PaiPainterVQModel, "vqgan.quant_conv.bias", "model.extra"),
    ],
)
def test_a_part_is_as_strict_about_its_own_weights(changed: Callable, cls: Any, part: str, rest: str) -> None:
    cls.from_pretrained(changed("native", lambda weights: weights.update({rest: torch.zeros(1)})))
    folder = changed("native", lambda weights: weights.update({part + "_extra": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"unexpected: .*_extra"):
        cls.from_pretrained(folder)
    with pytest.raises(ValueError, match="1 don't: missing: "):
        cls.from_pretrained(changed("native", lambda weights: weights.pop(part)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_weights_are_an_error(changed: Callable, layout: str, damage: str) -> None:
    folder = changed(layout, lambda weights: None)
    file = folder / ("model.safetensors" if layout == "native" else "pytorch_model.bin")
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"version https://git-lfs"}[damage])
    with pytest.raises(ValueError, match=r"The weights of .* are damaged or truncated"):
        load(folder, layout)


def test_a_folder_without_weights_is_an_error(changed: Callable) -> None:
    folder = changed("native", lambda weights: None)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load(folder, "native")


def test_a_pickle_that_runs_code_is_not_read(changed: Callable, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    folder = changed("easynlp", lambda weights: weights.update({"extra": Evil()}))
    with pytest.raises(ValueError, match=r"are damaged or truncated \(Weights only load failed"):
        load(folder, "easynlp")
    assert not (tmp_path / "ran").exists()


def test_saving_writes_safetensors_with_native_names(painter: PaiPainterForImageGeneration, tmp_path: Path) -> None:
    painter.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(painter.state_dict())
    assert {native for native, _ in KINDS.values()} <= names
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["vq_config"]["model_type"]) == ("pai_painter", "pai_painter_vqgan")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_was_saved_is_loaded(painter: PaiPainterForImageGeneration, native_folder: Path, attention: str) -> None:
    loaded, info = AutoModel.from_pretrained(native_folder, attn_implementation=attention, output_loading_info=True)
    assert same_weights(loaded, painter)
    assert not loaded.training
    assert not info["missing_keys"]
    assert loaded.config.to_diff_dict() == painter.config.to_diff_dict()
    assert loaded.generation_config.to_dict() == painter.generation_config.to_dict()


@pytest.mark.parametrize("folder", PAINTERS)
@pytest.mark.parametrize("origin", ["easynlp", "native", "new"])
def test_the_original_format_has_exactly_easynlps_names_and_loads_again(
    folder: str, origin: str, tmp_path: Path
) -> None:
    painter = golden_painter(folder)
    if origin == "native":
        painter.save_pretrained(tmp_path / "native")
        painter = AutoModel.from_pretrained(tmp_path / "native")
    elif origin == "new":
        weights = painter.state_dict()
        painter = PaiPainterForImageGeneration(painter.config)
        painter.load_state_dict(weights)
    painter.save_pretrained(tmp_path / "original", save_original_format=True)
    saved = load_file(tmp_path / "original" / "model.safetensors")
    original = torch.load(GOLDEN / folder / "pytorch_model.bin", weights_only=True)
    masks = {name for name in original if name.endswith(".attn.mask")}
    assert len(masks) == 2
    assert saved.keys() == original.keys() - masks
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    assert same_weights(AutoModel.from_pretrained(tmp_path / "original"), painter)
    # EasyNLP's own config.json beside it makes the whole an EasyNLP folder
    shutil.copy(GOLDEN / folder / "config.json", tmp_path / "original")
    again = AutoModel.from_pretrained(tmp_path / "original", vq_config=vqgan_config(folder))
    assert same_weights(again, painter)


def test_what_a_model_recommends_travels_with_it(native_folder: Path, tmp_path: Path) -> None:
    painter = AutoModel.from_pretrained(native_folder)
    painter.generation_config.update(best_of=16, temperature=0.7, top_k=None, top_p=0.9)
    painter.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).generation_config
    assert (loaded.best_of, loaded.temperature, loaded.top_k, loaded.top_p) == (16, 0.7, None, 0.9)
    GenerationConfig(do_sample=True, top_k=5).save_pretrained(tmp_path)  # by hand, and not complete
    loaded = AutoModel.from_pretrained(tmp_path).generation_config
    assert (loaded.best_of, loaded.temperature, loaded.top_k, loaded.max_length) == (1, 1.0, 5, 48)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_transformer_is_loaded_from_a_painters_folder(
    painter: PaiPainterForImageGeneration, native_folder: Path, layout: str, tmp_path: Path
) -> None:
    if layout == "native":
        model = PaiPainterModel.from_pretrained(native_folder)
    else:
        model = PaiPainterModel.from_pretrained(GOLDEN / "easynlp_tiny", vq_config=vqgan_config())
    assert same_weights(model, painter.model)
    model.save_pretrained(tmp_path)
    assert same_weights(PaiPainterModel.from_pretrained(tmp_path), painter.model)
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight; missing: vqgan\."):
        PaiPainterForImageGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_vqgan_is_loaded_from_a_painters_folder(
    painter: PaiPainterForImageGeneration, native_folder: Path, layout: str, tmp_path: Path
) -> None:
    if layout == "native":
        vqgan = PaiPainterVQModel.from_pretrained(native_folder)
    else:
        vqgan = PaiPainterVQModel.from_pretrained(GOLDEN / "easynlp_tiny", config=vqgan_config())
    assert same_weights(vqgan, painter.vqgan)
    vqgan.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(vqgan.state_dict())
    alone = AutoModel.from_pretrained(tmp_path)
    assert isinstance(alone, PaiPainterVQModel)
    assert same_weights(alone, painter.vqgan)


def test_the_auto_classes_read_a_native_folder(painter: PaiPainterForImageGeneration, native_folder: Path) -> None:
    config = AutoConfig.from_pretrained(native_folder)
    assert isinstance(config, PaiPainterConfig)
    for auto in (AutoModel, AutoModelForCausalLM):
        model = auto.from_pretrained(native_folder)
        assert type(model) is PaiPainterForImageGeneration
        assert same_weights(model, painter)
        assert type(auto.from_config(config)) is PaiPainterForImageGeneration
    tokenizer = AutoTokenizer.from_pretrained(native_folder)
    assert type(tokenizer) is PaiPainterTokenizer
    assert (tokenizer.vocab_size, tokenizer.pad_token_id) == (256, 64)
    assert isinstance(AutoProcessor.from_pretrained(native_folder), PaiPainterProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(native_folder), PaiPainterImageProcessor)


def test_the_auto_classes_read_an_untouched_easynlp_folder(painter: PaiPainterForImageGeneration) -> None:
    folder = GOLDEN / "easynlp_tiny"
    for vq_config in (vqgan_config(), vqgan_config().to_dict()):
        config = AutoConfig.from_pretrained(folder, vq_config=vq_config)
        assert isinstance(config, PaiPainterConfig)
        for auto in (AutoModel, AutoModelForCausalLM):
            model = auto.from_pretrained(folder, vq_config=vq_config)
            assert type(model) is PaiPainterForImageGeneration
            assert same_weights(model, painter)
    for options in ({}, {"vq_config": vqgan_config()}):
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        assert type(tokenizer) is PaiPainterTokenizer
        assert (tokenizer.model_max_length, tokenizer.pad_token_id) == (32, 64)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, PaiPainterProcessor)
    assert (processor.text_length, processor.image_vocab_size) == (32, 64)


@pytest.mark.parametrize("cls", [AutoModel, AutoModelForCausalLM, PaiPainterForImageGeneration, PaiPainterModel])
def test_an_easynlp_folder_of_another_vqgan_asks_for_it(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"48 positions.*please pass `vq_config=.*pai-painter convert") as error:
        cls.from_pretrained(GOLDEN / "easynlp_tiny")
    assert "\n" not in str(error.value)


def test_a_loaded_painter_computes_what_easynlp_did(native_folder: Path) -> None:
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(native_folder)(whole_sequence()[:, :-1]).logits
    torch.testing.assert_close(logits, expected()["all_logits"], atol=1e-5, rtol=0)


class WithAnotherHead(PaiPainterForImageGeneration):
    def __init__(self, config: PaiPainterConfig):
        super().__init__(config)
        self.judge = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()


def test_a_subclass_may_have_a_head_that_the_folder_lacks(native_folder: Path, tmp_path: Path) -> None:
    painter, info = WithAnotherHead.from_pretrained(native_folder, output_loading_info=True)
    assert info["missing_keys"] == {"judge.weight", "judge.bias"}
    assert painter.judge.weight.std() > 0
    painter.save_pretrained(tmp_path)
    again = WithAnotherHead.from_pretrained(tmp_path)
    assert torch.equal(again.judge.weight, painter.judge.weight)
    with pytest.raises(ValueError, match=r"unexpected: judge\.bias; unexpected: judge\.weight"):
        PaiPainterForImageGeneration.from_pretrained(tmp_path)


class WithAWiderHead(PaiPainterForImageGeneration):
    def __init__(self, config: PaiPainterConfig):
        super().__init__(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.image_vocab_size + 1, bias=False)
        self.post_init()


def test_mismatched_sizes_are_ignored_only_if_that_is_asked_for(native_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"mismatched: lm_head\.weight is \(64, 32\), must be \(65, 32\)"):
        WithAWiderHead.from_pretrained(native_folder)
    painter = WithAWiderHead.from_pretrained(native_folder, ignore_mismatched_sizes=True)
    assert painter.lm_head.weight.shape == (65, 32)
    assert painter.lm_head.weight.isfinite().all()


def test_options_of_saving_may_be_given_by_position(painter: PaiPainterForImageGeneration, tmp_path: Path) -> None:
    state = {name: weight + 1 for name, weight in painter.state_dict().items()}
    painter.save_pretrained(tmp_path, True, state, False, "40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again = PaiPainterForImageGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, painter.lm_head.weight + 1)
