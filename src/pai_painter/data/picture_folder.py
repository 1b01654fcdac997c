# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures with a table of captions beside them, as the datasets library's imagefolder has it."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .file_kinds import kind_of_file
from .picture_rows import FileSource, PictureRow, Record, RowReader, hash_of_file
from .tsv import MAX_LINE_BYTES, BadRow

__all__ = ["METADATA_FILES", "PictureFolders"]

METADATA_FILES = ("metadata.csv", "metadata.jsonl")

# NUL, and the halves of surrogate pairs that don't stand for a byte.
_NO_NAME = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True)
class PictureFolders(FileSource):
    """
    Folders with a metadata.csv or metadata.jsonl: columns `file_name` and captions.

    The tables are read here and not by the datasets library, which takes the captions `NA` and `null` for missing
    ones and the id `003` for the number 3.

    Args:
        paths (`tuple[Path, ...]`): The metadata files; pictures lie in the same folder or below.
    """

    def __post_init__(self) -> None:
        for path in self.paths:
            kind = kind_of_file(path)
            if kind != "plain text":
                raise ValueError(f"{path} is no table of captions: it looks like {kind}.")
            self.columns.check(str(path), _columns_of(path), self.image)

    @property
    def image(self) -> str:
        # In the datasets library's words, the file named in `file_name` is the column `image`.
        return "file_name" if self.columns.image in (None, "image") else str(self.columns.image)

    @property
    def options(self) -> list[Any]:
        suffixes = [path.suffix for path in self.paths]
        used = [self.columns.idx, self.columns.caption, self.image, self.columns.caption_separator]
        return ["folder", suffixes, *used]

    @cached_property
    def _readers(self) -> list[RowReader]:
        return [RowReader(self, self.columns, self.image, self.columns.idx in _columns_of(path)) for path in self.paths]

    def content_hash(self) -> str:
        """Of the tables and of the pictures named in them."""
        digest = hashlib.sha256()
        for part, path in enumerate(self.paths):
            digest.update(f"table {hash_of_file(path)}".encode())
            for record in self.records(part):
                try:
                    picture = self._picture_path(record)
                    content = hash_of_file(picture) if picture.is_file() else "missing"
                except BadRow:
                    continue  # what is wrong with it stands in the table
                except OSError as error:
                    content = str(error.errno)
                digest.update(f" {content}".encode())
        return digest.hexdigest()

    def records(self, part: int) -> Iterator[Record]:
        path = self.paths[part]
        table = _read_csv(path) if path.suffix == ".csv" else _read_jsonl(path)
        for number, (line, values) in enumerate(table, 1):
            yield Record(part, line, (number, values))

    def read(self, record: Record) -> PictureRow:
        number, values = record.content
        file = self.parts[record.part]
        path = self._picture_path(record)
        try:
            if not path.is_file():
                raise BadRow(file, record.line, f"There is no picture {values[self.image]}.", self._idx(record))
            if path.stat().st_size > MAX_LINE_BYTES:
                reason = f"The picture {values[self.image]} is larger than {MAX_LINE_BYTES} bytes."
                raise BadRow(file, record.line, reason, self._idx(record))
            picture = path.read_bytes()
        except OSError as error:
            reason = f"The picture {values[self.image]} can't be read: {error.strerror}."
            raise BadRow(file, record.line, reason, self._idx(record)) from error
        return self._readers[record.part].read(record, {**values, self.image: picture}, number)

    def _picture_path(self, record: Record) -> Path:
        """Inside the folder, whatever the table says: it may come from a stranger."""
        _, values = record.content
        file = self.parts[record.part]
        if isinstance(values, str):
            raise BadRow(file, record.line, values)
        name = values.get(self.image)
        if not isinstance(name, str) or not name:
            raise BadRow(file, record.line, f"The picture's name ({self.image}) is missing.", self._idx(record))
        if _NO_NAME.search(name):
            raise BadRow(file, record.line, f"No file can have the name {name!r}.", self._idx(record))
        table = self.paths[record.part]
        path = Path(os.path.realpath(table.parent / name))
        # In the Hub's cache the table and the pictures alike are links into one folder of blobs.
        homes = (os.path.realpath(table.parent), os.path.dirname(os.path.realpath(table)))
        if not any(path.is_relative_to(home) for home in homes):
            raise BadRow(file, record.line, f"The picture {name} lies outside of the folder.", self._idx(record))
        return path

    def _idx(self, record: Record) -> str:
        number, values = record.content
        if self._readers[record.part].has_ids and values.get(self.columns.idx) is not None:
            return str(values[self.columns.idx])
        return self.number_of(record, number)


def _columns_of(path: Path) -> list[str]:
    """The header of a CSV, the fields of the first usable row of JSON lines."""
    if path.suffix == ".csv":
        with _open_text(path) as file:
            try:
                return next(csv.reader(file, strict=True), [])
            except csv.Error as error:
                raise ValueError(f"{path} has no header that can be read: {error}.") from error
    return next((list(values) for _, values in _read_jsonl(path) if isinstance(values, dict)), [])


def _open_text(path: Path) -> Any:
    # Bytes that aren't UTF-8 come through as what no text may hold, so that their row can be refused alone.
    return open(path, newline="", encoding="utf-8-sig", errors="surrogateescape")


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Line and cells, or line and what is wrong with it."""
    with _open_text(path) as file:
        reader = csv.reader(file, strict=True)
        header = next(reader)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):  # it would swallow all rows behind it
                    raise ValueError(
                        f"{path}, line {line}: a quotation mark is opened that is never closed."
                    ) from error
                yield line, f"The row is no CSV: {error}."
                continue
            if len(cells) == len(header):
                yield line, dict(zip(header, cells, strict=True))
            elif cells:
                yield line, f"The row has {len(cells)} cells instead of {len(header)} ({', '.join(header)})."


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open(path, "rb") as file:
        for line, content in enumerate(file, 1):
            content = content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content
            if not content.strip():
                continue
            try:
                values = json.loads(content)
            except (ValueError, RecursionError) as error:
                yield line, f"The row is no JSON: {error}."
                continue
            yield line, values if isinstance(values, dict) else "The row is no JSON object."
