# SPDX-License-Identifier: Apache-2.0
"""What every kind of source gives: rows of captions and picture files, one at a time."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

from .pictures import BadPicture, decode_base64_picture
from .tsv import BadRow, split_captions

__all__ = ["Columns", "DataSource", "PictureRow", "Record", "hash_of_file"]

# Halves of surrogate pairs: what Python makes of bytes that are no UTF-8, and what JSON can spell but no file can hold.
_BROKEN = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    """
    Which columns of a table mean what.

    Args:
        idx (`str`): The rows' ids. A table without a column of the default's name gets its rows' numbers.
        caption (`str`): The captions: a text, or a list of texts.
        image (`str` or `None`): The pictures; `None` for the usual name in this kind of file.
        caption_separator (`str` or `None`): Splits a cell with several captions of one picture.

    Raises:
        ValueError: If the separator is empty.
    """

    idx: str = "idx"
    caption: str = "text"
    image: str | None = None
    caption_separator: str | None = None

    def __post_init__(self) -> None:
        if self.caption_separator == "":
            raise ValueError("caption_separator is empty: please give at least one character, or None.")

    def check(self, name: str, there: list[str], image: str) -> bool:
        """
        Whether the table called `name` has ids, given the columns that are `there`.

        Raises:
            ValueError: If it lacks captions, pictures, or a column of ids that is not the default one.
        """
        for column, option in ((self.caption, "caption_column"), (image, "image_column"), (self.idx, "id_column")):
            if column not in there and (column, option) != (Columns.idx, "id_column"):
                raise ValueError(
                    f"{name} has no column {column!r}, but {', '.join(map(repr, there)) or 'none at all'}: please set "
                    f"`{option}`."
                )
        return self.idx in there


@dataclass(frozen=True, slots=True)
class Record:
    """
    A row as it stands in its file, not looked at yet: skipping one costs nothing.

    Attributes:
        part (`int`): Its file's place in [`DataSource.parts`].
        line (`int`): Its line or its number in the file, counted from 1.
        content (`Any`): What [`DataSource.read`] understands.
    """

    part: int
    line: int
    content: Any


@dataclass(frozen=True, slots=True)
class PictureRow:
    """
    A row with a caption and a picture that has not been opened yet.

    Attributes:
        file (`str`): The file, for messages.
        line (`int`): Its line or its number in the file, counted from 1.
        idx (`str`): Its id.
        text (`str`): The caption's cell, as it is written.
        captions (`list[str]`): The captions in it, stripped: one or several.
        picture (`bytes`): The picture file.
    """

    file: str
    line: int
    idx: str
    text: str
    captions: list[str]
    picture: bytes


class DataSource(ABC):
    """What the user named, found and checked by its head. No row has been read yet."""

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """The files (or the shards of a named data set), in order."""

    @property
    @abstractmethod
    def options(self) -> list[Any]:
        """What decides about the rows beside the files' content, as JSON has it."""

    @abstractmethod
    def content_hash(self) -> str:
        """SHA-256 of the content of all files in their order, whatever they are called, in hexadecimal."""

    @abstractmethod
    def records(self, part: int) -> Iterator[Record]:
        """
        The rows of one part in order, good or bad, not looked at.

        Raises:
            ValueError: If the file can't be read, now or at a damaged place.
        """

    @abstractmethod
    def read(self, record: Record) -> PictureRow:
        """
        Looks at one row. Its picture is not opened yet.

        Raises:
            BadRow: If it can't be used.
        """

    @property
    def name(self) -> str:
        """The source in a sentence."""
        first, count = self.parts[0], len(self.parts)
        return first if count == 1 else f"{first} and {count - 1} more"

    @property
    def advice(self) -> str:
        """What may help if no row or few can be used."""
        return ""

    def on_disk(self) -> "DataSource":
        """The same rows, all of them on this machine; what comes over the network is fetched."""
        return self

    def rows(self, on_bad_row: Callable[[BadRow], None]) -> Iterator[PictureRow]:
        """The rows of all parts in order; `on_bad_row` takes those that can't be used."""
        for row in self.good_and_bad_rows():
            if isinstance(row, BadRow):
                on_bad_row(row)
            else:
                yield row

    def good_and_bad_rows(self) -> Iterator[PictureRow | BadRow]:
        """All rows of all parts in order, so that the n-th is the same whenever they are read."""
        for part in range(len(self.parts)):
            for record in self.records(part):
                try:
                    yield self.read(record)
                except BadRow as bad:
                    yield bad

    def own_id(self, record: Record, name: int | str) -> str:
        """The id of a row without one, from its number or name in its part: unlike any in the source's other parts."""
        return str(name) if len(self.parts) == 1 else f"{record.part + 1}-{name}"


