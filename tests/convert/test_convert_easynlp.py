# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's checkpoints here, and ours there."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import DIMS, EASYNLP, GOLDEN, changed_easynlp, files_of, making, vqgan_config
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from pai_painter import PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor
from pai_painter.convert import convert


@pytest.fixture(scope="module", params=["easynlp_tiny", "easynlp_tiny_prefix"])
def golden(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / request.param


@torch.no_grad()
def test_a_golden_folder_becomes_a_native_one(golden: Path, tmp_path: Path) -> None:
    report = convert(golden, tmp_path / "out", vq_config=golden / "dims.json")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}
    assert report.model.num_parameters() == 39_296 + 742_723
    assert report.ignored == ["transformer.blocks.N.attn.mask (2)"]
    expected = load_file(golden / "expected.safetensors")
    painter = AutoModel.from_pretrained(tmp_path / "out")
    assert painter.dtype == torch.float32
    ids = torch.cat([expected["text_ids"], expected["codes"]], dim=1)[:, :-1]
    torch.testing.assert_close(painter(ids).logits, expected["all_logits"], atol=1e-5, rtol=0)
    assert torch.equal(painter.vqgan.encode(expected["image"]).image_tokens, expected["codes"])
    torch.testing.assert_close(painter.vqgan.decode(expected["codes"]), expected["reconstruction"], atol=1e-5, rtol=0)
    greedy = painter.generate(expected["text_ids"], do_sample=False)
    assert torch.equal(greedy[:, 32:], expected["greedy_codes"])
    processor = PaiPainterProcessor.from_pretrained(tmp_path / "out")
    assert processor(images=Image.new("RGB", (30, 20)), return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 8)
    wanted = AutoTokenizer.from_pretrained(golden, vq_config=vqgan_config())
    assert processor.tokenizer.get_vocab() == wanted.get_vocab()
    assert len(PaiPainterPipeline.from_pretrained(tmp_path / "out")("a", generator=[torch.Generator()]).images) == 1


def test_there_and_back_is_the_same_to_the_bit(golden: Path, tmp_path: Path) -> None:
    convert(golden, tmp_path / "native", vq_config=DIMS)
    report = convert(tmp_path / "native", tmp_path / "back", to="easynlp")
    assert files_of(tmp_path / "back") == ["config.json", "pytorch_model.bin", "vocab.txt"]
    theirs = torch.load(golden / "pytorch_model.bin", weights_only=True)
    ours = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():  # the masks of attention, too
        assert torch.equal(ours[name], tensor), name
        assert ours[name].dtype == tensor.dtype
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (golden, tmp_path / "back"))
    assert after == {name: value for name, value in before.items() if name != "transformers_version"}
    assert (tmp_path / "back/vocab.txt").read_bytes() == (golden / "vocab.txt").read_bytes()
    assert "--vq-config" in report.notes[0]
    convert(tmp_path / "back", tmp_path / "again", vq_config=tmp_path / "native")
    for name in files_of(tmp_path / "native"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "native" / name).read_bytes(), name


