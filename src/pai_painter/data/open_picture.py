# SPDX-License-Identifier: Apache-2.0
"""Pictures as data sets hold them, read with distrust: base64 to bytes, bytes to RGB."""

import base64
import io
import re
import struct
import warnings
import zlib
from contextlib import suppress
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngStream

from ..model.image_processing_pai_painter import to_rgb

__all__ = ["MAX_PICTURE_BYTES", "BadPicture", "decode_base64_picture", "open_picture", "picture_format"]

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS, MAX_PICTURE_BYTES, _MAX_PROFILE = 1 << 26, 1 << 27, 1 << 24

_MOST_SCANS, _MOST_EXTENSIONS = 200, 1 << 20  # of a JPEG; bytes in front of a GIF's first frame
# What Pillow makes of PNG's chunks that tell the orientation.
_PNG_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}
# All that baseline and extended TIFF and its JPEG need to unpack pixels, the orientation and the colour profile.
_TIFF_PIXELS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 334, 338, 339, 347, 529, 530, 531, 532, 34675),
}
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_LINE_BREAK = re.compile(r"[ \t]*[\r\n]+[ \t]*")


class BadPicture(ValueError):
    """A picture that can't be read. Its text is one sentence that says why."""


def decode_base64_picture(text: str) -> bytes:
    """
    Decodes base64 in any spelling: the standard alphabet (`+/`) or the URL-safe one (`-_`), with or without padding,
    with line breaks, with `data:image/png;base64,` in front. All else is a `BadPicture`: Python's lenient decoders skip
    characters that they don't know, which turns the wrong alphabet into wrong bytes without an error.
    """
    text = text.strip()
    if "\n" in text or "\r" in text:  # rarely, and a pattern is slow on a megabyte
        text = _LINE_BREAK.sub("", text)
    prefix = _DATA_URL.match(text)
    body = text[prefix.end() if prefix else 0 :].strip().rstrip("=").replace("-", "+").replace("_", "/")
    if not body:
        raise BadPicture("The picture is empty.")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError as error:
        raise BadPicture(f"The picture, which begins with {text[:20]!r}, is not base64: {error}.") from error


def open_picture(data: bytes) -> Image.Image:
    """
    Reads a picture file of a stranger: the upright, opaque picture in sRGB, see
    [`~image_processing_pai_painter.to_rgb`]. Of an animation, the first frame is taken. Broken metadata is no error.

    Raises:
        BadPicture: If the file is none of [`PICTURE_FORMATS`] (for EPS, Pillow would start Ghostscript), is damaged, is
            too large (also for `Image.MAX_IMAGE_PIXELS`), or is of a kind that Pillow can't read.
    """
    name = picture_format(data)
    if name is None:
        raise BadPicture(f"The picture is none of {', '.join(PICTURE_FORMATS)}." if data else "The picture is empty.")
    if len(data) > MAX_PICTURE_BYTES:
        raise BadPicture(f"The picture's file has {len(data)} bytes, more than the {MAX_PICTURE_BYTES} allowed.")
    _refuse_endless(data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken metadata, which is not needed
        with suppress(Exception):  # Pillow's readers raise nearly anything over damage, be it of metadata
            return to_rgb(_unpack(name, data, {}))
        try:
            return to_rgb(_unpack(name, *_without_metadata(data)))
        except BadPicture:
            raise
        except Exception as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise BadPicture(f"The picture ({name}) can't be read: {reason}.") from error


def picture_format(data: bytes) -> str | None:
    """By its first bytes, one of [`PICTURE_FORMATS`] or `None`. A JPEG with more pictures in it (MPO) is a JPEG."""
    Image.init()
    accepts = {name: Image.OPEN[name][1] for name in PICTURE_FORMATS}
    return next((name for name, accept in accepts.items() if accept is not None and accept(data[:16])), None)


def _refuse_endless(data: bytes) -> None:
    """Small files over which Pillow would work for minutes: a scan is a walk over all pixels, and comments add up."""
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise BadPicture(f"The picture (JPEG) has more than {_MOST_SCANS} scans.")
    if data.startswith(b"GIF8") and len(data) > _MOST_EXTENSIONS:
        place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)  # behind the header and the global colours
        while place <= _MOST_EXTENSIONS and data[place] != ord(","):
            place += 2 if data[place] == ord("!") else 1
            while place <= _MOST_EXTENSIONS and data[place]:
                place += data[place] + 1
        if place > _MOST_EXTENSIONS:
            raise BadPicture(f"The picture (GIF) has more than {_MOST_EXTENSIONS} bytes before its first frame.")


def _unpack(name: str, data: bytes, info: dict[str, Any]) -> Image.Image:
    # `Image.open` does the same, but keeps the reader's reason to itself.
    image = Image.OPEN[name][0](io.BytesIO(data), "")
    most = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if image.width * image.height > most:
        raise BadPicture(f"The picture has {image.width}x{image.height} pixels, more than the {most} allowed.")
    image.load()
    image.info.update(info)
    return image


def _without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """
    A PNG, JPEG or TIFF file with only what decides about the pixels and how they are shown, and what belongs into
    `Image.info` besides: Pillow gives no picture if a resolution is text, a comment is too long or a checksum is wrong.
    """
    if data.startswith(b"\x89PNG"):
        return _bare_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _bare_jpeg(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        with suppress(struct.error):  # cut off
            return _bare_tiff(data), {}
    return data, {}


def _bare_png(data: bytes) -> tuple[bytes, dict[str, Any]]:
    kept, info, place = [data[:8]], dict[str, Any](), 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunk, kind = data[place:end], data[place + 4 : place + 8]
        if kind == b"iCCP":  # Pillow allows one megabyte
            _, _, packed = chunk[8:-4].partition(b"\0")
            try:
                info["icc_profile"] = zlib.decompressobj().decompress(packed[1:], _MAX_PROFILE)
            except zlib.error:
                info["icc_profile"] = None
        elif kind[:1].isupper() or kind == b"tRNS" or _tells_orientation(chunk):
            kept.append(chunk)
        place = end
    return b"".join(kept), info


def _tells_orientation(chunk: bytes) -> bool:
    """Whether Pillow can read this chunk and finds something in it that tells the orientation."""
    stream = PngStream(io.BytesIO(chunk))
    with suppress(Exception):  # nearly anything, and also for a kind of chunk that Pillow doesn't know
        kind, place, length = stream.read()
        stream.crc(kind, stream.call(kind, place, length))
        return not _PNG_ORIENTATION.isdisjoint(stream.im_info)
    return False


def _bare_jpeg(data: bytes) -> tuple[bytes, dict[str, Any]]:
    kept, exif, profile, place = [data[:2]], b"", {}, 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:  # up to the scan
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        marker, body = data[place + 1], data[place + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif += body if not exif else body[6:]
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profile[body[12:13]] = body[14:]
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or (marker in (0xE0, 0xEE) and len(body) >= 12):
            kept.append(data[place:end])  # of the applications' segments, JFIF's and Adobe's tell the colour space
        place = end
    info = {"exif": exif, "icc_profile": b"".join(profile[number] for number in sorted(profile))}
    return b"".join(kept) + data[place:], {name: value for name, value in info.items() if value}


def _bare_tiff(data: bytes) -> bytes:
    """With a shorter directory in the first one's place, and none for further pictures."""
    order = "<" if data.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}L", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    entries = [data[place : place + 12] for place in range(directory + 2, directory + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_PIXELS]
    shorter = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    # Nothing moves, and a file that was cut off doesn't grow.
    return data[:directory] + shorter + data[directory + len(shorter) :]
