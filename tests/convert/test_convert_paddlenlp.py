# SPDX-License-Identifier: Apache-2.0
"""PaddleNLP's painters, whose VQGAN only paints."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import DIMS, EASYNLP, PADDLE, making
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

from pai_painter import (
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterPipeline,
    PaiPainterVQConfig,
    PaiPainterVQModel,
)
from pai_painter.cli import app
from pai_painter.convert import convert

OPTIONS: dict[str, Any] = {"vq_config": DIMS, "config": PADDLE / "dims.json"}


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """A copy of the golden folder with other arrays, and without what the original program computed."""

    def make(change: Callable[[dict[str, Any]], Any]) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        shutil.copy(PADDLE / "vocab.txt", folder)
        arrays = pickle.loads((PADDLE / "model_state.pdparams").read_bytes())
        change(arrays)
        (folder / "model_state.pdparams").write_bytes(pickle.dumps(arrays, 4))
        return folder

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painter with the same VQGAN, encoder included."""
    folder = tmp_path_factory.mktemp("whole") / "painter"
    convert(EASYNLP, folder, vq_config=DIMS)
    return folder


@torch.no_grad()
def test_the_golden_folder(tmp_path: Path) -> None:
    report = convert(PADDLE, tmp_path / "out", **OPTIONS)
    assert "lm_head, rows 64…319 (caption tokens)" in report.ignored
    assert "decoder only" in report.notes[0]
    expected = load_file(PADDLE / "expected.safetensors")
    painter = AutoModel.from_pretrained(tmp_path / "out")
    assert not painter.vqgan.config.has_encoder
    logits = painter(expected["input_ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=5e-4, rtol=0)
    painter.config.hidden_act = "gelu_pytorch_tanh"  # PaddleNLP's own slip
    tanh = PaiPainterForImageGeneration(painter.config).eval()
    tanh.load_state_dict(painter.state_dict())
    torch.testing.assert_close(tanh(expected["input_ids"]).logits, expected["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(painter.vqgan.decode(expected["codes"]), expected["reconstruction"], atol=1e-5, rtol=0)
    assert PaiPainterPipeline.from_pretrained(tmp_path / "out")("a").images[0].size == (8, 8)


def test_such_a_model_says_that_it_has_no_encoder(tmp_path: Path) -> None:
    convert(PADDLE, tmp_path / "out", **OPTIONS)
    painter = AutoModel.from_pretrained(tmp_path / "out")
    vqgan = PaiPainterVQModel.from_pretrained(tmp_path / "out")
    assert not hasattr(vqgan, "encoder")
    assert not hasattr(vqgan, "quant_conv")
    for call in (painter.vqgan.encode, vqgan.encode_latents, vqgan.encode, vqgan):
        with pytest.raises(ValueError, match="no encoder"):
            call(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="no encoder"):
        vqgan.encode(torch.zeros(1))  # said before anything else
    weights = load_file(tmp_path / "out/model.safetensors")
    weights.pop("vqgan.decoder.conv_in.bias")
    weights["vqgan.quant_conv.bias"] = torch.zeros(32)
    save_file(weights, tmp_path / "out/model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"missing: vqgan\.decoder\.conv_in\.bias; unexpected: vqgan\.quant_conv\.bias"
    ):
        AutoModel.from_pretrained(tmp_path / "out")


def test_the_configuration_of_earlier_models_has_an_encoder() -> None:
    fields = PaiPainterVQConfig().to_dict()
    del fields["has_encoder"]
    assert PaiPainterVQConfig.from_dict(fields).has_encoder is True
    config = PaiPainterConfig(vq_config=PaiPainterVQConfig(has_encoder=False))
    assert PaiPainterConfig.from_dict(config.to_dict()).vq_config.has_encoder is False
    with pytest.raises(ValueError, match="has_encoder"):
        PaiPainterVQConfig(has_encoder=0)


def test_encode_says_it_in_one_sentence(tmp_path: Path) -> None:
    convert(PADDLE, tmp_path / "out", **OPTIONS)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = [
        "encode",
        str(tmp_path / "a.png"),
        "--model",
        str(tmp_path / "out"),
        "--output",
        str(tmp_path / "a.json"),
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert re.fullmatch(r"Error: This VQGAN has no encoder: .+\n", result.stderr)


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_the_whole_vqgan_is_taken(tmp_path: Path, whole: Path, later: bool) -> None:
    if later:
        convert(PADDLE, tmp_path / "first", **OPTIONS)
        convert(tmp_path / "first", tmp_path / "out", vqgan=whole)
    else:
        convert(PADDLE, tmp_path / "out", vqgan=whole, **OPTIONS)
    painter = PaiPainterForImageGeneration.from_pretrained(tmp_path / "out")
    expected = load_file(EASYNLP / "expected.safetensors")
    assert torch.equal(painter.vqgan.encode(expected["image"]).image_tokens, expected["codes"])
    theirs = PaiPainterVQModel.from_pretrained(whole).state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in painter.vqgan.state_dict().items())
    convert(tmp_path / "out", tmp_path / "easynlp", to="easynlp")


@pytest.mark.parametrize("name", ["quantize.embedding.weight", "decoder.conv_out.bias", "post_quant_conv.weight"])
def test_another_vqgan_is_refused(tmp_path: Path, whole: Path, name: str) -> None:
    vqgan = PaiPainterVQModel.from_pretrained(whole)
    with torch.no_grad():
        vqgan.get_parameter(name).view(-1)[0] += 0.01
    vqgan.save_pretrained(tmp_path / "vqgan")
    with pytest.raises(ValueError, match=f"isn't the model's: {name} has different values"):
        convert(PADDLE, tmp_path / "out", vqgan=tmp_path / "vqgan", **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vqgan"]


def test_vqgans_that_cannot_be_taken(tmp_path: Path, whole: Path, tiny_painter: Path) -> None:
    convert(PADDLE, tmp_path / "first", **OPTIONS)
    with pytest.raises(ValueError, match="has no encoder either"):
        convert(PADDLE, tmp_path / "out", vqgan=tmp_path / "first", **OPTIONS)
    with pytest.raises(ValueError, match="isn't the model's"):
        convert(PADDLE, tmp_path / "out", vqgan=tiny_painter, **OPTIONS)
    with pytest.raises(OSError, match="contains no VQGAN"):
        convert(PADDLE, tmp_path / "out", vqgan=PADDLE, **OPTIONS)
    with pytest.raises(ValueError, match="has a whole VQGAN already"):
        convert(EASYNLP, tmp_path / "out", vq_config=DIMS, vqgan=whole)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_attention_heads": 2}, "config.json"),
        ({"init_args": [{"num_attention_heads": 2, "init_class": "GPTModel"}], "init_class": "A"}, "model_config.json"),
    ],
)
def test_the_number_of_heads_is_found_beside(changed: Any, tmp_path: Path, settings: Any, name: str) -> None:
    folder = changed(lambda arrays: None)
    with pytest.raises(ValueError, match="The weights don't tell `num_attention_heads`"):
        convert(folder, tmp_path / "out", vq_config=DIMS)
    (folder / name).write_text(json.dumps(settings))
    report = convert(folder, tmp_path / "out", vq_config=DIMS)
    assert name in report.read
    assert PaiPainterConfig.from_pretrained(tmp_path / "out").num_attention_heads == 2


def test_later_names_of_the_head_and_bfloat16(changed: Any, tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["lm_head.weight"] = arrays.pop("lm_head.decoder_weight")
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):  # as Paddle writes bfloat16: the upper half of the bits
                arrays[name] = (array.view("uint32") >> 16).astype("uint16")

    report = convert(changed(change), tmp_path / "out", **OPTIONS)
    assert report.model.dtype == torch.bfloat16
    wanted = torch.from_numpy(pickle.loads((PADDLE / "model_state.pdparams").read_bytes())["lm_head.decoder_weight"])
    found = load_file(tmp_path / "out/model.safetensors")["lm_head.weight"].float()
    torch.testing.assert_close(found, wanted[:64], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays.pop("gpt.decoder.norm.bias"), "missing: gpt.decoder.norm.bias|missing: model.norm.bias"),
        (lambda arrays: arrays.update(more=np.ones(1)), "unexpected: more"),
        (lambda arrays: arrays.update({"gpt.decoder.norm.bias": np.ones(33)}), r"norm.bias is \(33,\)"),
        (lambda arrays: arrays.update(more="text"), "of type str under 'more'"),
        (lambda arrays: arrays.clear(), "holds no weights"),
        (lambda arrays: [arrays.pop(name) for name in list(arrays) if "gpt" in name], "no painter of PaddleNLP"),
        (lambda arrays: arrays.pop("vqgan_detokenizer.embedding.weight"), "missing: vqgan.quantize.embedding.weight"),
        (
            lambda arrays: arrays.update({"vqgan_detokenizer.embedding.weight": np.ones((65, 32))}),
            r"weight is \(65, 32\)",
        ),
        (lambda arrays: arrays.update({"lm_head.weight": np.ones((320, 32))}), "holds lm_head.weight twice"),
        (lambda arrays: arrays["gpt.decoder.norm.bias"].fill(np.nan), r"NaN or infinity .*model\.norm\.bias"),
        (lambda arrays: arrays.update({"gpt.decoder.layers.9999.norm1.bias": np.ones(32)}), "layers.9999"),
    ],
)
def test_arrays_that_do_not_fit(changed: Any, tmp_path: Path, change: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        convert(changed(change), tmp_path / "out", **OPTIONS)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_program_among_the_arrays(changed: Any, tmp_path: Path) -> None:
    folder = changed(lambda arrays: arrays.update(more=making(tmp_path / "ran")))
    with pytest.raises(ValueError, match="nothing in it was executed"):
        convert(folder, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "ran").exists()


def test_no_vocabulary(changed: Any, tmp_path: Path) -> None:
    folder = changed(lambda arrays: None)
    (folder / "vocab.txt").unlink()
    with pytest.raises(OSError, match=r"it needs a vocab\.txt"):
        convert(folder, tmp_path / "out", **OPTIONS)
