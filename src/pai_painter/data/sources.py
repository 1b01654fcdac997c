# SPDX-License-Identifier: Apache-2.0
"""
From whatever the user names (files, patterns, folders, a data set) to rows with the columns `idx, captions, picture`.

TSV, CSV and JSON lines are read by `table_files`, everything else by the datasets library.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from ..printable import printable
from .cells import PATH_COLUMN, Columns, captions_of, id_of, is_base64, picture_of
from .folder_files import list_folder, read_inside
from .library_readers import (
    FAILURES,
    NamedDataset,
    check_archive,
    check_parquet,
    in_short,
    read_archive,
    read_parquet,
)
from .open_picture import BadPicture
from .table_files import BadRow, Schema, check_file, columns_of, hash_of_file, open_lines, read_table

__all__ = ["FEATURES", "DataSource", "find_source"]

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "idx": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "picture": datasets.Value("binary"),  # the picture's file
        "part": datasets.Value("int32"),  # where the row is: its file's place in `parts`, and its line there
        "line": datasets.Value("int64"),
        "reason": datasets.Value("string"),  # why it can't be used, or None
    }
)
_SUFFIXES = {
    "tsv": (".tsv", ".txt", ".tsv.gz", ".txt.gz"),
    "table": (".csv", ".jsonl", ".csv.gz", ".jsonl.gz"),
    "parquet": (".parquet",),
    "tar": (".tar", ".tar.gz", ".tgz"),
}
_TABLES = ("metadata.csv", "metadata.jsonl")
_IMAGE_COLUMNS = (PATH_COLUMN, "image", "imgbase64", "base64")


@dataclass(frozen=True)
class DataSource:
    """
    What the user named, found and checked by its head. Made by [`find_source`].

    Args:
        kind (`str`): tsv, table (CSV and JSON lines), parquet, tar (WebDataset), folder or dataset.
        parts (`tuple[str, ...]`): The files or folders in order, or the shards of a data set.
        columns, schema, image_folder: See [`find_source`].
        named ([`NamedDataset`], *optional*): What a data set is read from.
    """

    kind: str
    parts: tuple[str, ...]
    columns: Columns
    schema: Schema | None = None
    image_folder: Path | None = None
    named: NamedDataset | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The source in a sentence."""
        return self.parts[0] if len(self.parts) == 1 else f"{self.parts[0]} and {len(self.parts) - 1} more"

    @property
    def advice(self) -> str:
        """What may help if no row or few can be used."""
        if self.schema is None:
            return ""
        return f" Please check `input_schema` ({','.join(self.schema.columns)})."

    @property
    def options(self) -> list[Any]:
        """What decides about the rows beside the files' content, as JSON has it."""
        schema = None if self.schema is None else list(self.schema.columns)
        named = None if self.named is None else self.named.options
        return [self.kind, *vars(self.columns).values(), self.images, schema, named]

    @cached_property
    def images(self) -> list[str]:
        """The column of pictures in each part."""
        if self.columns.image is not None:
            return [self.columns.image] * len(self.parts)
        if self.kind == "table":
            heads = [columns_of(Path(part)) for part in self.parts]
            return [next((name for name in _IMAGE_COLUMNS if name in head), PATH_COLUMN) for head in heads]
        return ["imgbase64" if self.kind == "tsv" else "image"] * len(self.parts)

    def content_hash(self) -> str:
        """SHA-256 of the content, whatever the files are called: a changed file is never mistaken for the old one."""
        if self.kind in ("tsv", "parquet", "tar"):
            return hashlib.sha256(" ".join(hash_of_file(Path(part)) for part in self.parts).encode()).hexdigest()
        if self.named is not None and self.named.fingerprint is not None:
            return self.named.fingerprint
        digest = hashlib.sha256()
        for row in map(self.read, self.records()):
            picture = hashlib.sha256(row["picture"] or b"").hexdigest()
            digest.update(json.dumps([row["line"], row["idx"], row["captions"], picture, row["reason"]]).encode())
        return digest.hexdigest()

    def stamp(self) -> list[Any]:
        """What changes when somebody writes to a file, for data that is too large to be read just for a hash."""
        roots = [str(self.named.folder)] if self.named is not None and self.named.folder is not None else self.parts
        files = [path for root in map(Path, roots) for path in (sorted(root.rglob("*")) if root.is_dir() else [root])]
        found = [(path.name, path.stat() if path.exists() else None) for path in files]
        return [[name, status and (status.st_size, status.st_mtime_ns)] for name, status in found]

    def rows(self) -> datasets.IterableDataset:
        """The rows in order, good and bad, with the columns of `FEATURES`. Their pictures have not been opened yet."""
        parts = list(range(len(self.parts)))
        return datasets.IterableDataset.from_generator(_rows, FEATURES, {"source": self, "parts": parts})

    def records(self, parts: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of some parts, or of all, as they stand in their files, for [`read`]: to skip one costs little."""
        for part in range(len(self.parts)) if parts is None else parts:
            for line, cells, reason in _read_part(self, part):
                yield {"part": part, "line": line, "cells": cells, "reason": reason}

    def read(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record as a row of `FEATURES`; what is wrong with it is its `reason`."""
        part, cells, reason = record["part"], record["cells"], record["reason"]
        row = {"idx": None, "captions": [], "picture": None, "part": part, "line": record["line"], "reason": reason}
        try:
            if reason is None or self.columns.idx in cells or self.kind == "folder":
                row["idx"] = id_of(cells.get(self.columns.idx), self._own_id(part, record["line"], cells))
            if reason is None:
                if self.kind == "folder":
                    cells = {"text": _text_of(Path(self.parts[part]), cells[PATH_COLUMN]), **cells}
                caption = "text" if self.kind in ("folder", "tar") else self.columns.caption
                row["captions"] = captions_of(cells.get(caption), self.columns.caption_separator)
                row["picture"] = self._picture(part, cells)
        except ValueError as error:
            row["reason"] = str(error)
        return row

    def bad_row(self, row: dict[str, Any]) -> BadRow:
        """What is wrong with a row, and where it is."""
        return BadRow(self.parts[row["part"]], row["line"], row["reason"], row["idx"])

    def _own_id(self, part: int, line: int, cells: dict[str, Any]) -> str:
        """The id of a row without one: its picture's path or its number, unlike any in the source's other parts."""
        cell, column = cells.get(self.images[part]), self.images[part]
        own = cells[PATH_COLUMN] if self.kind == "folder" else str(line)
        if self.kind == "table" and isinstance(cell, str) and cell.strip() and not is_base64(cell.strip(), column):
            own = cell.strip()
        return own if len(self.parts) == 1 else f"{part + 1}-{own}"

    def _picture(self, part: int, cells: dict[str, Any]) -> bytes:
        if self.kind == "folder":
            return read_inside(Path(self.parts[part]), cells[PATH_COLUMN])
        column = "image" if self.kind == "tar" else self.images[part]
        cell = cells.get(column)
        if self.kind == "table":
            if not isinstance(cell, str) or not cell.strip():
                raise BadPicture(f"The picture ({column}) is missing.")
            if not is_base64(cell.strip(), column):
                return read_inside(self.image_folder or Path(self.parts[part]).parent, cell.strip())
        if self.named is not None and isinstance(cell, dict) and cell.get("bytes") is None:
            cell = self.named.read_picture(cell)
        return picture_of(cell)


def _text_of(folder: Path, picture: str) -> str:
    name = str(Path(picture).with_suffix(".txt"))
    try:
        return read_inside(folder, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The caption in {name} is not UTF-8.") from error


def _rows(source: DataSource, parts: list[int]) -> Iterator[dict[str, Any]]:
    yield from map(source.read, source.records(parts))


def _read_part(source: DataSource, part: int) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    path, columns = Path(source.parts[part]), source.columns
    if source.kind in ("tsv", "table"):
        yield from read_table(path, source.schema)
        return
    if source.kind == "folder":
        for line, (name, reason) in enumerate(list_folder(path)[0], 1):
            yield line, {PATH_COLUMN: name}, reason
        return
    line = 0
    try:
        if source.named is not None:
            rows = source.named.shard(part)
        elif source.kind == "tar":
            rows = read_archive(path, columns)
        else:
            rows = read_parquet(path, [columns.caption, source.images[part], columns.idx])
        for line, cells in enumerate(rows, 1):
            yield line, cells, None
    except FAILURES as error:
        raise ValueError(f"{source.parts[part]} can't be read after row {line}: {in_short(error)}") from error


def find_source(
    files: Sequence[str | Path] | None,
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    input_schema: str = "idx:str:1,text:str:1,imgbase64:str:1",
    id_column: str = "idx",
    caption_column: str = "text",
    image_column: str | None = None,
    caption_separator: str | None = None,
    image_folder: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> DataSource:
    """
    Finds out what kind of data the user has and checks the head of every file. Rows are not read yet.

    Args:
        files:
            Files, patterns such as `data/*.tsv`, or folders of pictures with a metadata.csv or metadata.jsonl or with
            a text file beside each picture; all of one kind. They are read in this order, those of a pattern sorted by
            name.
        dataset_name: instead of files, a data set on the Hub or a folder that the datasets library can read.
        dataset_config_name, split: its configuration and split.
        streaming: read a data set on the Hub over the network instead of downloading it.
        input_schema: the columns of TSV files, such as `idx:str:1,text:str:1,imgbase64:str:1`.
        id_column:
            The column of ids. Without a column `idx` (the default), rows have their numbers or the paths of their
            pictures as ids; with several files `2-17` is row 17 of the second.
        caption_column:
            The column of captions: a text, or a list of texts. WebDataset shards have it in a file `.txt` or in the
            fields `text` or `caption` of `.json`.
        image_column:
            The column of pictures, by default `imgbase64` in TSV files, the first of `file_name`, `image`, `imgbase64`
            and `base64` in CSV and JSON lines, the first picture in a sample of WebDataset shards, and `image` in all
            others.
        caption_separator: splits a cell with several captions of one picture.
        image_folder: what the paths in CSV and JSON lines start from; the folder of each file by default.
        cache_dir: where the datasets library keeps what it downloads.

    Raises:
        ValueError:
            If nothing or too much is named, a file isn't there, is empty, of another kind or damaged at its head, the
            files are of several kinds, or a column is missing.
    """
    columns = Columns(id_column, caption_column, image_column, caption_separator)
    if dataset_name is not None:
        if files:
            raise ValueError("Both files and `dataset_name` are given: please give one of them.")
        named = NamedDataset(dataset_name, dataset_config_name, split, columns, cache_dir, streaming)
        return DataSource("dataset", named.parts, columns, named=named)
    if isinstance(files, (str, Path)):  # a string is a sequence of strings, too
        raise ValueError(f"files is {str(files)!r}, but must be a list of files.")
    paths = [path for name in files or () for path in _find_files(str(name))]
    if not paths:
        raise ValueError("There are no data: please give files (`train_file`) or a `dataset_name`.")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{max(paths, key=paths.count)} is named twice: please name every file once.")
    kinds = [_kind_of(path) for path in paths]
    if len(set(kinds)) > 1:
        other = paths[next(place for place, kind in enumerate(kinds) if kind != kinds[0])]
        raise ValueError(f"{paths[0]} and {other} are of different kinds: please give files of one kind.")
    if image_folder is not None and kinds[0] != "table":
        raise ValueError(f"image_folder is for the paths in CSV and JSON lines, and {paths[0]} is neither.")
    schema = Schema.parse(input_schema) if kinds[0] == "tsv" else None
    folder = None if image_folder is None else Path(image_folder)
    source = DataSource(kinds[0], tuple(map(str, paths)), columns, schema, folder)
    for part, path in enumerate(paths):
        _check_head(source, part, path)
    return source


def _check_head(source: DataSource, part: int, path: Path) -> None:
    columns = source.columns
    if source.kind == "folder":
        _check_folder(path)
    elif source.kind == "tar":
        check_archive(path)
    elif source.schema is not None:
        columns.check("The schema", list(source.schema.columns), source.images[part])
        open_lines(path)
    else:
        there = columns_of(path) if source.kind == "table" else check_parquet(path)
        columns.check(str(path), there, source.images[part])


def _check_folder(folder: Path) -> None:
    rows, others = list_folder(folder)
    if not any((folder / name).with_suffix(".txt").exists() for name, _ in rows):
        listed = printable(", ".join([*(name for name, _ in rows), *others][:5])) or "nothing"
        raise ValueError(
            f"{folder} is a folder without {' or '.join(_TABLES)}, and none of its pictures has a .txt file of the "
            f"same name (it holds {listed}): please name its files, or give it as `dataset_name`."
        )
    if others:
        shown = printable(", ".join(others[:5])) + (", …" if len(others) > 5 else "")
        logger.warning("Neither pictures nor their texts, and left out: %s of %s.", shown, folder)


def _find_files(name: str) -> list[Path]:
    """A name as it stands if there is such a file, else a pattern; of a folder, its table if it has one."""
    if os.path.exists(name) or not glob.has_magic(name):
        return [_table_of(Path(name))]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise ValueError(f"No file matches {name}.")
    return [_table_of(Path(path)) for path in found]


def _table_of(path: Path) -> Path:
    tables = [path / name for name in _TABLES if (path / name).is_file()]
    if len(tables) == 2:
        raise ValueError(f"The folder {path} has both {' and '.join(_TABLES)}: please name the one to use.")
    return tables[0] if tables else path


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "folder"
    check_file(path)
    for kind, suffixes in _SUFFIXES.items():
        if path.name.lower().endswith(suffixes):
            return kind
    raise ValueError(
        f"The kind of {path} is not known by its name; allowed are TSV (.tsv, .txt), CSV (.csv), JSON lines (.jsonl), "
        "Parquet (.parquet), WebDataset shards (.tar), and folders of pictures."
    )
