# SPDX-License-Identifier: Apache-2.0
"""taming-transformers' VQGANs."""

import importlib
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import TAMING, files_of, making
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from pai_painter import PaiPainterVQModel
from pai_painter.convert import convert

PICKLES = ("last.ckpt", "last_legacy_format.ckpt")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint whose settings or weights are others."""

    def make(settings: dict[str, Any] | None = None, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        root = yaml.safe_load((TAMING / "model.yaml").read_text(encoding="utf-8"))
        for path, value in (settings or {}).items():
            *parents, name = path.split(".")
            place = root
            for parent in parents:
                place = place[parent]
            place[name] = value
        (folder / "model.yaml").write_text(yaml.safe_dump(root), encoding="utf-8")
        if change is None:
            shutil.copy(TAMING / "last.ckpt", folder)
        else:
            weights = dict(PaiPainterVQModel.from_pretrained(vqgan_folder(tmp_path)).state_dict())
            change(weights)
            torch.save({"state_dict": weights}, folder / "last.ckpt")
        return folder / "last.ckpt"

    return make


def vqgan_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "vqgan"
    convert(TAMING / "last.ckpt", folder)
    return folder


@pytest.mark.parametrize("name", PICKLES)
@torch.no_grad()
def test_both_golden_pickles(tmp_path: Path, name: str) -> None:
    report = convert(TAMING / name, tmp_path / "out")
    assert files_of(tmp_path / "out") == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert report.read == [name, "model.yaml"]
    assert isinstance(report.model, PaiPainterVQModel)
    assert {"callbacks", "optimizer_states", "loss.discriminator.main.N.weight"} <= set(report.ignored)
    expected = load_file(TAMING / "expected.safetensors")
    vqgan = AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(vqgan, PaiPainterVQModel)
    found = vqgan.encode(expected["image"])
    assert torch.equal(found.image_tokens, expected["codes"])
    torch.testing.assert_close(found.quantized, expected["quantized"], atol=1e-5, rtol=0)
    torch.testing.assert_close(vqgan.decode(expected["codes"]), expected["reconstruction"], atol=1e-5, rtol=0)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor(torch.zeros(3, 50, 40, dtype=torch.uint8))["pixel_values"][0].shape == (3, 32, 32)


def test_both_golden_pickles_are_the_same_vqgan(tmp_path: Path) -> None:
    for name in PICKLES:
        convert(TAMING / name, tmp_path / name)
    for file in files_of(tmp_path / PICKLES[0]):
        assert (tmp_path / PICKLES[0] / file).read_bytes() == (tmp_path / PICKLES[1] / file).read_bytes()


def test_the_folders_of_a_run(tmp_path: Path) -> None:
    """taming keeps `checkpoints/last.ckpt` and `configs/…-project.yaml`."""
    for folder, name in (("checkpoints", "last.ckpt"), ("configs", "model.yaml")):
        (tmp_path / folder).mkdir()
        shutil.copy(TAMING / name, tmp_path / folder)
    convert(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "one")
    convert(tmp_path / "checkpoints", tmp_path / "two")
    (tmp_path / "configs" / "other.yaml").touch()
    with pytest.raises(OSError, match="several YAML files"):
        convert(tmp_path / "checkpoints", tmp_path / "three")
    convert(tmp_path / "checkpoints", tmp_path / "three", config=tmp_path / "configs/model.yaml")
    shutil.rmtree(tmp_path / "configs")
    with pytest.raises(OSError, match="no YAML file beside"):
        convert(tmp_path / "checkpoints", tmp_path / "four")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model.target": "taming.models.vqgan.GumbelVQ"}, "'taming.models.vqgan.GumbelVQ'; only"),
        ({"model.target": "taming.models.cond_transformer.Net2NetTransformer"}, "Net2NetTransformer"),
        ({"model.target": "ldm.models.autoencoder.AutoencoderKL"}, "AutoencoderKL"),
        ({"model.target": ["a"]}, "only"),
        ({"model.params.remap": "used.npy"}, "n_embed, remap"),
        ({"model.params.kl_weight": 1}, "kl_weight"),
        ({"model.params.ddconfig.double_z": True}, "double_z"),
        ({"model.params.ddconfig.tanh_out": True}, "tanh_out"),
        ({"model.params.ddconfig.ch": "32"}, "expected int"),
        ({"model.params.ddconfig.ch_mult": 3}, "iterable"),
        ({"model.params.ddconfig.ch_mult": [1, 2, 4]}, r"decoder.conv_in.weight is \(64, 16, 3, 3\), must be \(128"),
        ({"model.params.ddconfig.num_res_blocks": 900}, "missing: |which describes"),
        ({"model.params.ddconfig.num_res_blocks": 10**9}, "must lie between 1 and 1,000"),
        ({"model.params.ddconfig": [1]}, "doesn't describe a VQGAN"),
        ({"model.params": None}, "isn't a taming-transformers config"),
        ({"model": 3}, "isn't a taming-transformers config"),
        ({"model.params.n_embed": 129}, r"quantize.embedding.weight is \(128, 16\), must be \(129, 16\)"),
    ],
)
def test_settings_that_do_not_fit(changed: Any, tmp_path: Path, settings: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        convert(changed(settings), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop("encoder.conv_in.bias"), "missing: encoder.conv_in.bias"),
        (lambda weights: weights.update({"colorize": torch.ones(1)}), "unexpected: colorize"),
        (lambda weights: weights.update({"quantize.proj.weight": torch.ones(1)}), "unexpected: quantize.proj.weight"),
        (lambda weights: weights["quantize.embedding.weight"].fill_(float("nan")), "NaN"),
        (lambda weights: weights.update({"x": 3}), "of type int under 'x'"),
    ],
)
def test_weights_that_do_not_fit(changed: Any, tmp_path: Path, change: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        convert(changed(change=change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [ran]",
        "model: !!python/object/apply:os.mkdir [ran]",
        "model: {target: !!python/name:os.mkdir ''}",
        "a: [",
        "\x00",
        "[1, 2]",
        "",
        "x" * 2**21,
        "a: &a [1]\nb: &b [*a, *a]\nmodel: [*b, *b]",
    ],
)
def test_settings_are_read_as_data(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"model\.yaml"):
        convert(TAMING / "last.ckpt", "out", config="model.yaml")
    assert [path.name for path in Path().iterdir()] == ["model.yaml"]


def test_a_program_in_a_callback(tmp_path: Path) -> None:
    """Refused, or never run: see test_hostile_checkpoints."""
    shutil.copy(TAMING / "model.yaml", tmp_path)
    weights = PaiPainterVQModel.from_pretrained(vqgan_folder(tmp_path)).state_dict()
    content = {"state_dict": weights, "callbacks": {"ModelCheckpoint": making(tmp_path / "ran")}}
    for zipped in (True, False):
        torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="nothing in it was executed"):
            convert(tmp_path / "last.ckpt", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_torchscript(tmp_path: Path) -> None:
    shutil.copy(TAMING / "model.yaml", tmp_path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="TorchScript"):
        convert(tmp_path / "last.ckpt", tmp_path / "out")


def rearrange(tensor: torch.Tensor, pattern: str) -> torch.Tensor:
    """What taming uses of einops: swapping axes."""
    before, after = (side.split() for side in pattern.split("->"))
    return tensor.permute([before.index(axis) for axis in after])


@pytest.fixture(scope="module")
def oracle() -> Iterator[Any]:
    """taming's own class, without the frameworks that its file imports."""
    pytest.importorskip("taming", reason="pip install --no-deps taming-transformers-rom1504==0.0.6")
    stubs = {
        "pytorch_lightning": {"LightningModule": torch.nn.Module},
        "taming.main": {"instantiate_from_config": lambda config: torch.nn.Linear(2, 2)},  # the loss has weights
        "einops": {"rearrange": rearrange},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in stubs.items():
            module = types.ModuleType(name)
            vars(module).update(attributes)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "taming.models.vqgan", raising=False)
        yield importlib.import_module("taming.models.vqgan").VQModel
        sys.modules.pop("taming.models.vqgan", None)


