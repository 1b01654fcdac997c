# SPDX-License-Identifier: Apache-2.0
"""Pictures as data sets hold them, read with distrust: base64 to bytes, bytes to RGB."""

import base64
import binascii
import io
import re
import string
import warnings

from PIL import Image, UnidentifiedImageError

from ..image_processing_pai_painter import to_rgb

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64 * 1024 * 1024  # below Pillow's own limit (89 million), so that ours is the one that speaks

_DATA_URL = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_LINE_BREAK = re.compile(r"[ \t]*[\r\n]+[ \t]*")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()


class BadPicture(ValueError):
    """A picture that can't be read. Its text is one sentence that says why."""


def decode_base64_picture(text: str) -> bytes:
    """
    Decodes base64 in any of the spellings found in data sets: the standard alphabet (`+/`) or the URL-safe
    one
    (`-_`), with or without padding, with line breaks, with a `data:image/png;base64,` in front.

    The spelling is normalised first and then decoded strictly. Python's lenient decoders skip characters they
    don't know, which turns the wrong alphabet into wrong bytes without an error.

    Args:
        text (`str`): The base64 text.

    Returns:
        `bytes`: What was encoded, not checked to be a picture (see [`open_picture`]).

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

    Only the formats of [`PICTURE_FORMATS`] are tried (Pillow would also start Ghostscript for EPS), a picture
    that was cut off is an error, and so is one that is too large, before it is unpacked. Of an animation, the
    first frame is taken. See [`~image_processing_pai_painter.to_rgb`] for rotation, transparency, 16 bits and
    CMYK.

    Args:
        data (`bytes`): The file's content.
        max_pixels (`int`, *optional*, defaults to 67108864): The largest width x height to unpack.

    Returns:
        `PIL.Image.Image`: The upright, opaque picture in RGB.

    Raises:
        BadPicture: If the file has another format, is damaged or cut off, or has too many pixels.
    """
    if not data:
        raise BadPicture("The picture is empty.")
    try:
        with warnings.catch_warnings():
            # Between one and two times its own limit, Pillow only warns: a warning nobody reads.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadPicture(f"The picture has more pixels than Pillow allows: {error}") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(PICTURE_FORMATS)
        raise BadPicture(f"The picture is none of {formats}, or its header is damaged.") from error
    except Exception as error:  # Pillow's readers raise nearly anything over a damaged header
        raise BadPicture(f"The picture's header is damaged: {error}.") from error
    with image:
        if image.width * image.height > max_pixels:
            raise BadPicture(
                f"The picture has {image.width}x{image.height} pixels, more than the {max_pixels} allowed."
            )
        try:
            return to_rgb(image)
        except Exception as error:  # likewise over damaged pixels or metadata
            raise BadPicture(f"The picture ({image.format}) is damaged or cut off: {error}.") from error
