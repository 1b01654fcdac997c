# SPDX-License-Identifier: Apache-2.0
"""Picture files without the metadata that Pillow stumbles over."""

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

from PIL.PngImagePlugin import PngStream

__all__ = ["without_metadata"]

# Chunks beside the critical ones that decide about pixels, and what Pillow makes of those that tell the orientation.
_PNG_PIXELS = (b"tRNS",)
_PNG_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}
_MAX_PROFILE = 16 * 1024 * 1024
# All that baseline and extended TIFF and its JPEG need to unpack pixels, the orientation and the colour profile.
_TIFF_PIXELS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 334, 338, 339, 347, 529, 530, 531, 532, 34675),
}


def without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """
    Leaves only what decides about the pixels and how they are shown in a PNG, JPEG or TIFF file: Pillow gives no
    picture if a resolution is text, a comment is too long or a checksum is wrong.

    Returns:
        `tuple[bytes, dict[str, Any]]`: A file with the same pixels, and what belongs into `Image.info` beside what
            Pillow reads from it: `exif` and `icc_profile`. Files of other formats come back as they are.
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
    kept, info, place = [data[:8]], {}, 8
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunk, kind = data[place:end], data[place + 4 : place + 8]
        if kind[:1].isupper() or kind in _PNG_PIXELS:
            kept.append(chunk)
        elif kind == b"iCCP":
            info["icc_profile"] = _png_profile(chunk)
        elif _tells_orientation(chunk):
            kept.append(chunk)
        place = end
    return b"".join(kept), info


def _png_profile(chunk: bytes) -> bytes | None:
    """The profile in an iCCP chunk, also where it is longer than Pillow allows; `None` if it is damaged."""
    _, _, packed = chunk[8:-4].partition(b"\0")
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(packed[1:], _MAX_PROFILE)
    except zlib.error:
        return None
    return profile if unpacking.eof else None


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
    info: dict[str, Any] = {"exif": exif} if exif else {}
    if profile:
        info["icc_profile"] = b"".join(profile[number] for number in sorted(profile))
    return b"".join(kept) + data[place:], info


def _bare_tiff(data: bytes) -> bytes:
    """With a shorter directory in the first one's place, and none for further pictures."""
    order = "<" if data.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}L", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    places = range(directory + 2, directory + 2 + 12 * count, 12)
    kept = [
        data[place : place + 12] for place in places if struct.unpack_from(f"{order}H", data, place)[0] in _TIFF_PIXELS
    ]
    shorter = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    # Nothing moves, and a file that was cut off doesn't grow.
    return data[:directory] + shorter + data[directory + len(shorter) :]
