# SPDX-License-Identifier: Apache-2.0
"""Colour profiles become sRGB, everywhere in the same way."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from colour_profiles import cmyk_profile, grey_profile, rgb_profile
from PIL import Image, ImageCms

from pai_painter import PaiPainterImageProcessor
from pai_painter.data import open_picture
from pai_painter.model.image_processing_pai_painter import to_rgb

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILES = {"RGB": rgb_profile(), "L": grey_profile(), "CMYK": cmyk_profile()}
FORMATS = [
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "I;16", "1")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("TIFF", mode) for mode in ("RGB", "RGBA", "L", "CMYK", "I;16")),
]


def photo(mode: str) -> Image.Image:
    generator = np.random.default_rng(0)
    channels = len(Image.new("RGB" if mode in ("P", "1") else mode, (1, 1)).getbands())
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 256, (24, 32), dtype=np.uint16) * 257)
    array = generator.integers(0, 256, (24, 32, channels), dtype=np.uint8)
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(array[..., band]) for band in (0, 1)])
    if mode in ("P", "1"):
        return Image.fromarray(array, "RGB").convert(mode)
    return Image.frombytes(mode, (32, 24), array.tobytes())


def file_of(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"lossless": True} if file_format == "WEBP" else {}), **options)
    return buffer.getvalue()


def profile_for(mode: str) -> bytes:
    return PROFILES["L" if mode in ("L", "LA", "I;16", "1") else "CMYK" if mode == "CMYK" else "RGB"]


def as_image_cms_computes(data: bytes) -> np.ndarray:
    """Of a file whose profile fits it."""
    image = Image.open(io.BytesIO(data))
    profile = io.BytesIO(image.info["icc_profile"])
    alpha = image.getchannel("A") if "A" in image.getbands() else Image.new("L", image.size, 255)
    if image.mode == "I;16":
        colours = Image.fromarray((np.array(image) // 257).astype(np.uint8))
    else:
        colours = image.convert(
            "L" if image.mode in ("LA", "1") else "RGB" if image.mode in ("RGBA", "P") else image.mode
        )
    colours = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    part = np.array(alpha)[..., None] / 255
    return np.array(colours) * part + 255 * (1 - part)


@pytest.mark.parametrize(("file_format", "mode"), FORMATS)
def test_every_format_and_mode(file_format: str, mode: str) -> None:
    data = file_of(photo(mode), file_format, icc_profile=profile_for(mode))
    picture = open_picture(data)
    assert picture.mode == "RGB"
    assert "icc_profile" not in picture.info
    assert np.abs(np.array(picture) - as_image_cms_computes(data)).max() <= 1
    plain = np.array(open_picture(file_of(photo(mode), file_format)), dtype=int)
    if mode != "1":  # black and white stay
        assert np.abs(plain - np.array(picture)).max() > 20
    # The processor, given the file by Pillow, and what it gets from `open_picture` see the same.
    processor = PaiPainterImageProcessor(size=24)
    values = [
        processor(image, return_tensors="np")["pixel_values"] for image in (Image.open(io.BytesIO(data)), picture)
    ]
    assert np.array_equal(*values)


def test_the_known_value() -> None:
    """Adobe RGB's 106, 180, 71."""
    data = file_of(Image.new("RGB", (8, 8), (106, 180, 71)), "PNG", icc_profile=rgb_profile())
    assert open_picture(data).getpixel((4, 4)) == (36, 181, 58)


@pytest.mark.parametrize(("file_format", "mode"), [case for case in FORMATS if case[1] != "CMYK"])
def test_srgb_changes_no_byte(file_format: str, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = open_picture(file_of(photo(mode), file_format))
    tagged = open_picture(file_of(photo(mode), file_format, icc_profile=SRGB))
    assert tagged.tobytes() == plain.tobytes()
    assert not caplog.records


def test_a_grey_picture_may_have_an_rgb_profile() -> None:
    grey = open_picture(file_of(photo("L"), "PNG", icc_profile=rgb_profile(gamma=1.0)))
    colour = open_picture(file_of(photo("L").convert("RGB"), "PNG", icc_profile=rgb_profile(gamma=1.0)))
    assert grey.tobytes() == colour.tobytes() != photo("L").convert("RGB").tobytes()


def test_transparency_by_a_key_colour_and_turned() -> None:
    image = photo("RGB")
    image.paste((1, 2, 3), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"transparency": (1, 2, 3), "exif": exif}
    picture = open_picture(file_of(image, "PNG", icc_profile=rgb_profile(), **options))
    assert picture.getpixel((picture.width - 4, 4)) == (255, 255, 255)
    without = open_picture(file_of(image, "PNG", icc_profile=rgb_profile())).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.array(picture)[8:], np.array(without)[8:])


@pytest.mark.parametrize(
    ("profile", "mode", "why"),
    [
        (b"no profile", "RGB", "cannot open profile"),
        (rgb_profile()[:300], "RGB", "cannot"),
        (SRGB[:128] + bytes(len(SRGB) - 128), "RGB", "cannot build transform"),
        (cmyk_profile(), "RGB", "it is for CMYK, the picture is RGB"),
        (rgb_profile(), "CMYK", "it is for RGB, the picture is CMYK"),
        (grey_profile(), "RGB", "it is for L, the picture is RGB"),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), "RGB", "it is for Lab"),
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored_and_said_once(
    profile: bytes, mode: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]  # transformers'
    plain = open_picture(file_of(photo(mode), "JPEG"))
    for _ in range(2):
        assert open_picture(file_of(photo(mode), "JPEG", icc_profile=profile)).tobytes() == plain.tobytes()
    (record,) = caplog.records
    assert why in record.getMessage()


def test_a_profile_longer_than_pillow_reads_is_applied() -> None:
    long = rgb_profile() + np.random.default_rng(0).bytes(1_200_000)
    picture = file_of(photo("RGB"), "PNG", icc_profile=long)
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(picture))
    expected = open_picture(file_of(photo("RGB"), "PNG", icc_profile=rgb_profile()))
    assert open_picture(picture).tobytes() == expected.tobytes()


def test_a_damaged_profile_of_a_png_is_said(caplog: pytest.LogCaptureFixture) -> None:
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    profile = b"iCCPp\0\0" + zlib.compress(rgb_profile())[:-20]
    chunk = struct.pack(">L", len(profile) - 4) + profile + struct.pack(">L", zlib.crc32(profile))
    png = file_of(photo("RGB"), "PNG")
    assert open_picture(png[:33] + chunk + png[33:]).tobytes() == photo("RGB").tobytes()
    assert "colour profile" in caplog.text


def test_without_a_profile_nothing_changes() -> None:
    """The bytes are those of Pillow's own conversions, on white."""
    for mode in ("RGB", "L", "P", "CMYK", "1"):
        assert to_rgb(photo(mode)).tobytes() == photo(mode).convert("RGB").tobytes()
    for mode in ("RGBA", "LA"):
        white = Image.new("RGBA", (32, 24), "white")
        expected = Image.alpha_composite(white, photo(mode).convert("RGBA")).convert("RGB")
        assert to_rgb(photo(mode)).tobytes() == expected.tobytes()


def test_the_original_is_left_as_it_is() -> None:
    image = Image.open(io.BytesIO(file_of(photo("RGB"), "PNG", icc_profile=rgb_profile())))
    before = image.tobytes()
    assert to_rgb(to_rgb(image)).tobytes() == to_rgb(image).tobytes() != before
    assert image.tobytes() == before
    assert image.info["icc_profile"] == rgb_profile()
