# SPDX-License-Identifier: Apache-2.0
"""Pictures as data sets hold them, read with distrust: base64 to bytes, bytes to RGB."""

import base64
import binascii
import io
import re
import string
import warnings

from PIL import Image, UnidentifiedImageError

from ..model.image_processing_pai_painter import to_rgb
from .without_metadata import without_metadata

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64 * 1024 * 1024  # below Pillow's own limit (89 million), so that ours is the one that speaks
MAX_PICTURE_BYTES = 128 * 1024 * 1024

_MOST_SCANS = 200  # of a JPEG; each of them is a walk over all pixels
_MOST_EXTENSIONS = 1024 * 1024  # bytes in front of a GIF's first frame, which Pillow reads in quadratic time

_DATA_URL = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_LINE_BREAK = re.compile(r"[ \t]*[\r\n]+[ \t]*")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()


class BadPicture(ValueError):
    """A picture that can't be read. Its text is one sentence that says why."""


def decode_base64_picture(text: str) -> bytes:
    """
    Decodes base64 in any spelling: the standard alphabet (`+/`) or the URL-safe one (`-_`), with or without padding,
    with line breaks, with `data:image/png;base64,` in front. What was encoded is not checked to be a picture.

    The spelling is normalised first and then decoded strictly: Python's lenient decoders skip characters that they
    don't know, which turns the wrong alphabet into wrong bytes without an error.

    Raises:
        BadPicture: If the text is empty, holds other characters, or was cut off.
    """
    text = text.strip()
    if "\n" in text or "\r" in text:  # rarely, and a pattern is slow on a megabyte
        text = _LINE_BREAK.sub("", text)
    prefix = _DATA_URL.match(text)
    if prefix is not None:
        if not prefix[1].lower().endswith(";base64"):
            raise BadPicture(f"The picture's data URL is not in base64: it begins with {prefix[0][:40]!r}.")
        text = text[prefix.end() :].strip()
    body = text.rstrip("=").replace("-", "+").replace("_", "/")
    if not body:
        raise BadPicture("The picture is empty.")
    has_strangers = body.encode("utf-8", "replace").translate(None, _ALPHABET)  # far faster than the pattern
    stranger = _NOT_BASE64.search(body) if has_strangers else None
    if stranger is not None:
        place = f"character {stranger.start() + 1} of {len(body)}"
        raise BadPicture(f"The picture is not base64: it holds {stranger[0]!r} at {place}.")
    padding = "=" * (-len(body) % 4)
    if len(padding) == 3:
        raise BadPicture(f"The picture's base64 was cut off: no bytes have {len(body)} characters.")
    given = len(text) - len(body)
    if given not in (0, len(padding)):
        raise BadPicture(
            f"The picture's base64 ends in {given} '=', but its {len(body)} characters need {len(padding)}."
        )
    try:
        return base64.b64decode(body + padding, validate=True)
    except binascii.Error as error:
        raise BadPicture(f"The picture is not base64: {error}.") from error


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """
    Reads a picture file of a stranger.

    Only the formats of [`PICTURE_FORMATS`] are tried (Pillow would also start Ghostscript for EPS). Of an animation,
    the first frame is taken. Broken metadata is no error. See [`~image_processing_pai_painter.to_rgb`] for rotation,
    colour profiles, transparency, 16 bits and CMYK.

    Returns:
        `PIL.Image.Image`: The upright, opaque picture in sRGB.

    Raises:
        BadPicture: If the file has another format, is damaged or cut off, is too large, or is of a kind that Pillow
            can't read.
    """
    if not data:
        raise BadPicture("The picture is empty.")
    if len(data) > MAX_PICTURE_BYTES:
        raise BadPicture(f"The picture's file has {len(data)} bytes, more than the {MAX_PICTURE_BYTES} allowed.")
    _refuse_endless(data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken metadata, which is not needed
        # Between one and two times its own limit, Pillow only warns: a warning nobody reads.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _load(data, max_pixels) as image:
            try:
                return to_rgb(image)
            except ValueError as error:  # its own, about pixels without a declared range
                raise BadPicture(str(error)) from error


def picture_format(data: bytes) -> str | None:
    """By its first bytes, one of [`PICTURE_FORMATS`] or `None`. A JPEG with more pictures in it (MPO) is a JPEG."""
    Image.init()
    accepts = {name: Image.OPEN[name][1] for name in PICTURE_FORMATS}
    return next((name for name, accept in accepts.items() if accept is not None and accept(data[:16])), None)


def _refuse_endless(data: bytes) -> None:
    """Small files over which Pillow would work for minutes."""
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


def _load(data: bytes, max_pixels: int) -> Image.Image:
    """The picture as it is in the file; if Pillow can't read it, without its metadata, which may be the trouble."""
    try:
        return _unpack(data, max_pixels)
    except _Unreadable:
        bare, info = without_metadata(data)
        image = _unpack(bare, max_pixels)
        image.info.update(info)
        return image


class _Unreadable(BadPicture):
    """A picture over which Pillow stumbles."""


def _unpack(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
        if image.width * image.height > max_pixels:
            raise BadPicture(
                f"The picture has {image.width}x{image.height} pixels, more than the {max_pixels} allowed."
            )
        image.load()
    except BadPicture:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadPicture(f"The picture has more pixels than Pillow allows: {error}") from error
    except MemoryError as error:
        raise BadPicture("The picture does not fit into memory.") from error
    except Exception as error:  # Pillow's readers raise nearly anything over damage
        raise _Unreadable(_why_not(data, error)) from error
    return image


def _why_not(data: bytes, trouble: Exception) -> str:
    """The reason in a sentence. Whether it is damage or a limit of Pillow's, only Pillow's own words can tell."""
    name = picture_format(data)
    if name is None:
        return f"The picture is none of {', '.join(PICTURE_FORMATS)}."
    if isinstance(trouble, UnidentifiedImageError):  # which keeps the reason to itself
        try:
            Image.OPEN[name][0](io.BytesIO(data), "")
        except (SyntaxError, OSError, ValueError) as error:
            trouble = error
    reason = str(trouble).rstrip(".") or type(trouble).__name__
    if "truncated" in reason.lower():
        return f"The picture ({name}) was cut off: {reason}."
    return f"Pillow can't read the picture ({name}): {reason}."
