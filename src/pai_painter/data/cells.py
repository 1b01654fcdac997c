# SPDX-License-Identifier: Apache-2.0
"""What the cells of a row mean: ids, captions and pictures in the ways that data sets write them."""

import re
from types import NoneType
from typing import Any

from .open_picture import BadPicture, decode_base64_picture

_MAX_CAPTION = 65_536  # characters of a cell: far more than any model reads
# Halves of surrogate pairs: what Python makes of bytes that aren't UTF-8, and what JSON can spell but no file can hold.
NOT_UTF8 = re.compile(r"[\ud800-\udfff]")


def id_of(value: Any, default: str) -> str:
    """The id in a cell, or the default if there is none."""
    if not isinstance(value, (str, int, float, NoneType)) or isinstance(value, bool):
        raise ValueError(f"The id is neither text nor a number, but {type(value).__name__}.")
    if value is None or value == "":
        return NOT_UTF8.sub("?", default)
    if isinstance(value, str) and NOT_UTF8.search(value):
        raise ValueError("The id holds bytes that are not UTF-8.")
    return str(value)


def captions_of(value: Any, separator: str | None) -> list[str]:
    """The captions in a cell, stripped: one, or several if it is a list or is split at the `separator`."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if text is not None]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"The caption is not text, but {type(text).__name__}.")
        if NOT_UTF8.search(text):
            raise ValueError("The caption holds bytes that are not UTF-8.")
    if sum(map(len, texts)) > _MAX_CAPTION:
        raise ValueError(f"The caption is longer than {_MAX_CAPTION} characters.")
    parts = [part.strip() for text in texts for part in ([text] if separator is None else text.split(separator))]
    if not any(parts):
        raise ValueError("The caption is empty.")
    return [part for part in parts if part]


def picture_of(value: Any) -> bytes:
    """The picture's file in a cell: bytes, base64, or the datasets library's struct of `bytes` and `path`."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path") is not None:
            raise BadPicture(f"The picture is not in the table: there is only its path {value['path']!r}.")
        value = value.get("bytes")
    if isinstance(value, str):
        return decode_base64_picture(value)
    if not isinstance(value, bytes):
        what = "missing" if value is None else f"neither bytes nor base64, but {type(value).__name__}"
        raise BadPicture(f"The picture is {what}.")
    return value