def test_a_painter_of_ours_runs_there(tiny_painter: Path, tmp_path: Path) -> None:
    convert(tiny_painter, tmp_path / "easynlp", to="easynlp")
    painter = PaiPainterForImageGeneration.from_pretrained(tiny_painter)
    with pytest.raises(ValueError, match="vq_config"):
        AutoModel.from_pretrained(tmp_path / "easynlp")
    there = AutoModel.from_pretrained(tmp_path / "easynlp", vq_config=painter.vqgan.config)
    assert all(torch.equal(weight, there.state_dict()[name]) for name, weight in painter.state_dict().items())
    ours, theirs = (path.read_text(encoding="utf-8") for path in (tmp_path / "easynlp/vocab.txt", GOLDEN / "vocab.txt"))
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"intermediate_size": 48}, "`intermediate_size`"),
        ({"hidden_act": "gelu_new"}, "`hidden_act`"),
        ({"layer_norm_eps": 1e-6}, "`layer_norm_eps`"),
        ({"vq_config": {"encoder_attention": False}}, "`encoder_attention`"),
        ({"vq_config": {"has_encoder": False}}, "--vqgan"),
    ],
)
def test_what_easynlp_cannot_hold_is_refused(
    tiny_painter: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    config = PaiPainterForImageGeneration.config_class.from_pretrained(tiny_painter)
    for name, value in change.pop("vq_config", {}).items():
        setattr(config.vq_config, name, value)
    config.update(change)
    PaiPainterForImageGeneration(config).save_pretrained(tmp_path / "painter")
    PaiPainterProcessor.from_pretrained(tiny_painter).save_pretrained(tmp_path / "painter")
    with pytest.raises(ValueError, match=reason):
        convert(tmp_path / "painter", tmp_path / "out", to="easynlp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["painter"]


@pytest.mark.parametrize("inside", [".", "pai-painter-tiny", "a/b"])
def test_the_archive_of_the_model_zoo(tmp_path: Path, inside: str) -> None:
    with tarfile.open(tmp_path / "tiny.tgz", "w:gz") as archive:
        archive.add(EASYNLP, inside)
    convert(tmp_path / "tiny.tgz", tmp_path / "out", vq_config=DIMS)
    PaiPainterForImageGeneration.from_pretrained(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.tgz"]


def test_errors_name_the_archive(tmp_path: Path) -> None:
    folder = changed_easynlp(tmp_path / "model", lambda weights: weights.popitem())
    with tarfile.open(tmp_path / "tiny.tgz", "w:gz") as archive:
        archive.add(folder, "model")
    with pytest.raises(ValueError, match="missing") as error:
        convert(tmp_path / "tiny.tgz", tmp_path / "out", vq_config=DIMS)
    assert "tiny.tgz/model/pytorch_model.bin" in str(error.value)


def test_step_checkpoints(tmp_path: Path) -> None:
    folder = changed_easynlp(tmp_path / "model", lambda weights: None)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model_step_200.bin")
    convert(folder, tmp_path / "only", vq_config=DIMS)
    weights["transformer.head.weight"] += 1
    torch.save(weights, folder / "pytorch_model_step_1000.bin")
    (folder / "train_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"has 2 files .* please name one"):
        convert(folder, tmp_path / "out", vq_config=DIMS)
    report = convert(folder / "pytorch_model_step_1000.bin", tmp_path / "out", vq_config=DIMS)
    assert report.read == ["config.json", "pytorch_model_step_1000.bin", "vocab.txt"]
    assert report.ignored[1:] == ["pytorch_model_step_200.bin", "train_config.json"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("only", "out"))
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"] + 1)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda weights: weights.pop("transformer.ln_f.bias"), ["1 don't", "missing: model.norm.bias."]),
        (
            lambda weights: weights.update({"transformer.blocks.2.ln1.bias": torch.ones(32), "more": torch.ones(1)}),
            ["2 don't", "unexpected: model.layers.2.ln_1.bias; unexpected: more."],
        ),
        (
            lambda weights: weights.update({"transformer.head.weight": torch.ones(65, 32)}),
            ["mismatched: lm_head.weight is (65, 32), must be (64, 32)."],
        ),
        (
            lambda weights: weights.update({"model.norm.bias": torch.ones(32)}),
            ["weights under other names than EasyNLP's: model.norm.bias."],
        ),
        (lambda weights: weights.update({"\x1b[2J": torch.ones(1)}), ["unexpected: \\x1b[2J."]),
        (lambda weights: weights.update(more="text"), ["of type str under 'more'"]),
        (lambda weights: weights.clear(), ["holds no weights"]),
        (
            lambda weights: weights["transformer.ln_f.bias"].fill_(float("nan")),
            ["hold NaN or infinity", "model.norm.bias"],
        ),
        (
            lambda weights: weights.update({"transformer.ln_f.bias": torch.ones(32).int()}),
            ["no floating-point numbers"],
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: Any, reasons: list[str]) -> None:
    folder = changed_easynlp(tmp_path / "model", change)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin") as error:
        convert(folder, tmp_path / "out", vq_config=DIMS)
    for reason in reasons:
        assert reason in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_program_in_the_weights(tmp_path: Path) -> None:
    folder = changed_easynlp(tmp_path / "model", lambda weights: weights.update(more=making(tmp_path / "ran")))
    with pytest.raises(ValueError, match="nothing in it was executed"):
        convert(folder, tmp_path / "out", vq_config=DIMS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.txt", None, r"it needs a vocab\.txt"),
        ("vocab.txt", b"[PAD]\n[UNK]\n", r"lacks \[CLS\], \[MASK\], \[SEP\]"),
        ("vocab.txt", b"[PAD]\n" * 256, "word pieces must be different"),
        ("vocab.txt", b"\xff\xfe" * 600, "UTF-8"),
        ("pytorch_model.bin", None, "has no files pytorch_model"),
        ("config.json", None, "is no known checkpoint"),
        ("config.json", b"{", "can't be read as settings"),
        ("config.json", b'{"model_type": "bert"}', "'bert'"),
        ("config.json", b'{"model_type": "artist"}', "lacks block_size"),
        ("n_layer", 3, "missing: model.layers.2"),
        ("n_layer", 900, "which describes 12,190,211 numbers"),
        ("n_layer", 10**9, "must lie between 1 and 1,000"),
        ("n_layer", "2", "n_layer|num_hidden_layers|int"),
        ("n_embd", 5 * 10**8, "can't be built|which describes"),
        ("n_embd", 10**15, "must lie between 1 and"),
        ("n_head", 5, "divisible"),
        ("block_size", "48", "isn't a painter's"),
        ("block_size", 16, "positions"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    folder = changed_easynlp(tmp_path / "model", lambda weights: None)
    if "." in name:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
    else:
        config = json.loads((folder / "config.json").read_text()) | {name: content}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, OSError), match=reason) as error:
        convert(folder, tmp_path / "out", vq_config=DIMS)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_vqgan_of_a_small_model_must_be_described(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vq_config"):
        convert(EASYNLP, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: Any) -> None:
    report = convert(EASYNLP, tmp_path / "out", vq_config=DIMS, dtype=dtype)
    assert report.model.dtype == getattr(torch, dtype)
    theirs = torch.load(EASYNLP / "pytorch_model.bin", weights_only=True)["transformer.head.weight"]
    assert torch.equal(
        load_file(tmp_path / "out/model.safetensors")["lm_head.weight"], theirs.to(getattr(torch, dtype))
    )
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_half_precision_of_the_source_is_kept(tmp_path: Path) -> None:
    folder = changed_easynlp(
        tmp_path / "model", lambda weights: weights.update({name: one.half() for name, one in weights.items()})
    )
    assert convert(folder, tmp_path / "out", vq_config=DIMS).model.dtype == torch.float16


def test_numbers_too_large_for_half_precision(tmp_path: Path) -> None:
    folder = changed_easynlp(tmp_path / "model", lambda weights: weights["transformer.ln_f.bias"].fill_(1e6))
    with pytest.raises(ValueError, match=r"in float16 hold NaN or infinity \(in float16\): model\.norm\.bias"):
        convert(folder, tmp_path / "out", vq_config=DIMS, dtype="float16")
