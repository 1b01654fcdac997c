# SPDX-License-Identifier: Apache-2.0
"""From whatever the user names (files, patterns, folders, a data set) to rows with `idx`, `captions` and `picture`."""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from ..printable import printable
from . import readers
from .cells import captions_of, id_of, picture_of
from .open_picture import BadPicture, open_picture
from .table_files import Row, Schema, check_file, read_table

_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("int64")
# A row's `picture` is its file, `part` its place in the source's `parts`, `line` its place there, and `reason` says why
# it can't be used.
FEATURES = datasets.Features(
    idx=_TEXT, captions=datasets.List(_TEXT), picture=datasets.Value("binary"), part=_NUMBER, line=_NUMBER, reason=_TEXT
)
_SUFFIXES = {"tsv": (".tsv", ".txt"), "table": (".csv", ".jsonl"), "parquet": (".parquet",), "tar": (".tar", ".tgz")}
_PATHS = "file_name"  # the column that holds paths and nothing else, as the datasets library has it
_IMAGE_COLUMNS = {"tsv": ("imgbase64",), "table": (_PATHS, "image", "imgbase64", "base64"), "folder": (_PATHS,)}

Record = tuple[int, int, dict[str, Any], str | None]  # a row's part, line, cells by column, and what is wrong with it


@dataclass(frozen=True)
class DataSource:
    """What the user named, found and checked by its head. Made by [`find_source`], which explains most of this."""

    kind: str  # tsv, table (CSV and JSON lines), parquet, tar (WebDataset), folder or dataset
    parts: tuple[str, ...]  # the files or folders in order, or the shards of a data set
    id_column: str
    caption_column: str
    image_column: str | None
    caption_separator: str | None
    schema: Schema | None = None
    image_folder: Path | None = None
    named: readers.NamedDataset | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The source in a sentence."""
        return self.parts[0] if len(self.parts) == 1 else f"{self.parts[0]} and {len(self.parts) - 1} more"

    @property
    def image_columns(self) -> tuple[str, ...]:
        """The columns of which the first that is there holds the picture."""
        return (self.image_column,) if self.image_column else _IMAGE_COLUMNS.get(self.kind, ("image",))

    @property
    def options(self) -> list[Any]:
        """What decides about the rows besides the files' content."""
        columns = [self.id_column, self.caption_column, self.image_column, self.caption_separator]
        return [self.kind, *columns, self.schema and self.schema.columns, self.named and self.named.options]

    @property
    def paths(self) -> list[Path]:
        """The files and folders that are read."""
        if self.named is not None:
            return [self.named.folder] if self.named.folder else []
        return [Path(part) for part in self.parts]

    def content_hash(self) -> str:
        """SHA-256 of the content, whatever the files are called: a changed file is never mistaken for the old one."""
        if self.named is not None and self.named.fingerprint is not None:
            return self.named.fingerprint
        digest = hashlib.sha256()
        if self.kind in ("tsv", "parquet", "tar"):
            for path in self.paths:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            for row in self.rows():
                row["picture"] = hashlib.sha256(row["picture"] or b"").hexdigest()
                digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def stamp(self) -> list[Any]:
        """What changes when somebody writes to a file, for data that is too large to be read just for a hash."""
        if not self.paths:
            return list(self.parts)
        files = [path for root in self.paths for path in (sorted(root.rglob("*")) if root.is_dir() else [root])]
        status = [(path.name, path.stat()) for path in files if path.exists()]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in status]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in order, good and bad, with the columns of `FEATURES`. Their pictures are not opened yet."""
        return map(self.read, self.records())

    def records(self, parts: Iterable[int] | None = None) -> Iterator[Record]:
        """The rows of some parts, or of all, as they stand in their files, for [`read`]: to skip one costs little."""
        for part in range(len(self.parts)) if parts is None else parts:
            for line, cells, reason in self._records_of(part):
                yield part, line, cells, reason

    def read(self, record: Record) -> dict[str, Any]:
        """A record as a row of `FEATURES`; what is wrong with it is its `reason`."""
        part, line, cells, reason = record
        row: dict[str, Any] = dict.fromkeys(FEATURES) | {"captions": [], "part": part, "line": line, "reason": reason}
        column = next((name for name in self.image_columns if name in cells), "")
        cell = cells.get(column)
        path = cell.strip() if self.kind in ("table", "folder") and isinstance(cell, str) else ""
        # In columns of other names it may be base64, which has no dot; a path has one before its ending.
        if path.startswith("data:") or (column != _PATHS and "." not in path and "://" not in path):
            path = ""
        try:
            if reason is None or path or self.id_column in cells:
                own = path or str(line)
                row["idx"] = id_of(cells.get(self.id_column), own if len(self.parts) == 1 else f"{part + 1}-{own}")
            if reason is None:
                row["captions"] = captions_of(cells.get(self.caption_column), self.caption_separator)
                if path:
                    place = Path(self.parts[part])
                    folder = self.image_folder or (place if self.kind == "folder" else place.parent)
                    row["picture"] = readers.read_inside(folder, path)
                else:
                    row["picture"] = picture_of(cell if self.named is None else self.named.read_picture(cell))
        except ValueError as error:
            row["reason"] = str(error)
        return row

    def bad_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Where a row is (`file`, `line`), its `idx` if it could be read, and the `reason` why it can't be used."""
        file, reason = self.parts[row["part"]], printable(row["reason"])
        return {"file": file, "line": row["line"], "idx": row["idx"], "reason": reason}

    def check_head(self, part: int) -> None:
        """A `ValueError` if a part can't be read, or lacks captions, pictures, or ids in another column than `idx`."""
        head = islice(self._records_of(part, everything=True), 100)
        there = next((cells for _, cells, reason in head if reason is None), None)
        options = {"caption_column": (self.caption_column,), "image_column": self.image_columns}
        if self.id_column != "idx":
            options["id_column"] = (self.id_column,)
        for option, columns in options.items():
            if there is not None and not set(columns) & there.keys():
                wanted, shown = " or ".join(map(repr, columns)), ", ".join(map(repr, there)) or "none at all"
                raise ValueError(f"{self.parts[part]} has no column {wanted}, but {shown}: please set `{option}`.")

    def _records_of(self, part: int, everything: bool = False) -> Iterator[Row]:
        path = Path(self.parts[part])
        wanted = None if everything else [self.caption_column, *self.image_columns, self.id_column]
        if self.kind in ("tsv", "table"):
            return read_table(path, self.schema)
        if self.kind == "folder":
            return readers.read_folder(path, self.caption_column, self.image_columns[0])
        if self.named is not None:
            rows = self.named.read(part, wanted)
        else:
            rows = readers.read_archive(path) if self.kind == "tar" else readers.read_parquet(path, wanted)
        return readers.numbered(rows, self.parts[part])


