# SPDX-License-Identifier: Apache-2.0
"""Of a picture's metadata, the orientation alone matters, and what is broken in it is no damage to the picture."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pai_painter import PaiPainterImageProcessor
from pai_painter.data import BadPicture, open_picture
from pai_painter.data.open_picture import picture_format
from pai_painter.model.image_processing_pai_painter import to_rgb

ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", 6, 0))  # tag, SHORT, one value
X_RESOLUTION = 0x011A


def exif_of(*entries: tuple[int, int, int, bytes], values: bytes = b"") -> bytes:
    """A directory of tags with their type, count and value or offset (14 + 12 per entry: behind the directory)."""
    directory = b"".join(struct.pack("<HHL4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4) + values


BROKEN_EXIF = {
    "text for a resolution": exif_of(ORIENTATION, (X_RESOLUTION, 2, 4, b"abc\0")),
    "no text for a resolution": exif_of(ORIENTATION, (X_RESOLUTION, 2, 1, bytes(4)), (0x0128, 3, 1, b"\2\0\0\0")),
    "nothing per nothing": exif_of(ORIENTATION, (X_RESOLUTION, 5, 1, struct.pack("<L", 38)), values=bytes(8)),
    "a value outside": exif_of((0x010F, 2, 100, struct.pack("<L", 9000)), ORIENTATION),
    "a huge value": exif_of((0x010F, 2, 2**31, bytes(4)), ORIENTATION),
    "an unknown type": exif_of((0x010F, 99, 1, bytes(4)), ORIENTATION),
    "cut off": exif_of(ORIENTATION, (X_RESOLUTION, 2, 4, b"abc\0"))[:-12],
    "an orientation of 32 bits": exif_of((0x0112, 4, 1, struct.pack("<L", 6))),
}
NO_ORIENTATION = {
    "none": exif_of((X_RESOLUTION, 2, 4, b"abc\0")),
    "out of range": exif_of((0x0112, 3, 1, b"\x09\0\0\0")),
    "text": exif_of((0x0112, 2, 2, b"6\0\0\0")),
    "cut off before it": exif_of(ORIENTATION)[:20],
    "junk": b"Exif\0\0junk",
    "empty": b"Exif\0\0",
}


def corners(image: Image.Image) -> list[str]:
    """The colours in reading order; `half` has blue on the left and, in orientation 6, on top."""
    points = [(x, y) for y in (2, image.height - 3) for x in (2, image.width - 3)]
    return ["blue" if image.getpixel(point)[2] > 128 else "red" for point in points]


def half() -> Image.Image:
    image = Image.new("RGB", (64, 48), "red")
    image.paste("blue", (0, 0, 32, 48))
    return image


def file_of(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_exif(exif: bytes, kind: str) -> bytes:
    if kind in ("tEXt", "zTXt"):  # as ImageMagick writes it
        text = PngImagePlugin.PngInfo()
        text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=kind == "zTXt")
        return file_of(half(), "PNG", pnginfo=text)
    return file_of(half(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "tEXt", "zTXt", "WEBP"])
@pytest.mark.parametrize("trouble", BROKEN_EXIF)
def test_broken_exif_does_not_hinder_the_orientation(trouble: str, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = open_picture(with_exif(BROKEN_EXIF[trouble], kind))
    assert picture.size == (48, 64)
    assert corners(picture) == ["blue", "blue", "red", "red"]
    assert np.array_equal(np.array(to_rgb(picture)), np.array(picture))  # once and for all


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "zTXt", "WEBP"])
@pytest.mark.parametrize("trouble", NO_ORIENTATION)
def test_an_orientation_that_cannot_be_read_is_upright(trouble: str, kind: str) -> None:
    picture = open_picture(with_exif(NO_ORIENTATION[trouble], kind))
    assert picture.size == (64, 48)
    assert corners(picture) == ["blue", "red", "blue", "red"]


@pytest.mark.parametrize("digits", ["", "4", "45786", "zz", "4578zz"])
def test_raw_exif_that_is_no_hexadecimal(digits: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n      12\n{digits}")
    assert open_picture(file_of(half(), "PNG", pnginfo=text)).size == (64, 48)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(orientation: int, file_format: str) -> None:
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (2, 3, 3), dtype=np.uint8))
    upright = small.resize((48, 32), Image.Resampling.NEAREST)
    T = Image.Transpose
    stored = [None, T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE]
    how = [*stored, T.ROTATE_270][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(file_format, {})
    data = file_of(upright if how is None else upright.transpose(how), file_format, exif=exif, **options)
    for picture in (open_picture(data), to_rgb(Image.open(io.BytesIO(data)))):
        assert np.abs(np.array(picture, dtype=int) - np.array(upright)).max() <= (8 if file_format == "JPEG" else 0)


def test_the_processor_reads_broken_exif_likewise() -> None:
    processor = PaiPainterImageProcessor(size=16)
    turned = Image.open(io.BytesIO(with_exif(BROKEN_EXIF["text for a resolution"], "PNG")))
    upright = half().transpose(Image.Transpose.ROTATE_270)
    values = [processor(image, return_tensors="np")["pixel_values"] for image in (turned, upright)]
    assert np.array_equal(*values)


LONG = zlib.compress(bytes(3 << 20))
PNG_CHUNKS = {
    "long compressed text": png_chunk(b"zTXt", b"k\0\0" + LONG),
    "long international text": png_chunk(b"iTXt", b"k\0\1\0\0\0" + LONG),
    "much text": b"".join(png_chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(1 << 20))) for n in range(70)),
    "unknown compression": png_chunk(b"zTXt", b"k\0\7abc"),
    "wrong checksum": png_chunk(b"tEXt", b"k\0abc")[:-1] + b"?",
    "short sRGB": png_chunk(b"sRGB", b""),
    "short pHYs": png_chunk(b"pHYs", b"\0"),
    "short gAMA": png_chunk(b"gAMA", b""),
    "long profile": png_chunk(b"iCCP", b"p\0\0" + LONG),
    "no profile": png_chunk(b"iCCP", b"p"),
    "unknown compression of a profile": png_chunk(b"iCCP", b"p\0\7abc"),
}


@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("trouble", PNG_CHUNKS)
def test_broken_chunks_of_a_png(trouble: str, place: int) -> None:
    data = with_exif(BROKEN_EXIF["an unknown type"], "PNG")
    data = data[:place] + PNG_CHUNKS[trouble] + data[place:]
    assert picture_format(data) == "PNG"
    picture = open_picture(data)
    assert corners(picture) == ["blue", "blue", "red", "red"]


@pytest.mark.parametrize(
    "broken",
    [
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3"),
        segment(0xED, b"Photoshop 3.0\x008BIM\3\xed"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
        segment(0xE2, b"MPF\0nothing"),
        segment(0xEE, b"Adobe"),
        segment(0xE0, b"JFIF\0"),
        segment(0xFE, b""),
    ],
)
def test_broken_segments_of_a_jpeg(broken: bytes) -> None:
    data = with_exif(BROKEN_EXIF["a value outside"], "JPEG")
    picture = open_picture(data[:2] + broken + data[2:])
    assert corners(picture) == ["blue", "blue", "red", "red"]


def with_tags(tiff: bytes, *added: tuple[int, int, int, bytes]) -> bytes:
    """A little-endian TIFF with further tags in a new directory at its end (Pillow crashes when it writes odd ones)."""
    (directory,) = struct.unpack_from("<L", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, directory)
    entries = {struct.unpack("<H", entry[:2])[0]: entry for entry in batched(tiff[directory + 2 :][: 12 * count], 12)}
    entries |= {entry[0]: struct.pack("<HHL4s", *entry) for entry in added}
    tiff += bytes(len(tiff) % 2)
    new = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return tiff[:4] + struct.pack("<L", len(tiff)) + tiff[8:] + new


def batched(data: bytes, length: int) -> list[bytes]:
    return [data[start : start + length] for start in range(0, len(data), length)]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("tag", [270, 282, 330, 700, 33723, 34377, 34665, 34853, 40965])
def test_odd_tags_of_a_tiff(tag: int, compression: str | None) -> None:
    plain = file_of(half(), "TIFF", compression=compression)
    centimetres = (296, 3, 1, struct.pack("<HH", 3, 0))
    for odd in ((tag, 2, 4, b"abc\0"), (tag, 4, 1, b"\xff" * 4), (tag, 7, 9000, b"\xff" * 4), (tag, 5, 1, bytes(4))):
        picture = open_picture(with_tags(plain, ORIENTATION, centimetres, odd))
        assert corners(picture) == ["blue", "blue", "red", "red"]


def test_broken_metadata_hides_no_damage() -> None:
    """However much of the file is missing: the whole picture or an error."""
    for data in (
        with_exif(BROKEN_EXIF["no text for a resolution"], "JPEG"),
        with_exif(BROKEN_EXIF["a value outside"], "PNG")[:33]
        + PNG_CHUNKS["long profile"]
        + file_of(half(), "PNG")[33:],
    ):
        whole = np.array(open_picture(data))
        for length in range(0, len(data) - 20, 7):
            with pytest.raises(BadPicture):
                assert not np.array_equal(np.array(open_picture(data[:length])), whole)


def test_a_limit_is_told_as_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = file_of(half(), "JPEG")
    precision = jpeg.index(b"\xff\xc0") + 4
    with pytest.raises(BadPicture, match=r"The picture \(JPEG\) can't be read: cannot handle 12-bit layers\.$"):
        open_picture(jpeg[:precision] + b"\x0c" + jpeg[precision + 1 :])
    with pytest.raises(BadPicture, match=r"The picture \(JPEG\) can't be read: image file is truncated"):
        open_picture(jpeg[:-20])
    with pytest.raises(BadPicture, match=r"can't be read: A picture of mode 'F' has floating-point pixels"):
        open_picture(file_of(Image.new("F", (2, 2), 0.5), "TIFF"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadPicture, match=r"64x48 pixels, more than the 1000 allowed"):
        open_picture(jpeg)


def test_a_jpeg_of_several_pictures_is_a_jpeg() -> None:
    data = file_of(half(), "MPO", save_all=True, append_images=[half()])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert picture_format(data) == "JPEG"
    assert corners(open_picture(data)) == ["blue", "red", "blue", "red"]
    assert [picture_format(file_of(half(), name)) for name in ("PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM")] == [
        *("PNG", "TIFF", "GIF", "BMP", "WEBP"),
        None,
    ]
