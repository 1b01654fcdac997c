# SPDX-License-Identifier: Apache-2.0
"""What the cells of a row mean: ids, captions and pictures in the ways that data sets write them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from .open_picture import BadPicture, decode_base64_picture

__all__ = ["NOT_UTF8", "PATH_COLUMN", "Columns", "captions_of", "id_of", "is_base64", "picture_of"]

PATH_COLUMN = "file_name"  # holds paths and nothing else, as the datasets library has it
_MAX_CAPTION = 65_536  # characters of a cell: far more than any model reads
# Halves of surrogate pairs: what Python makes of bytes that aren't UTF-8, and what JSON can spell but no file can hold.
NOT_UTF8 = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    """Which columns mean what; see [`~data.sources.find_source`]."""

    idx: str = "idx"
    caption: str = "text"
    image: str | None = None
    caption_separator: str | None = None

    def __post_init__(self) -> None:
        if self.caption_separator == "":
            raise ValueError("caption_separator is empty: please give at least one character, or None.")

    def check(self, name: str, there: list[str], image: str) -> None:
        """A `ValueError` if `name` lacks captions, pictures, or ids in another column than the default."""
        for column, option in ((self.caption, "caption_column"), (image, "image_column"), (self.idx, "id_column")):
            if column not in there and (column, option) != (Columns.idx, "id_column"):
                shown = ", ".join(map(repr, there)) or "none at all"
                raise ValueError(f"{name} has no column {column!r}, but {shown}: please set `{option}`.")


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
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path") is not None:
            raise BadPicture(f"The picture is not in the table: there is only its path {value['path']!r}.")
        value = value.get("bytes")
    if value is None:
        raise BadPicture("The picture is missing.")
    if isinstance(value, str):
        return decode_base64_picture(value)
    if not isinstance(value, bytes):
        raise BadPicture(f"The picture is neither bytes nor base64, but {type(value).__name__}.")
    return value


def is_base64(cell: str, column: str) -> bool:
    """Whether a cell of a table is base64 and no path: base64 has no dot, and a path has one before its ending."""
    return cell.startswith("data:") or (column != PATH_COLUMN and "." not in cell and "://" not in cell)