class RowReader:
    """
    Reads rows that come as a mapping of columns.

    Args:
        source (`DataSource`): Where they come from.
        columns (`Columns`): Their meaning.
        image (`str`): The column of pictures.
        has_ids (`bool`): Whether there is a column of ids.
    """

    def __init__(self, source: DataSource, columns: Columns, image: str, has_ids: bool) -> None:
        self.source, self.columns, self.image, self.has_ids = source, columns, image, has_ids

    def read(self, record: Record, values: Mapping[str, Any]) -> PictureRow:
        """
        Args:
            record (`Record`): The row.
            values (`Mapping`): Its cells; one that is missing is like an empty one.

        Raises:
            BadRow: If it has no caption or no picture.
        """
        file, idx = self.source.parts[record.part], self.id_of(record, values)
        captions, text = self._captions(values.get(self.columns.caption), file, record.line, idx)
        try:
            picture = picture_bytes(values.get(self.image))
        except BadPicture as error:
            raise BadRow(file, record.line, str(error), idx) from error
        return PictureRow(file, record.line, idx, text, captions, picture)

    def id_of(self, record: Record, values: Mapping[str, Any]) -> str:
        """
        The row's id.

        Raises:
            BadRow: If it is neither text nor a number.
        """
        if not self.has_ids:
            return self.source.own_id(record, record.line)
        file, given = self.source.parts[record.part], values.get(self.columns.idx)
        if not isinstance(given, (str, int, float, NoneType)) or isinstance(given, bool):
            raise BadRow(file, record.line, f"The id is neither text nor a number, but {type(given).__name__}.")
        idx = "" if given is None else str(given)
        if _BROKEN.search(idx):
            raise BadRow(file, record.line, "The id holds bytes that are no UTF-8.")
        return idx

    def _captions(self, value: Any, file: str, line: int, idx: str) -> tuple[list[str], str]:
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if text is not None and not isinstance(text, str):
                raise BadRow(file, line, f"The caption is no text, but {type(text).__name__}.", idx)
            if text and _BROKEN.search(text):
                raise BadRow(file, line, "The caption holds bytes that are no UTF-8.", idx)
        texts = [text for text in texts if text]
        captions = [part for text in texts for part in split_captions(text, self.columns.caption_separator)]
        if not captions:
            raise BadRow(file, line, "The caption is empty.", idx)
        return captions, (self.columns.caption_separator or "\n").join(texts)


def picture_bytes(value: Any) -> bytes:
    """
    The picture file in a cell: bytes, base64, or a struct of `bytes` and `path` as the datasets library writes it.

    Raises:
        BadPicture: If there is none in it.
    """
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path") is not None:
            raise BadPicture(f"The picture is not in the table: there is only its path {value['path']!r}.")
        value = value.get("bytes")
    if value is None:
        raise BadPicture("The picture is missing.")
    if isinstance(value, str):
        return decode_base64_picture(value)
    if isinstance(value, bytes):
        return value
    raise BadPicture(f"The picture is neither bytes nor base64, but {type(value).__name__}.")


@dataclass(frozen=True)
class FileSource(DataSource):
    """
    Files of one kind.

    Args:
        paths (`tuple[Path, ...]`): The files.
        columns (`Columns`): Their columns.

    Raises:
        ValueError: If a file isn't there, is empty, of another kind or lacks a column.
    """

    paths: tuple[Path, ...]
    columns: Columns

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(map(str, self.paths))

    def content_hash(self) -> str:
        return hashlib.sha256(" ".join(map(hash_of_file, self.paths)).encode()).hexdigest()


def hash_of_file(path: Path) -> str:
    """
    SHA-256 of a file's content, in hexadecimal.

    Raises:
        ValueError: If there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
