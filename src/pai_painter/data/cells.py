# SPDX-License-Identifier: Apache-2.0
"""What the cells of a row mean (ids, captions and pictures in the ways that data sets write them), and bad rows."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from ..printable import printable
from .open_picture import BadPicture, decode_base64_picture

__all__ = ["NOT_UTF8", "BadRow", "BadRows", "captions_of", "id_of", "picture_of"]

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


@dataclass
class BadRow:
    """
    A row that can't be used: the file or data set, the line (from 1; the number where rows are no lines), the id if it
    could be read, and the reason.
    """

    file: str
    line: int
    idx: str | None
    reason: str

    def __post_init__(self) -> None:
        self.reason = printable(self.reason)

    def __str__(self) -> str:
        return printable(f"{self.file}, line {self.line}: {self.reason}")

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


class BadRows:
    """
    The unusable rows of a source, each counted and listed once, however often it comes back.

    Args:
        name: the source in a sentence.
        most: more rows than this are an error.
        path: JSON lines file for the rows. An earlier run's is removed, or read first if this one resumes it.
    """

    def __init__(self, name: str, most: int, path: Path | None = None, resumes: bool = False) -> None:
        self.name, self.most, self.path = name, most, path
        self.found: dict[tuple[str, int], BadRow] = {}
        if path is not None and path.exists():
            # Its last line may have been cut off when the run ended.
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if resumes else []
            path.unlink()
            for line in lines:
                self.add(BadRow(**json.loads(line)))

    def add(self, bad: BadRow) -> None:
        """Lists a row; a `ValueError` if it is one too many."""
        if (bad.file, bad.line) in self.found:
            return
        self.found[bad.file, bad.line] = bad
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Names that aren't Unicode can be the very reason.
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(bad.as_json() + "\n")
        if len(self.found) > self.most:
            raise ValueError(f"{self.name} has {self}; at most {self.most} are allowed (`max_bad_rows`).")

    def __str__(self) -> str:
        if not self.found:
            return "no unusable rows either"
        rows = "1 unusable row" if len(self.found) == 1 else f"{len(self.found)} unusable rows"
        return f"{rows}, the first {next(iter(self.found.values()))}".rstrip(".")
