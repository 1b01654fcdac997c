# SPDX-License-Identifier: Apache-2.0
"""Pictures of strangers: base64 in every spelling, files of every kind."""

import base64
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pai_painter.data import BadPicture, decode_base64_picture, open_picture
from pai_painter.model.image_processing_pai_painter import to_rgb

FORMATS = {"PNG": {}, "JPEG": {}, "WEBP": {"lossless": True}, "GIF": {}, "BMP": {}, "TIFF": {}}
# Bytes whose base64 holds all of the alphabet's last two letters, in each of the three lengths of padding.
BLOBS = [b"\xfb\xff\xbf" * 20, b"\xfb\xff\xbf" * 20 + b"\xff", b"\xfb\xff\xbf" * 20 + b"\xff\xfe"]


def photo(width: int = 40, height: int = 30) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def file_of(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A few hundred bytes that say they are a picture of side x side."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("blob", BLOBS, ids=["no pad", "two pads", "one pad"])
@pytest.mark.parametrize("encode", [base64.standard_b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    "dress",
    [
        lambda text: text,
        lambda text: f"  {text}\n",
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"DATA:image/svg+xml;charset=utf-8;BASE64,\n{text}",
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        lambda text: "\r".join(text[i : i + 10] for i in range(0, len(text), 10)),
        lambda text: "\r\n  ".join(text[i : i + 7] for i in range(0, len(text), 7)),
    ],
)
def test_every_spelling_of_base64(blob, encode, padded, dress) -> None:
    text = encode(blob).decode()
    assert {"+", "/"} <= set(text) or {"-", "_"} <= set(text)
    assert decode_base64_picture(dress(text if padded else text.rstrip("="))) == blob


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\r\n ", "empty"),
        ("==", "empty"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png,%89PNG", "begins with 'data:image/png,%89PN', is not base64"),
        ("AAAAA", "is not base64: .* cannot be 1 more than a multiple of 4"),
        ("AAAA AAAA", "is not base64: Only base64 data is allowed"),  # a + lost on the way through a form
        ("AAA%2BAAA", "is not base64"),
        ("b'AAAA'", "is not base64"),
        ("AA=AA", "is not base64"),
        ("AAAA\x00", "is not base64"),
        ("ＡＡＡＡ", "is not base64"),
    ],
)
def test_what_is_not_base64(text: str, message: str) -> None:
    with pytest.raises(BadPicture, match=message):
        decode_base64_picture(text)


def test_bad_pictures_are_value_errors() -> None:
    assert issubclass(BadPicture, ValueError)


@pytest.mark.parametrize("file_format", FORMATS)
def test_formats(file_format: str) -> None:
    data = file_of(photo(), file_format, **FORMATS[file_format])
    picture = open_picture(data)
    assert picture.mode == "RGB"
    assert picture.size == (40, 30)
    assert np.array_equal(np.array(picture), np.array(to_rgb(Image.open(io.BytesIO(data)))))
    if file_format not in ("JPEG", "GIF"):
        assert np.array_equal(np.array(picture), np.array(photo()))


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "EPS", "TGA", "PDF"])
def test_other_formats_are_refused(file_format: str) -> None:
    with pytest.raises(BadPicture, match="none of PNG, JPEG"):
        open_picture(file_of(photo(32, 32), file_format))


@pytest.mark.parametrize("data", [b"", b"no picture", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", bytes(100)])
def test_no_pictures(data: bytes) -> None:
    with pytest.raises(BadPicture):
        open_picture(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_that_was_cut_off_is_refused(file_format: str) -> None:
    """At whatever byte: nothing comes back but the whole picture or an error."""
    data = file_of(photo(), file_format, **FORMATS[file_format])
    whole = np.array(open_picture(data))
    refused = 0
    for length in range(0, len(data), max(1, len(data) // 100)):
        try:
            picture = open_picture(data[:length])
        except BadPicture:
            refused += 1
        else:  # only closing marks are missing
            assert np.array_equal(np.array(picture), whole), length
    assert refused > 90


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_bytes_never_raise_anything_else(file_format: str) -> None:
    data = file_of(photo(), file_format, **FORMATS[file_format])
    generator = np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 400), 3):
            damaged[place] = generator.integers(0, 256)
        try:
            assert open_picture(bytes(damaged)).mode == "RGB"
        except BadPicture:
            continue


@pytest.mark.parametrize("side", [8193, 9_600, 14_000, 60_000])  # ours, then Pillow's warning and error
def test_too_many_pixels_are_refused_before_unpacking(side: int) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(BadPicture, match="pixels"):
            open_picture(png_bomb(side))
    assert not warned


def test_max_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(photo(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert open_picture(data).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    with pytest.raises(BadPicture, match="40x30 pixels, more than the 1199 allowed"):
        open_picture(data)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_animations(file_format: str) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = file_of(red, file_format, save_all=True, append_images=[blue, blue], **options)
    assert open_picture(data).getpixel((4, 4)) == (255, 0, 0)


def test_rotation_transparency_and_depth() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(file_of(photo(), "JPEG", exif=exif)).size == (30, 40)
    assert open_picture(file_of(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "PNG")).getpixel((0, 0)) == (255,) * 3
    deep = Image.fromarray(np.array([[257 * 77]], dtype=np.uint16))
    assert open_picture(file_of(deep, "PNG")).getpixel((0, 0)) == (77, 77, 77)
    red = open_picture(file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")).getpixel((0, 0))
    assert red == (255, 0, 0)
    with pytest.raises(BadPicture, match="floating-point"):
        open_picture(file_of(Image.new("F", (2, 2), 0.5), "TIFF"))