def open_row(row: dict[str, Any]) -> Image.Image | None:
    """The picture of a row; `None` if the row can't be used, and then its `reason` says why."""
    if row["reason"] is None:
        try:
            return open_picture(row["picture"])
        except BadPicture as error:
            row["reason"] = str(error)
    return None


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
        files: files, patterns such as `data/*.tsv`, or folders of pictures with a metadata.csv or metadata.jsonl or
            with a text file beside each picture; all of one kind. Those of a pattern are sorted by name.
        dataset_name: instead of files, a data set on the Hub or a folder that the datasets library can read.
        dataset_config_name, split, cache_dir: see `datasets.load_dataset`.
        streaming: read a data set on the Hub over the network instead of downloading it.
        input_schema: the columns of TSV files.
        id_column: without a column `idx` (the default), rows have their numbers or the paths of their pictures as ids;
            with several files `2-17` is row 17 of the second.
        caption_column: holds a text or a list of texts. WebDataset shards have it in a file `.txt` or in the fields
            `text` or `caption` of `.json`.
        image_column: by default `imgbase64` in TSV files, the first of `file_name`, `image`, `imgbase64` and `base64`
            in CSV and JSON lines, the first picture in a sample of WebDataset shards, and `image` in all others.
        caption_separator: splits a cell with several captions of one picture.
        image_folder: what the paths in CSV and JSON lines start from; the folder of each file by default.

    Raises:
        ValueError: if nothing or too much is named, or if a file isn't there, is of another kind or lacks a column.
    """
    options = (id_column, caption_column, image_column, caption_separator)
    if dataset_name is not None:
        if files:
            raise ValueError("Both files and `dataset_name` are given: please give one of them.")
        named = readers.NamedDataset(dataset_name, dataset_config_name, split, cache_dir, streaming)
        source = DataSource("dataset", named.parts, *options, named=named)
        source.check_head(0)
        return source
    kind, paths = _find_files(files)
    if image_folder is not None and kind != "table":
        raise ValueError(f"image_folder is for the paths in CSV and JSON lines, and {paths[0]} is neither.")
    schema = Schema.parse(input_schema) if kind == "tsv" else None
    source = DataSource(kind, tuple(map(str, paths)), *options, schema, Path(image_folder) if image_folder else None)
    for part in range(len(paths)):
        source.check_head(part)
    return source


def _find_files(names: Sequence[str | Path] | None) -> tuple[str, list[Path]]:
    """Their kind and paths: a name as it stands if there is such a file, else a pattern; of a folder, its table."""
    if isinstance(names, (str, Path)):  # a string is a sequence of strings, too
        raise ValueError(f"files is {str(names)!r}, but must be a list of files.")
    kinds: dict[Path, str] = {}
    for name in map(str, names or ()):
        is_pattern = glob.has_magic(name) and not os.path.exists(name)
        found = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
        if not found:
            raise ValueError(f"No file matches {name}.")
        for path in map(Path, found):
            tables = [path / table for table in ("metadata.csv", "metadata.jsonl") if (path / table).is_file()]
            if len(tables) == 2:
                raise ValueError(f"The folder {path} has both {tables[0].name} and {tables[1].name}: please name one.")
            path = tables[0] if tables else path
            if path in kinds:
                raise ValueError(f"{path} is named twice: please name every file once.")
            kinds[path] = _kind_of(path)
    if not kinds:
        raise ValueError("No data given: please give files (`train_file`) or a `dataset_name`.")
    if len({*kinds.values()}) > 1:
        raise ValueError(f"{' and '.join(map(str, kinds))} are of different kinds: please give files of one.")
    return next(iter(kinds.values())), list(kinds)


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "folder"
    check_file(path)
    name = path.name.lower().removesuffix(".gz")
    for kind, suffixes in _SUFFIXES.items():
        if name.endswith(suffixes):
            return kind
    known = ", ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
    raise ValueError(f"The kind of {path} is not known by its name; allowed are folders of pictures and {known}.")
