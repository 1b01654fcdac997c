# SPDX-License-Identifier: Apache-2.0
"""Captions from a table, a text or standard input, one row at a time."""

import array
import hashlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args

import numpy as np

from ..data.cells import captions_of
from ..data.table_files import Schema, check_file, read_table

CaptionKind = Literal["tsv", "csv", "jsonl", "parquet", "text"]

_USUAL_SCHEMA = "idx:str:1,text:str:1"
_NOT_IN_AN_ID = re.compile(r"[\t\r\n\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A row of captions, good or bad."""

    line: int  # in Parquet its number; from 1
    idx: str | None
    text: str  # the caption as it is written
    reason: str | None = None  # why it can't be painted


@dataclass(frozen=True)
class CaptionFile:
    """A file of captions, which may be read any number of times: from [`find_captions`] or [`from_stream`]."""

    path: Path
    kind: CaptionKind
    schema: Schema | None  # of a TSV or a text
    id_column: str
    caption_column: str
    name: str  # what messages call it
    keeper: Any = field(default=None, repr=False)  # what keeps a temporary file alive

    @property
    def options(self) -> dict[str, Any]:
        """What decides about the rows besides the file's content."""
        columns = {"id_column": self.id_column, "caption_column": self.caption_column}
        return {"kind": self.kind, "schema": self.schema and ",".join(self.schema.columns), **columns}

    def stamp(self) -> tuple[int, int]:
        """Changes when somebody writes to the file."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def rows(self) -> Iterator[CaptionRow]:
        """The rows in order, good and bad; a `ValueError` if the file isn't what it should be, or is damaged."""
        is_parquet = self.kind == "parquet"
        table = self._read_parquet() if is_parquet else read_table(self.path, self.schema, self.kind == "csv")
        for number, (line, cells, reason) in enumerate(table, 1):
            idx, text = cells.get(self.id_column), cells.get(self.caption_column)
            if idx is None and self.id_column == "idx" and reason is None:
                idx = number
            reason = reason or self._reason_against(idx, text)
            yield CaptionRow(line, None if idx is None else str(idx), str(text), reason)

    def _read_parquet(self) -> Iterator[tuple[int, dict[str, Any], str | None]]:
        from ..data.readers import read_parquet  # which needs libraries of the extra `train`

        try:
            rows = read_parquet(self.path, sorted({self.id_column, self.caption_column}))
            yield from ((number, cells, None) for number, cells in enumerate(rows, 1))
        except (OSError, ValueError) as error:  # Arrow's are ValueErrors
            raise ValueError(f"{self.name} can't be read as Parquet: {str(error).splitlines()[0]}.") from error

    def _reason_against(self, idx: Any, text: Any) -> str | None:
        if isinstance(idx, bool) or not isinstance(idx, str | int):
            return f"The id in {self.id_column!r} is neither text nor a whole number."
        if not str(idx).strip() or _NOT_IN_AN_ID.search(str(idx)):
            return f"The id {idx!r} is empty, not UTF-8, or has a tab, a line break or NUL."
        if not isinstance(text, str):
            return f"There is no text in {self.caption_column!r}."
        try:
            captions_of(text, None)
        except ValueError as error:
            return str(error)
        return None


def find_captions(
    path: str | Path,
    *,
    kind: CaptionKind | None = None,
    input_schema: str = _USUAL_SCHEMA,
    id_column: str = "idx",
    caption_column: str = "text",
) -> CaptionFile:
    """
    Names a file of captions, and looks at its first row.

    Args:
        path (`str` or `Path`): The file. Tables of text may be compressed with gzip.
        kind (`str`, *optional*): `"tsv"`, `"csv"`, `"jsonl"`, `"parquet"` or `"text"` (one caption per line); by
            default as the name ends: .tsv, .csv, .jsonl, .parquet or .txt.
        input_schema (`str`, *optional*): Columns of a TSV, which has no header.
        id_column, caption_column (`str`, *optional*): The columns of ids and captions. In a table without a column
            `idx`, ids are the numbers of the rows.

    Raises:
        ValueError: if there is no such file, if it is no regular file, or if options don't go with its kind.
    """
    path = Path(path)
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    kind = kind or cast(CaptionKind, "text" if ending == "txt" else ending)
    if kind not in get_args(CaptionKind):
        known = ", ".join(get_args(CaptionKind))
        raise ValueError(f"Please set the input format of {path} to one of {known}, got {kind!r}.")
    check_file(path)  # opening a pipe may wait forever
    if kind != "tsv" and input_schema != _USUAL_SCHEMA:
        raise ValueError(f"An input schema is for TSV, but {path} is read as {kind}: please set the input format.")
    if kind == "text" and (id_column, caption_column) != ("idx", "text"):
        raise ValueError(f"{path} is read as text, one caption per line, which has no columns to name.")
    schemas = {"text": Schema(("text",)), "tsv": Schema.parse(input_schema)}
    source = CaptionFile(path, kind, schemas.get(kind), id_column, caption_column, str(path))
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


@dataclass(frozen=True)
class Survey:
    """What one look at all captions has shown: their number, the file's hash and stamp, hashes of repeated ids."""

    source: CaptionFile
    rows: int
    sha256: str
    stamp: tuple[int, int]
    repeated: frozenset[int]

    def shards(self, size: int) -> Iterator[list[CaptionRow]]:
        """
        The rows in lists of `size`; one with an earlier row's id comes as a bad one. A `ValueError` if the file was
        changed since it was surveyed.
        """
        rows = self._checked_rows()
        while True:
            shard = list(itertools.islice(rows, size))
            if self.source.stamp() != self.stamp:
                raise ValueError(f"{self.source.name} was changed while it was read: please run the command again.")
            if not shard:
                return
            yield shard

    def _checked_rows(self) -> Iterator[CaptionRow]:
        seen: set[int] = set()
        for row in self.source.rows():
            if self.repeated and row.reason is None and (hashed := hash(row.idx)) in self.repeated:
                if hashed in seen:
                    row = replace(row, reason="An earlier row has the same id.")
                seen.add(hashed)
            yield row


def survey_captions(source: CaptionFile) -> Survey:
    """Reads all captions once, in nine bytes per row for the ids; a `ValueError` if none of them can be used."""
    stamp, ids = source.stamp(), array.array("q")
    rows, bad = 0, None
    for row in source.rows():
        rows += 1
        if row.reason is None:
            ids.append(hash(row.idx))
        else:
            bad = bad or row
    if not ids:
        example = f" For example row {bad.line}: {bad.reason}" if bad else ""
        raise ValueError(f"{source.name} has no caption that can be used.{example}")
    hashes = np.frombuffer(ids, dtype=np.int64)
    hashes.sort()  # in place: a copy would double the memory
    repeated = frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    with open(source.path, "rb") as file:
        return Survey(source, rows, hashlib.file_digest(file, "sha256").hexdigest(), stamp, repeated)
