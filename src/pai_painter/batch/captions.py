# SPDX-License-Identifier: Apache-2.0
"""Captions from a table, a text or standard input, one row at a time."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from ..data.csv_jsonl import columns_of, read_table
from ..data.file_kinds import kind_of_file
from ..data.picture_rows import hash_of_file
from ..data.tsv import BadRow, Layout, Schema, open_lines, parse_row

__all__ = ["CaptionFile", "CaptionKind", "CaptionRow", "find_captions", "from_stream"]

CaptionKind = Literal["tsv", "csv", "jsonl", "parquet", "text"]

_ENDINGS: dict[str, CaptionKind] = {
    ".tsv": "tsv",
    ".tsv.gz": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".txt.gz": "text",
}
_USUAL_SCHEMA, _USUAL_COLUMNS = "idx:str:1,text:str:1", ("idx", "text")
_BATCH = 1024
_BROKEN = re.compile(r"[\ud800-\udfff]")
_NOT_IN_AN_ID = re.compile(r"[\t\r\n]")


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """
    Args:
        line (`int`): Its line in the file, or its number in a Parquet file, from 1.
        idx (`str`): Its id.
        text (`str`): The caption as it is written.
    """

    line: int
    idx: str
    text: str

    @property
    def caption(self) -> str:
        """What is painted."""
        return self.text.strip()


@dataclass(frozen=True)
class CaptionFile:
    """
    A file of captions; it may be read as often as one likes. Made by [`find_captions`] or [`from_stream`].

    Args:
        path (`Path`): The file.
        kind (`str`): How it is read.
        schema ([`Schema`]): Columns of a TSV.
        id_column, caption_column (`str`): The columns that count. Without a column `idx` (the default), a row's id is
            its line.
        name (`str`): What messages call it.
        resumable (`bool`): Whether the same captions can be had again.
    """

    path: Path
    kind: CaptionKind
    schema: Schema
    id_column: str
    caption_column: str
    name: str
    resumable: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """What decides about the rows beside the file's content."""
        schema = ",".join(self.schema.columns) if self.kind == "tsv" else None
        columns = (None, None) if self.kind == "text" else (self.id_column, self.caption_column)
        return {"kind": self.kind, "schema": schema, "id_column": columns[0], "caption_column": columns[1]}

    def content_hash(self) -> str:
        """SHA-256 of the file."""
        return hash_of_file(self.path)

    def stamp(self) -> tuple[int, int]:
        """Changes when somebody writes to the file."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def rows(self) -> Iterator[CaptionRow | BadRow]:
        """
        The rows in order, good and bad, so that the n-th is the same whenever they are read.

        Raises:
            ValueError: if the file isn't what it should be, or is damaged from some place on.
        """
        reader = {"tsv": self._tsv, "text": self._text, "parquet": self._parquet}.get(self.kind, self._records)
        for row in reader():
            yield row if isinstance(row, BadRow) else self._checked(row)

    def _checked(self, row: CaptionRow) -> CaptionRow | BadRow:
        if not row.idx.strip() or _NOT_IN_AN_ID.search(row.idx) or _BROKEN.search(row.idx):
            return BadRow(self.name, row.line, f"The id {row.idx!r} is empty, not UTF-8, or has line breaks or tabs.")
        if _BROKEN.search(row.text):
            return BadRow(self.name, row.line, "The caption is not UTF-8, or holds half a surrogate pair.", row.idx)
        return row if row.caption else BadRow(self.name, row.line, "The caption is empty.", row.idx)

    def _tsv(self) -> Iterator[CaptionRow | BadRow]:
        has_ids = self.id_column in self.schema.columns or self.id_column != "idx"
        layout = Layout(self.schema, self.id_column if has_ids else None, self.caption_column, None)
        for line, content in open_lines(self.path):
            try:
                row = parse_row(self.name, line, content, layout)
            except BadRow as bad:
                yield bad
            else:
                yield CaptionRow(line, row.idx, row.text)

    def _text(self) -> Iterator[CaptionRow | BadRow]:
        layout = Layout(Schema(("text",)), None, "text", None)
        for line, content in open_lines(self.path):
            try:
                if content is not None and b"\t" in content:
                    raise BadRow(self.name, line, "The line has a tab: for a TSV please set the input format to tsv.")
                row = parse_row(self.name, line, content, layout)
            except BadRow as bad:
                yield bad
            else:
                yield CaptionRow(line, str(line), row.text)

    def _records(self) -> Iterator[CaptionRow | BadRow]:
        for line, values in read_table(self.path):
            yield BadRow(self.name, line, values) if isinstance(values, str) else self._record(line, values)

    def _parquet(self) -> Iterator[CaptionRow | BadRow]:
        import pyarrow
        import pyarrow.parquet

        line = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                wanted = [name for name in (self.id_column, self.caption_column) if name in file.schema_arrow.names]
                for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
                    for values in batch.to_pylist():
                        line += 1
                        yield self._record(line, values)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(f"{self.name} is damaged after row {line}: {reason}.") from error

    def _record(self, line: int, values: dict[str, Any]) -> CaptionRow | BadRow:
        idx, text = values.get(self.id_column), values.get(self.caption_column)
        if idx is None:
            idx = line
        if isinstance(idx, bool) or not isinstance(idx, (str, int)):
            return BadRow(self.name, line, f"The id in {self.id_column!r} is neither a string nor a whole number.")
        if text is None:
            return BadRow(self.name, line, f"The row has no {self.caption_column!r}.", str(idx))
        if not isinstance(text, str):
            return BadRow(self.name, line, f"The caption is no text, but {type(text).__name__}.", str(idx))
        return CaptionRow(line, str(idx), text)


def find_captions(
    path: str | Path,
    *,
    kind: CaptionKind | None = None,
    input_schema: str = _USUAL_SCHEMA,
    id_column: str = "idx",
    caption_column: str = "text",
) -> CaptionFile:
    """
    Looks at the head of a file of captions.

    Args:
        path (`str` or `Path`): The file.
        kind (`str`, *optional*): `"tsv"`, `"csv"`, `"jsonl"`, `"parquet"` or `"text"` (a caption a line); by default as
            the name ends: .tsv, .csv, .jsonl, .parquet or .txt.
        input_schema (`str`, *optional*): Columns of a TSV, which has no header.
        id_column, caption_column (`str`, *optional*): The columns of ids and captions. A table without a column `idx`
            has the lines as ids.

    Raises:
        ValueError: if there is no such file, if it is empty or of another kind, if a column is missing, or if columns
            are named that this kind doesn't have.
    """
    path = Path(path)
    if kind is None:
        kind = next((kind for ending, kind in _ENDINGS.items() if path.name.lower().endswith(ending)), None)
        if kind is None:
            raise ValueError(
                f"The kind of {path} is not known by its name (.tsv, .csv, .jsonl, .parquet, .txt): please set the "
                f"input format."
            )
    elif kind not in get_args(CaptionKind):
        raise ValueError(f"The input format is one of {', '.join(get_args(CaptionKind))}, not {kind!r}.")
    if kind != "tsv" and input_schema != _USUAL_SCHEMA:
        raise ValueError(f"An input schema is for TSV, but {path} is read as {kind}: please set the input format.")
    if kind == "text" and (id_column, caption_column) != _USUAL_COLUMNS:
        raise ValueError(f"{path} is read as text, a caption a line, which has no columns to name.")
    source = CaptionFile(path, kind, Schema.parse(input_schema), id_column, caption_column, str(path))
    _check_head(source)
    return source


@contextmanager
def from_stream(stream: BinaryIO, kind: CaptionKind | None = None, **columns: str) -> Iterator[CaptionFile]:
    """
    Captions from standard input: they are kept in a temporary file, since a plan needs all of them; by default a
    caption a line. For `columns` see [`find_captions`].

    Raises:
        ValueError: if there are none, or if they are of another kind.
    """
    kind = "text" if kind is None else kind
    with tempfile.TemporaryDirectory(prefix="pai-painter-") as folder:
        path = Path(folder) / f"captions.{kind}"
        with open(path, "wb") as file:
            shutil.copyfileobj(stream, file)
        if not path.stat().st_size:
            raise ValueError("There are no captions on standard input.")
        try:
            source = find_captions(path, kind=kind, **columns)
        except ValueError as error:  # of a file that the user has never seen
            raise ValueError(str(error).replace(str(path), "standard input")) from error
        yield replace(source, name="standard input", resumable=False)


def _check_head(source: CaptionFile) -> None:
    path, columns = source.path, None
    if path.is_dir():
        raise ValueError(f"{path} is a folder: please give a file of captions.")
    if source.kind in ("tsv", "text"):
        open_lines(path)
        if source.kind == "tsv":
            columns = list(source.schema.columns)
    elif source.kind == "parquet":
        columns = _parquet_columns(path)
    else:
        if source.kind == "csv" and path.suffix.lower() != ".csv":
            raise ValueError(f"{path} is read as CSV if its name ends in .csv: please rename it.")
        columns = columns_of(path)
    if columns is None:
        return
    for column, option in ((source.caption_column, "caption_column"), (source.id_column, "id_column")):
        if column not in columns and (column, option) != ("idx", "id_column"):
            there = ", ".join(map(repr, columns)) or "none at all"
            raise ValueError(f"{path} has no column {column!r}, but {there}: please set `{option}`.")


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    kind = kind_of_file(path)
    if kind != "a Parquet file":
        raise ValueError(f"{path} is no Parquet file: it looks like {kind}.")
    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is a damaged Parquet file: {str(error).partition(chr(10))[0]}") from error
