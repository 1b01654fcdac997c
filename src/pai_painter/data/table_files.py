# SPDX-License-Identifier: Apache-2.0
"""
Tables as lines of text: EasyNLP's TSV, CSV and JSON lines, plain or compressed with gzip, read one row at a time.

CSV and JSON lines are read by Python's `csv` and `json`, because one bad row must not cost the others: the datasets
library refuses the whole file, or shifts the columns of a CSV row with too many cells without a word.
"""

import codecs
import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

from ..printable import printable

__all__ = [
    "BadRow",
    "Schema",
    "check_file",
    "columns_of",
    "hash_of_file",
    "kind_of_file",
    "open_lines",
    "read_table",
]

MAX_ROW_BYTES = 256 * 1024 * 1024

_HEAD_BYTES = 1024
_DAMAGES = (EOFError, zlib.error, gzip.BadGzipFile)
_MAGICS = {
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xff\xfe": "UTF-16 text (please save it as UTF-8)",
    b"\xfe\xff": "UTF-16 text (please save it as UTF-8)",
    b"version https://git-lfs": "a pointer of Git LFS (download the file itself with `git lfs pull`)",
}

Row = tuple[int, dict[str, Any], str | None]  # line, cells by column, what is wrong with the row if anything


class BadRow(ValueError):
    """
    A row that can't be used: the file or data set, the line (the number where rows are no lines, from 1), the reason,
    and the id if it could be read. Its text is one sentence.
    """

    def __init__(self, path: str | Path, line_number: int, reason: str, idx: str | None = None) -> None:
        reason = printable(reason)
        super().__init__(printable(f"{path}, line {line_number}: {reason}"))
        self.path, self.line_number, self.idx, self.reason = str(path), line_number, idx, reason

    def as_json(self) -> str:
        """A line for the list of bad rows: `file`, `line`, `idx` and `reason`."""
        record = {"file": self.path, "line": self.line_number, "idx": self.idx, "reason": self.reason}
        return json.dumps(record, ensure_ascii=False)


@dataclass(frozen=True)
class Schema:
    """The order of the columns of a TSV, which has no header."""

    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not all(self.columns) or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"A schema needs a different name for every column, but is {','.join(self.columns)!r}.")

    @classmethod
    def parse(cls, text: str) -> "Schema":
        """
        Reads `idx:str:1,text:str:1,imgbase64:str:1` (name, type and number of values, EasyNLP's way) or plain
        `idx,text,imgbase64`. Cells stay text whatever their type, so that an id `003` keeps its zeros.
        """
        columns = [[part.strip() for part in column.split(":")] for column in text.split(",")]
        for _, *rest in columns:
            if rest and (len(rest) != 2 or rest[0] not in ("str", "int", "float") or not rest[1].isdecimal()):
                raise ValueError(
                    f"A schema's columns are names or name:type:number such as text:str:1, with the type str, int or "
                    f"float, but this one is {text!r}."
                )
        return cls(tuple(column[0] for column in columns))


def read_table(path: Path, schema: Schema | None = None, is_csv: bool | None = None) -> Iterator[Row]:
    """
    The rows of a table: a TSV if a `schema` is given, else JSON lines or CSV with a header, by default as it is named.

    Yields:
        `(int, dict, str or None)`: the line, from 1, the cells by column, and what is wrong with the row, if anything.
        Bytes of a CSV that are not UTF-8 come as halves of surrogate pairs.

    Raises:
        ValueError: If the file can't be such a table, or at the place where it is damaged.
    """
    if schema is None and (_is_csv(path) if is_csv is None else is_csv):
        yield from _read_csv(path)
        return
    for number, line in open_lines(path):
        if line is None:
            yield number, {}, f"The row is longer than {MAX_ROW_BYTES} bytes."
        elif not line.strip(b" "):
            yield number, {}, "The row is empty."
        else:
            yield number, *(_json_cells(line) if schema is None else _tsv_cells(line, schema.columns, number == 1))


def columns_of(path: Path) -> list[str]:
    """The header of a CSV, or the fields of the first usable row of JSON lines."""
    if _is_csv(path):
        return _open_csv(path)[0]
    return next((list(cells) for _, cells, reason in read_table(path) if reason is None), [])


def _is_csv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".csv")


def _tsv_cells(line: bytes, columns: tuple[str, ...], is_first: bool) -> tuple[dict[str, Any], str | None]:
    try:
        cells = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        return {}, f"The row is not UTF-8 (its byte {error.start + 1})."
    reason = None if len(cells) == len(columns) else _wrong_count(cells, columns)
    if is_first and tuple(cells) == columns:
        reason = "The row repeats the schema's names, but a TSV has no header."
    return dict(zip(columns, cells)), reason  # noqa: B905 - too many or too few are the reason


