# SPDX-License-Identifier: Apache-2.0
"""Captions from a table, a text or standard input, one row at a time."""

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args

from ..data.cells import NOT_UTF8
from ..data.table_files import Schema, read_table

__all__ = ["CaptionFile", "CaptionKind", "CaptionRow", "find_captions", "from_stream"]

CaptionKind = Literal["tsv", "csv", "jsonl", "parquet", "text"]

_ENDINGS = {"txt": "text", "txt.gz": "text", "tsv.gz": "tsv"}  # others are named like their kinds
_USUAL_SCHEMA = "idx:str:1,text:str:1"
_LONGEST_CELL = 2**28  # columns of pictures may stand beside the captions
_LONGEST_CAPTION = 10_000
_NOT_IN_AN_ID = re.compile(r"[\t\r\n\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A row of captions, good or bad."""

    line: int  # or its number, in a table that isn't a TSV; from 1
    idx: str | None
    text: str  # the caption as it is written
    reason: str | None = None  # why it can't be painted


@dataclass(frozen=True)
class CaptionFile:
    """A file of captions, which may be read any number of times: from [`find_captions`] or [`from_stream`]."""

    path: Path
    kind: CaptionKind
    schema: Schema  # of a TSV or a text
    id_column: str
    caption_column: str
    name: str  # what messages call it
    keeper: Any = field(default=None, repr=False)  # what keeps a temporary file alive

    @property
    def options(self) -> dict[str, Any]:
        """What decides about the rows besides the file's content."""
        columns = {"id_column": self.id_column, "caption_column": self.caption_column}
        return {"kind": self.kind, "schema": ",".join(self.schema.columns), **columns}

    def stamp(self) -> tuple[int, int]:
        """Changes when somebody writes to the file."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def rows(self) -> Iterator[CaptionRow]:
        """The rows in order, good and bad; a `ValueError` if the file isn't what it should be, or is damaged."""
        if self.kind in ("tsv", "text"):
            yield from map(_checked, self._lines())
            return
        for number, values in enumerate(self._values(), 1):
            if isinstance(values, str):
                yield CaptionRow(number, None, "", values)
                continue
            idx, text = values.get(self.id_column), values.get(self.caption_column)
            idx = number if idx is None and self.id_column == "idx" else idx
            reason = None
            if isinstance(idx, bool) or not isinstance(idx, str | int):
                reason = f"The id in {self.id_column!r} is neither text nor a whole number."
            elif not isinstance(text, str):
                reason = f"There is no text in {self.caption_column!r}."
            yield _checked(CaptionRow(number, None if idx is None else str(idx), str(text), reason))

    def _lines(self) -> Iterator[CaptionRow]:
        columns = self.schema.columns
        has_ids = self.id_column != "idx" or "idx" in columns
        for column in [self.caption_column] + [self.id_column] * has_ids:
            if column not in columns:
                raise ValueError(f"The schema {','.join(columns)!r} has no column {column!r}: please add it.")
        for line, cells, reason in read_table(self.path, self.schema):
            idx = cells.get(self.id_column) if has_ids else str(line)
            yield CaptionRow(line, idx, cells.get(self.caption_column, ""), reason)

    def _values(self) -> Iterator[dict[str, Any] | str]:
        """
        Rows by column, or what is wrong with them. Not by `load_dataset`, which in JSON lines turns the id "003" into 3
        where other ids are numbers, and refuses a whole file for one bad line.
        """
        try:
            if self.kind == "csv":
                csv.field_size_limit(_LONGEST_CELL)
                # Bytes that are not UTF-8 come as halves of surrogate pairs, so that their row alone is rejected.
                with open(self.path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
                    for cells in csv.DictReader(file, strict=True):
                        yield "The row has more cells than the header." if None in cells else cells
            elif self.kind == "jsonl":
                with open(self.path, "rb") as lines:
                    yield from map(_json_object, lines)
            else:
                from pyarrow.parquet import ParquetFile

                with ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as table:
                    wanted = {self.id_column, self.caption_column} & {*table.schema_arrow.names}
                    for batch in table.iter_batches(1024, columns=sorted(wanted), use_threads=False):
                        yield from batch.to_pylist()
        except (csv.Error, OSError, ValueError) as error:  # Arrow's are ValueErrors
            raise ValueError(f"{self.name} can't be read as {self.kind}: {str(error).splitlines()[0]}.") from error


def _checked(row: CaptionRow) -> CaptionRow:
    reason = row.reason
    if reason is None and (not str(row.idx).strip() or _NOT_IN_AN_ID.search(str(row.idx))):
        reason = f"The id {row.idx!r} is empty, not UTF-8, or has a tab, a line break or NUL."
    elif reason is None and NOT_UTF8.search(row.text):
        reason = "The caption is not UTF-8."
    elif reason is None and len(row.text) > _LONGEST_CAPTION:
        reason = f"The caption has {len(row.text)} characters; at most {_LONGEST_CAPTION} are allowed."
    elif reason is None and not row.text.strip():
        reason = "The caption is empty."
    return replace(row, reason=reason) if reason else row


def _json_object(line: bytes) -> dict[str, Any] | str:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"The row is no JSON in UTF-8: {error}."
    return values if isinstance(values, dict) else "The row is no JSON object."


def find_captions(
    path: str | Path,
    *,
    kind: CaptionKind | None = None,
    input_schema: str = _USUAL_SCHEMA,
    id_column: str = "idx",
    caption_column: str = "text",
) -> CaptionFile:
    """
    A file of captions.

    Args:
        path (`str` or `Path`): The file.
        kind (`str`, *optional*): `"tsv"`, `"csv"`, `"jsonl"`, `"parquet"` or `"text"` (one caption per line); by
            default as the name ends: .tsv, .csv, .jsonl, .parquet or .txt.
        input_schema (`str`, *optional*): Columns of a TSV, which has no header.
        id_column, caption_column (`str`, *optional*): The columns of ids and captions. In a table without a column
            `idx`, ids are the numbers of the rows.

    Raises:
        ValueError: if there is no such file, if it is no regular file, or if columns are named that it doesn't have.
    """
    path = Path(path)
    endings = path.name.lower().rsplit(".", 2 if path.suffix == ".gz" else 1)[1:]
    kind = kind or cast(CaptionKind, _ENDINGS.get(".".join(endings), ".".join(endings)))
    if kind not in get_args(CaptionKind):
        known = ", ".join(get_args(CaptionKind))
        raise ValueError(f"Please set the input format of {path} to one of {known}, got {kind!r}.")
    if path.exists() and not path.is_file():  # opening a pipe may wait forever, and it can't be read twice
        raise ValueError(f"{path} is not a file: please name one, or send captions to standard input and give -.")
    if not path.exists():
        raise ValueError(f"There is no file {path}.")
    if kind != "tsv" and input_schema != _USUAL_SCHEMA:
        raise ValueError(f"An input schema is for TSV, but {path} is read as {kind}: please set the input format.")
    if kind == "text" and (id_column, caption_column) != ("idx", "text"):
        raise ValueError(f"{path} is read as text, one caption per line, which has no columns to name.")
    schema = Schema(("text",)) if kind == "text" else Schema.parse(input_schema)
    source = CaptionFile(path, kind, schema, id_column, caption_column, str(path))
    next(source.rows(), None)  # a file of another kind is found out here
    return source


def from_stream(stream: BinaryIO, kind: CaptionKind | None = None, **columns: str) -> CaptionFile:
    """
    Captions from standard input, copied to a temporary file because they are read twice; by default one caption per
    line. For `columns` and errors see [`find_captions`].
    """
    folder = tempfile.TemporaryDirectory(prefix="pai-painter-")
    path = Path(folder.name) / "standard input"
    with open(path, "wb") as file:
        shutil.copyfileobj(stream, file)
    try:
        source = find_captions(path, kind=kind or "text", **columns)
    except ValueError as error:  # of a file that the user has never seen
        raise ValueError(str(error).replace(str(path), path.name)) from error
    return replace(source, name=path.name, keeper=folder)