@pytest.mark.parametrize(
    "sizes",
    [
        {"resolution": 32, "ch_mult": [1, 3, 2], "attn_resolutions": [16, 8], "num_res_blocks": 2},
        {"resolution": 16, "ch_mult": [2, 1], "attn_resolutions": [], "in_channels": 1, "out_ch": 4, "z_channels": 5},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
@torch.no_grad()
def test_the_original_program_computes_the_same(oracle: Any, tmp_path: Path, sizes: Any, zipped: bool) -> None:
    ddconfig = {"double_z": False, "z_channels": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "num_res_blocks": 1}
    ddconfig |= {"dropout": 0.0} | sizes
    torch.manual_seed(0)
    original = oracle(ddconfig, lossconfig=None, n_embed=50, embed_dim=24).eval()
    for weight in original.parameters():
        weight.add_(torch.randn_like(weight), alpha=0.05)
    original.quantize.embedding.weight.normal_()
    torch.save({"state_dict": original.state_dict()}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    params = {"embed_dim": 24, "n_embed": 50, "ddconfig": ddconfig, "lossconfig": {"target": "x"}}
    settings = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    report = convert(tmp_path / "a.ckpt", tmp_path / "out")
    assert report.ignored == ["loss.weight", "loss.bias"]
    vqgan = PaiPainterVQModel.from_pretrained(tmp_path / "out")
    image = torch.rand(2, ddconfig["in_channels"], ddconfig["resolution"], ddconfig["resolution"]) * 2 - 1
    quantized, _, (_, _, codes) = original.encode(image)
    found = vqgan.encode(image)
    assert torch.equal(found.image_tokens.flatten(), codes)
    # In double precision: how sums of single ones are rounded depends on the version of torch.
    pixels, wanted = vqgan.double().decode(found.image_tokens), original.double().decode(quantized.double())
    torch.testing.assert_close(pixels, wanted, atol=1e-5, rtol=0)
