# SPDX-License-Identifier: Apache-2.0
"""Image tokens on the disk: those of the VQGAN, never stale, never damaged."""

import base64
import io
import logging
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from pai_painter import PaiPainterImageProcessor, PaiPainterVQConfig, PaiPainterVQModel
from pai_painter.data import image_tokens
from pai_painter.data.augment import Augmentation
from pai_painter.data.image_tokens import ImageTokenCache
from pai_painter.data.row_cache import PictureRows, load_rows
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
Encode = Callable[..., tuple[datasets.Dataset, list[int]]]


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
def encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encode:
    """The table, and the first rows of the batches that the VQGAN had to encode for it."""
    encoded: list[int] = []
    encode_batch = ImageTokenCache._encode

    def counted(self: ImageTokenCache, batch: dict, first: int) -> list:
        encoded.append(first)
        return encode_batch(self, batch, first)

    monkeypatch.setattr(ImageTokenCache, "_encode", counted)

    def run(*arguments: object, **options: object) -> tuple[datasets.Dataset, list[int]]:
        before = len(encoded)
        table = ImageTokenCache(*arguments, **{"cache_dir": tmp_path / "cache", **options}).load()
        return table, encoded[before:]

    return run


def test_tokens_are_the_vqgans(rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Encode) -> None:
    table = rows()
    found, batches = encode(table, vqgan.train(), processor)
    assert batches == [0, 32]
    assert found.column_names == ["idx", "captions", "image_tokens"]
    assert found["idx"][:] == table["idx"][:]
    assert found["captions"][:] == table["captions"][:]
    pictures = torch.stack([PictureRows(table, processor)[row] for row in range(40)])
    with torch.no_grad():
        expected = torch.cat([vqgan.eval().encode(part).image_tokens for part in pictures.split(32)])
    tokens = torch.tensor(found["image_tokens"][:])
    assert tokens.shape == (40, 1, 16)
    assert torch.equal(tokens[:, 0], expected)
    assert len(tokens.unique()) > 4


def test_the_second_time_they_are_read(rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Encode, tmp_path):
    first, _ = encode(rows(), vqgan, processor)
    again, batches = encode(rows(), vqgan, processor)
    assert batches == []
    assert first.to_list() == again.to_list()
    # A resumed run compares it, be its cache the old one or built anew.
    anew, _ = encode(rows(), vqgan, processor, cache_dir=tmp_path / "another")
    assert first._fingerprint == again._fingerprint == anew._fingerprint


def test_whatever_decides_about_them_is_part_of_their_name(
    rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Encode
) -> None:
    first, _ = encode(rows(), vqgan, processor)
    assert encode(rows(seed=1), vqgan, processor)[1]
    for options in ({"resample": 0}, {"random_crop": True}):
        second, batches = encode(rows(), vqgan, PaiPainterImageProcessor(size=8, **options))
        assert batches
        assert first["image_tokens"][:] != second["image_tokens"][:]
    other = PaiPainterVQModel(PaiPainterVQConfig(**{**VQGAN, "norm_eps": 1e-3}))
    other.load_state_dict(vqgan.state_dict())
    assert encode(rows(), other, processor)[1]
    for name in ("quantize.embedding.weight", "encoder.conv_in.bias", "decoder.conv_out.bias"):
        with torch.no_grad():
            vqgan.get_parameter(name).view(-1)[-1] += 1e-4
        assert encode(rows(), vqgan, processor)[1]


def test_variants(rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Encode, tmp_path: Path) -> None:
    plain = torch.tensor(encode(rows(), vqgan, processor)[0]["image_tokens"][:])
    found, _ = encode(rows(), vqgan, processor, variants=3, augmentation=Augmentation(max_shift=2))
    variants = torch.tensor(found["image_tokens"][:])
    assert variants.shape == (40, 3, 16)
    assert torch.equal(variants[:, :1], plain)
    assert (variants[:, 1] != variants[:, 0]).any(1).float().mean() > 0.6
    assert (variants[:, 1] != variants[:, 2]).any(1).float().mean() > 0.6
    # Each of these is another table.
    for changes in ({"max_shift": 1}, {"max_shift": 2, "random_flip": True}, {"random_crop": True}):
        other, batches = encode(rows(), vqgan, processor, variants=3, augmentation=Augmentation(**changes))
        assert batches
        tokens = torch.tensor(other["image_tokens"][:])
        assert (tokens[:, 1] != tokens[:, 0]).any(1).float().mean() > 0.3
    assert encode(rows(), vqgan, processor, variants=3, augmentation=Augmentation(max_shift=2))[1] == []
    # And none is a matter of chance.
    torch.manual_seed(7)
    options = {"variants": 3, "augmentation": Augmentation(max_shift=2), "cache_dir": tmp_path / "another"}
    assert encode(rows(), vqgan, processor, **options)[0]["image_tokens"][:] == variants.tolist()


def test_parts(
    rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Encode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same tokens; what is done is kept when the rest isn't, and processes share the work."""
    options = {"variants": 2, "augmentation": Augmentation(random_flip=True)}
    whole, _ = encode(rows(), vqgan, processor, **options)
    monkeypatch.setattr(image_tokens, "_PART", 32)
    arguments = (rows(), vqgan, processor, *options.values())
    for rank in (0, 1):
        ImageTokenCache(*arguments, tmp_path / "shared").encode_share(rank, processes=2)
        parts = sorted((tmp_path / "shared" / "pai_painter_image_tokens").rglob("*.arrow"))
        assert [part.stem for part in parts] == ["000000000", "000000032"][: rank + 1]
    shared, batches = encode(*arguments, cache_dir=tmp_path / "shared")
    assert (shared.to_list(), batches) == (whole.to_list(), [])
    parts[0].unlink()
    again, batches = encode(*arguments, cache_dir=tmp_path / "shared")
    assert (again.to_list(), batches) == (whole.to_list(), [0])


def test_a_changed_byte_is_noticed(
    rows: Callable, vqgan: PaiPainterVQModel, processor, encode: Encode, caplog: pytest.LogCaptureFixture
) -> None:
    table, _ = encode(rows(), vqgan, processor)
    before = table.to_list()
    path = Path(table.cache_files[0]["filename"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again, batches = encode(rows(), vqgan, processor)
    assert (again.to_list(), batches) == (before, [0, 32])
    assert f"The cache {path} is damaged (its checksum is wrong)" in caplog.text


def test_encoding_that_was_stopped_is_not_taken(
    rows: Callable, vqgan: PaiPainterVQModel, processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_batch = ImageTokenCache._encode

    def stop_at_the_second(self: ImageTokenCache, batch: dict, first: int) -> list:
        if first:
            raise KeyboardInterrupt
        return encode_batch(self, batch, first)

    cache = ImageTokenCache(rows(), vqgan, processor, cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(ImageTokenCache, "_encode", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            cache.load()
    folder = tmp_path / "cache" / "pai_painter_image_tokens"
    assert not [path for path in folder.rglob("*") if path.suffix in (".arrow", ".partial")]
    assert len(cache.load()) == 40
