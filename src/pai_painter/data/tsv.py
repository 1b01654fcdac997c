# SPDX-License-Identifier: Apache-2.0
"""Tab-separated tables of captions and pictures, read one row at a time."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path

from .file_kinds import HEAD_BYTES, kind_of_content

MAX_LINE_BYTES = 256 * 1024 * 1024

_TYPES = ("str", "int", "float")
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_DAMAGES = (EOFError, zlib.error, gzip.BadGzipFile)


class BadRow(ValueError):
    """
    A row that can't be used. Its text is one sentence with file, line and reason.

    Attributes:
        path (`str` or `Path`): The table, or the name of the data set.
        line_number (`int`): The row's line, counted from 1.
        idx (`str` or `None`): The row's id, if it could be read.
        reason (`str`): One sentence.
    """

    def __init__(self, path: str | Path, line_number: int, reason: str, idx: str | None = None) -> None:
        super().__init__(f"{path}, line {line_number}: {reason}")
        self.path = path
        self.line_number = line_number
        self.idx = idx
        self.reason = reason


@dataclass(frozen=True)
class Schema:
    """
    The order of a table's columns; the tables have no header.

    Args:
        columns (`tuple[str, ...]`): The columns' names, from left to right.

    Raises:
        ValueError: If there is no column, or if one has no name or the name of another.
    """

    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.columns or not all(self.columns):
            raise ValueError(f"A schema needs a name for every column, but has {','.join(self.columns)!r}.")
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise ValueError(f"A schema names every column once, but this one repeats {', '.join(twice)}.")

    @classmethod
    def parse(cls, text: str) -> "Schema":
        """
        Reads `idx:str:1,text:str:1,imgbase64:str:1` (name, type and number of values, EasyNLP's way) or plain
        `idx,text,imgbase64`. Cells stay text whatever their type is said to be, so that an id `003` keeps its
        zeros.

        Raises:
            ValueError: If a column has another form.
        """
        names = []
        for column in text.split(","):
            name, *rest = (part.strip() for part in column.split(":"))
            if rest and (len(rest) != 2 or rest[0] not in _TYPES or not rest[1].isdecimal()):
                raise ValueError(
                    f"The schema's column {column.strip()!r} must be a name or name:type:number, "
                    "such as text or text:str:1, with the type str, int or float."
                )
            names.append(name)
        return cls(tuple(names))

    def index(self, column: str) -> int:
        """
        The place of a column, counted from 0.

        Raises:
            ValueError: If there is no such column.
        """
        if column not in self.columns:
            raise ValueError(f"The schema {','.join(self.columns)!r} has no column {column!r}: please add it.")
        return self.columns.index(column)


@dataclass(frozen=True, slots=True)
class Row:
    """
    One row of a table.

    Attributes:
        line_number (`int`): Its line, counted from 1.
        idx (`str`): Its id, as it is written.
        text (`str`): The caption's cell, as it is written.
        captions (`list[str]`): The captions in it, stripped: one, or several with a `caption_separator`.
        imgbase64 (`str` or `None`): The picture, not yet decoded; `None` if no picture column was asked for.
    """

    line_number: int
    idx: str
    text: str
    captions: list[str]
    imgbase64: str | None


def read_rows(
    path: str | Path,
    schema: Schema,
    *,
    id_column: str | None = "idx",
    text_column: str = "text",
    picture_column: str | None = "imgbase64",
    caption_separator: str | None = None,
    on_bad_row: Callable[[BadRow], None] | None = None,
) -> Iterator[Row]:
    r"""
    Reads a table of captions, and perhaps pictures, one row at a time: memory doesn't grow with the file.

    The file is UTF-8 (with or without a byte order mark), plain or compressed with gzip. Rows end at `\n` or
    `\r\n` and cells at tabs; nothing else has a meaning, neither quotes nor other line separators of Unicode.

    Args:
        path (`str` or `Path`): The table.
        schema (`Schema`): Its columns.
        id_column, text_column (`str`, *optional*): The columns of ids and captions. With `id_column=None` a row's id
            is its line number.
        picture_column (`str`, *optional*, defaults to `"imgbase64"`): The column of pictures, `None` for
            none.
        caption_separator (`str`, *optional*):
            Splits a cell with several captions of one picture. Empty captions between separators are skipped.
        on_bad_row (`Callable`, *optional*):
            Takes each row that can't be used, and reading goes on. Without it the first such row is raised.

    Yields:
        `Row`: the rows in the file's order. The file is looked at right away, the rows when they are asked
            for.

    Raises:
        ValueError: If the schema lacks a column, or if there is no such file, it is a folder, empty, UTF-16 or no
            text at all (a Parquet file, a picture, a web page, …).
        BadRow: At a row with a wrong number of cells, bytes that aren't UTF-8 or without a caption.
    """
    path = Path(path)
    layout = Layout(schema, id_column, text_column, picture_column, caption_separator)
    lines = open_lines(path)

    def rows() -> Iterator[Row]:
        for line_number, line in lines:
            try:
                row = parse_row(path, line_number, line, layout)
            except BadRow as bad:
                if on_bad_row is None:
                    raise
                on_bad_row(bad)
            else:
                yield row

    return rows()


@dataclass(frozen=True)
class Layout:
    """
    Which columns of a table mean what; the arguments are those of [`read_rows`].

    Raises:
        ValueError: If the schema lacks a column, or if the separator is empty.
    """

    schema: Schema
    id_column: str | None = "idx"
    text_column: str = "text"
    picture_column: str | None = "imgbase64"
    caption_separator: str | None = None

    def __post_init__(self) -> None:
        for column in (self.id_column, self.text_column, self.picture_column):
            if column is not None:
                self.schema.index(column)
        if self.caption_separator == "":
            raise ValueError("caption_separator is empty: please give at least one character, or None.")


def parse_row(path: str | Path, line_number: int, line: bytes | None, layout: Layout) -> Row:
    """
    Reads one line of [`open_lines`].

    Raises:
        BadRow: If it has a wrong number of cells, bytes that aren't UTF-8 or no caption.
    """
    if line is None:
        raise BadRow(path, line_number, f"The row is longer than {MAX_LINE_BYTES} bytes.")
    if not line:
        raise BadRow(path, line_number, "The row is empty.")
    try:
        cells = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        raise BadRow(path, line_number, f"The row is not UTF-8 (its byte {error.start + 1}).") from error
    columns = layout.schema.columns
    id_place = None if layout.id_column is None else columns.index(layout.id_column)
    if len(cells) != len(columns):
        expected = f"{len(columns)} ({', '.join(columns)})"
        known = cells[id_place] if id_place is not None and id_place < len(cells) else None
        raise BadRow(path, line_number, f"The row has {len(cells)} cells instead of {expected}.", known)
    idx = str(line_number) if id_place is None else cells[id_place]
    text = cells[columns.index(layout.text_column)]
    if line_number == 1 and tuple(cells) == columns:
        raise BadRow(path, line_number, "The row repeats the schema's names: a table has no header.", idx)
    captions = split_captions(text, layout.caption_separator)
    if not captions:
        raise BadRow(path, line_number, "The caption is empty.", idx)
    picture = None if layout.picture_column is None else cells[columns.index(layout.picture_column)]
    return Row(line_number, idx, text, captions, picture)


def split_captions(text: str, separator: str | None) -> list[str]:
    """The captions of one cell, stripped, without empty ones."""
    parts = [text] if separator is None else text.split(separator)
    return [part.strip() for part in parts if part.strip()]


def open_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """
    Numbered lines of a table, without their ends; `None` for a line that is too long to be held.

    The first line is looked at right away, so that a wrong file is an error before the first row is asked for.

    Raises:
        ValueError: If the file can't be a table, or at a place where its archive is damaged.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: please give a table of tab-separated values.")
    if not path.exists():
        raise ValueError(f"There is no file {path}.")
    lines = _read_lines(path)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path} is empty.")
    return chain([first], lines)


