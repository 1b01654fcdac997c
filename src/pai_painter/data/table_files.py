# SPDX-License-Identifier: Apache-2.0
"""
Tables as lines of text: EasyNLP's TSV, CSV and JSON lines, plain or compressed with gzip, read one row at a time.

CSV and JSON lines are read by Python's `csv` and `json`, because one bad row must not cost the others: the datasets
library refuses the whole file, or shifts the columns of a CSV row with too many cells without a word.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..printable import printable

MAX_ROW_BYTES = 256 * 1024 * 1024
_SCHEMA_COLUMN = re.compile(r"\s*([^:]*?)\s*(:\s*(str|int|float)\s*:\s*\d+\s*)?")

Row = tuple[int, dict[str, Any], str | None]  # line, cells by column, what is wrong with the row if anything


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
        columns = [_SCHEMA_COLUMN.fullmatch(column) for column in text.split(",")]
        if not all(columns):
            raise ValueError(f"A schema's columns are names or name:type:number such as text:str:1, not {text!r}.")
        return cls(tuple(column[1] for column in columns if column))


def read_table(path: Path, schema: Schema | None = None, is_csv: bool | None = None) -> Iterator[Row]:
    """
    The rows of a table: a TSV if a `schema` is given, else JSON lines or CSV with a header, by default as it is named.
    Bytes of a CSV that are not UTF-8 come as halves of surrogate pairs. For errors see [`open_lines`].
    """
    if is_csv is None:
        is_csv = path.name.lower().removesuffix(".gz").endswith(".csv")
    if is_csv and schema is None:
        yield from _read_csv(path)
        return
    for number, line in open_lines(path):
        if line is None:
            yield number, {}, f"The row is longer than {MAX_ROW_BYTES} bytes."
        elif not line.strip(b" \r\n"):
            yield number, {}, "The row is empty."
        else:
            yield number, *_cells(line, schema, number == 1)


def _cells(line: bytes, schema: Schema | None, is_first: bool) -> tuple[dict[str, Any], str | None]:
    try:
        text = line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        cells = json.loads(text) if schema is None else text.split("\t")
    except (ValueError, RecursionError) as error:
        return {}, f"The row is not {'JSON in ' if schema is None else ''}UTF-8: {error}."
    if schema is None:
        return (cells, None) if isinstance(cells, dict) else ({}, "The row is not a JSON object.")
    if is_first and tuple(cells) == schema.columns:
        return _by_column(cells, schema.columns)[0], "The row repeats the schema's names, but a TSV has no header."
    return _by_column(cells, schema.columns)


def _by_column(cells: list[str], columns: tuple[str, ...] | list[str]) -> tuple[dict[str, Any], str | None]:
    """The cells, and what is wrong if they are too many or too few."""
    by_column = dict(zip(columns, cells))  # noqa: B905
    if len(cells) == len(columns):
        return by_column, None
    return by_column, f"The row has {len(cells)} cells instead of {len(columns)} ({', '.join(columns)})."


def _read_csv(path: Path) -> Iterator[Row]:
    # Pictures in base64 are long cells, and Python has one limit for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    reader = csv.reader(_csv_lines(path), strict=True)
    header = None
    while True:
        number, cells, reason = reader.line_num + 1, [], None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "larger than" in str(error):  # it would swallow all rows behind it
                raise ValueError(f"{path}, line {number}: a quotation mark is never closed ({error}).") from error
            reason = f"The row is not CSV: {error}."
        if header is None:
            header = cells
            if not header or len(set(header)) < len(header):
                raise ValueError(f"{path} needs a first line with a different name for every column.")
        elif reason or not cells:
            yield number, {}, reason or "The row is empty."
        else:
            yield number, *_by_column(cells, header)


def _csv_lines(path: Path) -> Iterator[str]:
    for number, line in open_lines(path):
        if line is None:
            raise ValueError(f"{path}, line {number} is longer than {MAX_ROW_BYTES} bytes.")
        yield line.decode("utf-8", "surrogateescape")


def open_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """
    Numbered lines of a text file, as they end; `None` for a line that is too long to be held. A `ValueError` if the
    file isn't there, is empty or isn't text, or at a place where its archive is damaged.
    """
    check_file(path)
    number = 0
    with path.open("rb") as raw:
        is_gzip = raw.peek(2).startswith(b"\x1f\x8b")  # known by its first bytes: archives get renamed
        stream: BufferedReader | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        try:
            head = stream.peek(1024)[:1024]
            if b"\0" in head:  # a caption may hold it, but no other file is UTF-8
                codecs.utf_8_decode(head)
            if head.startswith(codecs.BOM_UTF8):
                stream.read(len(codecs.BOM_UTF8))
            for number, line in enumerate(iter(lambda: stream.readline(MAX_ROW_BYTES + 1), b""), 1):
                rest, is_long = line, len(line) > MAX_ROW_BYTES
                while is_long and rest and not rest.endswith(b"\n"):
                    rest = stream.readline(MAX_ROW_BYTES + 1)
                yield number, None if is_long else line
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not text in UTF-8: it begins with {head[:20]!r}.") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is a damaged gzip archive: {error}.") from error
    if not number:
        raise ValueError(f"{path} is empty.")


def check_file(path: Path) -> None:
    """A `ValueError` if this is no regular file, which can be read as often as needed, or has no content."""
    if not path.exists():
        raise ValueError(f"There is no file {path}.")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or device, which can be read only once"
        raise ValueError(f"{path} is {what}: please name a file.")
    with path.open("rb") as file:
        head = file.read(30)
    if not head:
        raise ValueError(f"{path} is empty.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is not the file, but a pointer of Git LFS: please download it with `git lfs pull`.")


class BadRows:
    """
    The unusable rows of the source `name`, each counted and listed once, however often it comes back. More than `most`
    are an error. The list, JSON lines in `path`, is begun anew unless this run resumes an earlier one.
    """

    def __init__(self, name: str, most: int, path: Path | None = None, resumes: bool = False) -> None:
        self.name, self.most, self.path = name, most, path
        self.found: dict[tuple[str, int], dict[str, Any]] = {}
        if path is not None and path.exists():
            # Its last line may have been cut off when the run ended.
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if resumes else []
            path.unlink()
            for line in lines:
                self.add(json.loads(line))

    def add(self, bad: dict[str, Any]) -> None:
        """Lists a row with `file`, `line`, `idx` and `reason`; a `ValueError` if it is one too many."""
        if (bad["file"], bad["line"]) in self.found:
            return
        self.found[bad["file"], bad["line"]] = bad
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Names that aren't Unicode can be the very reason.
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(bad, ensure_ascii=False) + "\n")
        if len(self.found) > self.most:
            raise ValueError(f"{self.name} has {self}; at most {self.most} are allowed (`max_bad_rows`).")

    def __str__(self) -> str:
        if not self.found:
            return "no unusable rows either"
        first = next(iter(self.found.values()))
        rows = "1 unusable row" if len(self.found) == 1 else f"{len(self.found)} unusable rows"
        return printable(f"{rows}, the first {first['file']}, line {first['line']}: {first['reason'].rstrip('.')}")