def _json_cells(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        cells = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return {}, f"The row is not JSON in UTF-8: {error}."
    return (cells, None) if isinstance(cells, dict) else ({}, "The row is not a JSON object.")


def _read_csv(path: Path) -> Iterator[Row]:
    header, reader = _open_csv(path)
    while True:
        number, reason = reader.line_num + 1, None
        try:
            cells = next(reader)
            if len(cells) != len(header):
                reason = _wrong_count(cells, header) if cells else "The row is empty."
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "larger than" in str(error):  # it would swallow all rows behind it
                raise ValueError(f"{path}, line {number}: a quotation mark is never closed ({error}).") from error
            cells, reason = [], f"The row is not CSV: {error}."
        yield number, dict(zip(header, cells)), reason  # noqa: B905 - as above


def _open_csv(path: Path) -> tuple[list[str], Any]:
    """The header and a reader of the rows behind it."""
    # Pictures in base64 are long cells, and Python has one limit for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    reader = csv.reader(_csv_lines(path), strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"{path} has no header that can be read: {error}.") from error
    if not header or len(set(header)) < len(header):
        raise ValueError(f"{path} needs a first line with a different name for every column.")
    return header, reader


def _csv_lines(path: Path) -> Iterator[str]:
    for number, line in open_lines(path, keep_ends=True):
        if line is None:
            raise ValueError(f"{path}, line {number} is longer than {MAX_ROW_BYTES} bytes.")
        yield line.decode("utf-8", "surrogateescape")


def _wrong_count(cells: list[str], columns: list[str] | tuple[str, ...]) -> str:
    return f"The row has {len(cells)} cells instead of {len(columns)} ({', '.join(columns)})."


def open_lines(path: Path, keep_ends: bool = False) -> Iterator[tuple[int, bytes | None]]:
    r"""
    Numbered lines of a text file, without their ends (`\n` or `\r\n`); `None` for a line that is too long to be held.

    The file is looked at right away, so that a wrong one is an error before the first row is asked for.

    Raises:
        ValueError: If the file isn't there, is empty or isn't text, or at a place where its archive is damaged.
    """
    check_file(path)
    lines = _read_lines(path, keep_ends)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path} is empty.")
    return chain([first], lines)


def _read_lines(path: Path, keep_ends: bool) -> Iterator[tuple[int, bytes | None]]:
    with path.open("rb") as raw:
        is_gzip = raw.peek(2).startswith(b"\x1f\x8b")  # known by its first bytes: archives get renamed
        stream: BufferedReader | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        try:
            kind = _kind_of(stream.peek(_HEAD_BYTES)[:_HEAD_BYTES])
            if kind != "plain text":
                raise ValueError(f"{path} is not a table of text: it looks like {kind}.")
            number = 0
            while line := stream.readline(MAX_ROW_BYTES + 1):
                number += 1
                tail, too_long = line, len(line) > MAX_ROW_BYTES
                while too_long and tail and not tail.endswith(b"\n"):
                    tail = stream.readline(MAX_ROW_BYTES + 1)
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if not line:
                        return
                if not keep_ends:
                    line = line.removesuffix(b"\n").removesuffix(b"\r")
                yield number, None if too_long else line
        except _DAMAGES as error:
            raise ValueError(f"{path} is a damaged gzip archive: {error}.") from error


def check_file(path: Path) -> None:
    """A `ValueError` if this is no regular file, which can be read as often as needed, or is empty."""
    if not path.exists():
        raise ValueError(f"There is no file {path}.")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or device, which can be read only once"
        raise ValueError(f"{path} is {what}: please name a file.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty.")


def kind_of_file(path: Path) -> str:
    """Names what a file is by its first bytes: "a PNG picture", "plain text", …"""
    check_file(path)
    with path.open("rb") as file:
        return _kind_of(file.read(_HEAD_BYTES))


def _kind_of(head: bytes) -> str:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        is_text = True
    except UnicodeDecodeError:
        is_text = False
    if is_text and b"\t" in head.partition(b"\n")[0]:
        return "plain text"  # a row whose id may begin like one of these, and whose caption may hold a NUL
    for magic, kind in _MAGICS.items():
        if head.startswith(magic):
            return kind
    if head[257:].startswith(b"ustar"):
        return "a tar archive"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page"
    return "a binary file" if b"\0" in head and not is_text else "plain text"


def hash_of_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
