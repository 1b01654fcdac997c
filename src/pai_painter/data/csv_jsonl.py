# SPDX-License-Identifier: Apache-2.0
"""CSV and JSON lines, read one row at a time: every cell as it is written, every bad row with its line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, AnyStr

from .file_kinds import kind_of_file
from .tsv import MAX_LINE_BYTES

__all__ = ["TABLE_SUFFIXES", "columns_of", "read_table"]

TABLE_SUFFIXES = (".csv", ".jsonl")

Values = dict[str, Any]


def read_table(path: Path) -> Iterator[tuple[int, Values | str]]:
    """
    The rows of a table that is CSV (with a header) or JSON lines by its name.

    The datasets library is not asked, which takes the captions `NA` and `null` for missing ones and the id `003` for
    the number 3. Bytes of a CSV that aren't UTF-8 come as halves of surrogate pairs, so that their row can be refused
    alone.

    Yields:
        `(int, dict)` or `(int, str)`: a row's line, from 1, and its cells by column, or what is wrong with it.

    Raises:
        ValueError: At a line too long to be held, a header with a column twice, or a quotation mark without end.
    """
    return _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path)


def columns_of(path: Path) -> list[str]:
    """
    The header of a CSV, the fields of the first usable row of JSON lines.

    Raises:
        ValueError: If there is no such file, if it is empty, no text, or has no header that can be read.
    """
    kind = kind_of_file(path)
    if kind != "plain text":
        raise ValueError(f"{path} is no table of captions: it looks like {kind}.")
    if path.suffix.lower() != ".csv":
        return next((list(values) for _, values in _read_jsonl(path) if isinstance(values, dict)), [])
    with _open_csv(path) as file:
        return _header_of(path, csv.reader(_lines_of(path, file), strict=True))


def _read_csv(path: Path) -> Iterator[tuple[int, Values | str]]:
    # Pictures in base64 are long cells, and Python has one limit for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    with _open_csv(path) as file:
        reader = csv.reader(_lines_of(path, file), strict=True)
        header = _header_of(path, reader)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error) or "larger than" in str(error):
                    # It would swallow all rows behind it.
                    raise ValueError(
                        f"{path}, line {line}: a quotation mark is opened that is never closed ({error})."
                    ) from error
                yield line, f"The row is no CSV: {error}."
                continue
            if not cells:
                yield line, "The row is empty."
            elif len(cells) != len(header):
                yield line, f"The row has {len(cells)} cells instead of {len(header)} ({', '.join(header)})."
            else:
                yield line, dict(zip(header, cells, strict=True))


def _open_csv(path: Path) -> IO[str]:
    return open(path, newline="", encoding="utf-8-sig", errors="surrogateescape")


def _header_of(path: Path, reader: Any) -> list[str]:
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"{path} has no header that can be read: {error}.") from error
    if not header or len(set(header)) < len(header):
        raise ValueError(f"{path} needs a first line with a different name for every column.")
    return header


def _read_jsonl(path: Path) -> Iterator[tuple[int, Values | str]]:
    with open(path, "rb") as file:
        for line, content in enumerate(_lines_of(path, file), 1):
            if not content.strip():
                yield line, "The row is empty."
                continue
            try:
                values = json.loads(content.decode("utf-8-sig" if line == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield line, f"The row is no JSON in UTF-8: {error}."
                continue
            yield line, values if isinstance(values, dict) else "The row is no JSON object."


def _lines_of(path: Path, file: IO[AnyStr]) -> Iterator[AnyStr]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{path}, line {number} is longer than {MAX_LINE_BYTES} bytes.")
        yield line
