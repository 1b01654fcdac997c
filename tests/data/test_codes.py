# SPDX-License-Identifier: Apache-2.0
"""Codes on the disk: those of the VQGAN, and never stale."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from pai_painter import PaiPainterImageProcessor, PaiPainterVQConfig, PaiPainterVQModel
from pai_painter.data import codes as codes_module
from pai_painter.data.augment import Augmentation
from pai_painter.data.codes import CodesOnDisk, load_codes
from pai_painter.data.rows import PictureRows, load_rows
from pai_painter.data.sources import find_source

VQGAN = {
    "resolution": 8,
    "base_channels": 4,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "norm_num_groups": 2,
    "attn_resolutions": [],
    "latent_channels": 4,
    "embed_dim": 4,
    "num_embeddings": 32,
}


@pytest.fixture
def vqgan() -> PaiPainterVQModel:
    torch.manual_seed(0)
    vqgan = PaiPainterVQModel(PaiPainterVQConfig(**VQGAN))
    vqgan.quantize.embedding.weight.data.normal_(std=0.3)
    return vqgan


@pytest.fixture
def processor() -> PaiPainterImageProcessor:
    return PaiPainterImageProcessor(size=8)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., datasets.Dataset]:
    """40 pictures of noise, more than one batch."""

    def make(seed: int = 0) -> datasets.Dataset:
        noise = torch.randint(256, (40, 12, 10, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        lines = []
        for number, pixels in enumerate(noise):
            buffer = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
            lines.append(f"{number}\t红{number}\t{base64.b64encode(buffer.getvalue()).decode()}\n")
        (tmp_path / "rows.tsv").write_text("".join(lines), encoding="utf-8")
        return load_rows(find_source([tmp_path / "rows.tsv"]), cache_dir=tmp_path / "cache")

    return make


@pytest.fixture
def encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[datasets.Dataset, int]]:
    """`load_codes`, and how many batches the VQGAN had to encode for it."""
    encoded = []
    encode_batch = codes_module._encode

    def counted(batch: dict, indices: list[int], **options: object) -> dict:
        encoded.append(len(indices))
        return encode_batch(batch, indices, **options)

    monkeypatch.setattr(codes_module, "_encode", counted)

    def run(*arguments: object, **options: object) -> tuple[datasets.Dataset, int]:
        before = len(encoded)
        codes = load_codes(*arguments, cache_dir=tmp_path / "cache", **options)
        return codes, len(encoded) - before

    return run


def test_codes_are_the_vqgans(rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Callable) -> None:
    table = rows()
    codes, batches = encode(table, vqgan.train(), processor)
    assert batches == 2
    assert codes.column_names == ["idx", "captions", "image_tokens"]
    assert codes["idx"][:] == table["idx"][:]
    assert codes["captions"][:] == table["captions"][:]
    pictures = torch.stack([PictureRows(table, processor)[row] for row in range(40)])
    with torch.no_grad():
        expected = torch.cat([vqgan.eval().encode(part).image_tokens for part in pictures.split(32)])
    found = torch.tensor(codes["image_tokens"][:])
    assert found.shape == (40, 1, 16)
    assert torch.equal(found[:, 0], expected)
    assert len(found.unique()) > 4


def test_the_second_time_they_are_read(
    rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Callable, tmp_path: Path
) -> None:
    first, batches = encode(rows(), vqgan, processor)
    again, more = encode(rows(), vqgan, processor)
    assert (batches, more) == (2, 0)
    assert first.to_list() == again.to_list()
    # A resumed run compares it, be its cache the old one or built anew.
    anew = load_codes(rows(), vqgan, processor, cache_dir=tmp_path / "another")
    assert first._fingerprint == again._fingerprint == anew._fingerprint


def test_another_file(rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Callable) -> None:
    first, _ = encode(rows(seed=0), vqgan, processor)
    second, batches = encode(rows(seed=1), vqgan, processor)
    assert batches == 2
    assert first._fingerprint != second._fingerprint
    assert first["image_tokens"][:] != second["image_tokens"][:]


@pytest.mark.parametrize("name", ["quantize.embedding.weight", "encoder.conv_in.bias", "decoder.conv_out.bias"])
def test_another_weight(name: str, rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Callable) -> None:
    encode(rows(), vqgan, processor)
    with torch.no_grad():
        vqgan.get_parameter(name).view(-1)[-1] += 1e-4
    assert encode(rows(), vqgan, processor)[1] == 2


def test_another_vqgan_configuration(rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Callable) -> None:
    encode(rows(), vqgan, processor)
    other = PaiPainterVQModel(PaiPainterVQConfig(**{**VQGAN, "norm_eps": 1e-3}))
    other.load_state_dict(vqgan.state_dict())
    assert encode(rows(), other, processor)[1] == 2


@pytest.mark.parametrize("options", [{"resample": 0}, {"random_crop": True}])
def test_other_image_settings(options: dict, rows: Callable, vqgan, processor, encode: Callable) -> None:
    first, _ = encode(rows(), vqgan, processor)
    second, batches = encode(rows(), vqgan, PaiPainterImageProcessor(size=8, **options))
    assert batches == 2
    assert first["image_tokens"][:] != second["image_tokens"][:]


def test_variants(rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Callable) -> None:
    plain = torch.tensor(encode(rows(), vqgan, processor)[0]["image_tokens"][:])
    codes, batches = encode(rows(), vqgan, processor, variants=3, augmentation=Augmentation(max_shift=2))
    assert batches == 2
    variants = torch.tensor(codes["image_tokens"][:])
    assert variants.shape == (40, 3, 16)
    assert torch.equal(variants[:, :1], plain)
    assert (variants[:, 1] != variants[:, 0]).any(1).float().mean() > 0.6
    assert (variants[:, 1] != variants[:, 2]).any(1).float().mean() > 0.6
    # Each of these is another table.
    assert encode(rows(), vqgan, processor, variants=2, augmentation=Augmentation(max_shift=2))[1] == 2
    for other in (Augmentation(max_shift=1), Augmentation(max_shift=2, random_flip=True)):
        assert encode(rows(), vqgan, processor, variants=3, augmentation=other)[1] == 2
    assert encode(rows(), vqgan, processor, variants=3, augmentation=Augmentation(max_shift=2))[1] == 0
    # And none is a matter of chance.
    torch.manual_seed(7)
    for file in (Path(codes.cache_files[0]["filename"]).parent).glob("*.arrow"):
        file.unlink()
    again, _ = encode(rows(), vqgan, processor, variants=3, augmentation=Augmentation(max_shift=2))
    assert again["image_tokens"][:] == variants.tolist()


def test_encoding_that_was_stopped_is_not_taken(
    rows: Callable, vqgan: PaiPainterVQModel, processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_batch = codes_module._encode

    def stop_at_the_second(batch: dict, indices: list[int], **options: object) -> dict:
        if indices[0]:
            raise KeyboardInterrupt
        return encode_batch(batch, indices, **options)

    with monkeypatch.context() as patch:
        patch.setattr(codes_module, "_encode", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            load_codes(rows(), vqgan, processor, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "pai_painter_codes").rglob("*.arrow"))
    assert len(load_codes(rows(), vqgan, processor, cache_dir=tmp_path / "cache")) == 40


def test_parts(
    rows: Callable,
    vqgan: PaiPainterVQModel,
    processor,
    encode: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The same codes; what is done is kept when the rest isn't, and processes share the work."""
    options = {"variants": 2, "augmentation": Augmentation(random_flip=True)}
    whole, _ = encode(rows(), vqgan, processor, **options)
    monkeypatch.setattr(codes_module, "_PART", 32)
    arguments = (rows(), vqgan, processor, *options.values())
    for rank in (0, 1):
        CodesOnDisk(*arguments, tmp_path / "shared").encode_share(rank, processes=2)
        parts = sorted((tmp_path / "shared" / "pai_painter_codes").rglob("*.arrow"))
        assert [part.stem for part in parts] == ["000000000", "000000032"][: rank + 1]
    encode_batch = codes_module._encode

    def not_again(*_: object, **__: object) -> dict:
        raise AssertionError("All parts are there.")

    with monkeypatch.context() as patch:
        patch.setattr(codes_module, "_encode", not_again)
        shared = load_codes(*arguments, cache_dir=tmp_path / "shared")
    assert shared.to_list() == whole.to_list()
    parts[0].unlink()
    encoded = []
    monkeypatch.setattr(
        codes_module, "_encode", lambda *args, **rest: encoded.append(rest["start"]) or encode_batch(*args, **rest)
    )
    assert load_codes(*arguments, cache_dir=tmp_path / "shared").to_list() == whole.to_list()
    assert encoded == [0]


@pytest.mark.parametrize("changes", [{"random_crop": True}, {"random_flip": True}, {"max_shift": 2}])
def test_every_change_changes(changes: dict, rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Callable):
    codes, _ = encode(rows(), vqgan, processor, variants=2, augmentation=Augmentation(**changes))
    variants = torch.tensor(codes["image_tokens"][:])
    assert (variants[:, 1] != variants[:, 0]).any(1).float().mean() > 0.3