def _read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without their ends; None for one too long to be held (a bomb, or no table at all)."""
    with path.open("rb") as raw:
        # Known by its first bytes, not by its name: archives get renamed.
        is_gzip = raw.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
        stream: BufferedReader | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        _refuse_other_kinds(stream, path)
        line_number = 0
        while line := _read_line(stream, path):
            line_number += 1
            too_long = len(line) > MAX_LINE_BYTES
            tail = line
            while too_long and tail and not tail.endswith(b"\n"):
                tail = _read_line(stream, path)
            if line_number == 1:
                line = line.removeprefix(_UTF8_BOM)
                if not line:
                    return
            yield line_number, None if too_long else line.removesuffix(b"\n").removesuffix(b"\r")


def _refuse_other_kinds(stream: BufferedReader | gzip.GzipFile, path: Path) -> None:
    try:
        head = stream.peek(HEAD_BYTES)
    except _DAMAGES as error:
        raise ValueError(f"{path} is a damaged gzip archive: {error}.") from error
    if head.startswith(_UTF16_BOMS):
        raise ValueError(f"{path} is UTF-16: please save it as UTF-8.")
    kind = kind_of_content(head)
    if kind is not None:
        raise ValueError(f"{path} is no table of tab-separated text: it looks like {kind}.")


def _read_line(stream: BufferedReader | gzip.GzipFile, path: Path) -> bytes:
    try:
        return stream.readline(MAX_LINE_BYTES + 1)
    except _DAMAGES as error:
        raise ValueError(f"{path} is a damaged gzip archive: {error}.") from error
