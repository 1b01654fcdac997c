# SPDX-License-Identifier: Apache-2.0
"""
From whatever the user names (files, patterns, folders, a data set) to rows with the columns `idx, captions, picture`.

TSV, CSV and JSON lines are read by `table_files`, everything else by libraries.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any

import datasets
from PIL import Image

from ..printable import printable
from . import readers
from .open_picture import BadPicture, decode_base64_picture, open_picture
from .table_files import NOT_UTF8, Row, Schema, check_file, read_table

__all__ = ["FEATURES", "DataSource", "Record", "find_source", "open_row"]

FEATURES = datasets.Features(
    {
        "idx": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "picture": datasets.Value("binary"),  # its file
        "part": datasets.Value("int32"),  # where the row is: its file's place in `parts`, and its line there
        "line": datasets.Value("int64"),
        "reason": datasets.Value("string"),  # why it can't be used, or None
    }
)
_MAX_CAPTION = 65_536  # characters of a cell: far more than any model reads
_KINDS = {
    **dict.fromkeys((".tsv", ".txt"), "tsv"),
    **dict.fromkeys((".csv", ".jsonl"), "table"),
    ".parquet": "parquet",
    **dict.fromkeys((".tar", ".tgz"), "tar"),
}
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
                row["idx"] = _id_of(cells.get(self.id_column), own if len(self.parts) == 1 else f"{part + 1}-{own}")
            if reason is None:
                row["captions"] = _captions_of(cells.get(self.caption_column), self.caption_separator)
                if path:
                    place = Path(self.parts[part])
                    folder = self.image_folder or (place if self.kind == "folder" else place.parent)
                    row["picture"] = readers.read_inside(folder, path)
                else:
                    row["picture"] = _picture_of(cell if self.named is None else self.named.read_picture(cell))
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


def _id_of(value: Any, default: str) -> str:
    """The id in a cell, or the default if there is none."""
    if not isinstance(value, (str, int, float, NoneType)) or isinstance(value, bool):
        raise ValueError(f"The id is neither text nor a number, but {type(value).__name__}.")
    if value is None or value == "":
        return NOT_UTF8.sub("?", default)
    if isinstance(value, str) and NOT_UTF8.search(value):
        raise ValueError("The id holds bytes that are not UTF-8.")
    return str(value)


def _captions_of(value: Any, separator: str | None) -> list[str]:
    """The captions in a cell, stripped: one, or several if it is a list or is split at the `separator`."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if text is not None]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"The caption is not text, but {type(text).__name__}.")
        if NOT_UTF8.search(text):
            raise ValueError("The caption holds bytes that are not UTF-8.")
    if sum(map(len, texts)) > _MAX_CAPTION:
        raise ValueError(f"The caption is longer than {_MAX_CAPTION} characters.")
    parts = [part.strip() for text in texts for part in ([text] if separator is None else text.split(separator))]
    if not any(parts):
        raise ValueError("The caption is empty.")
    return [part for part in parts if part]


def _picture_of(value: Any) -> bytes:
    """The picture's file in a cell: bytes, base64, or the datasets library's struct of `bytes` and `path`."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path") is not None:
            raise BadPicture(f"The picture is not in the table: there is only its path {value['path']!r}.")
        value = value.get("bytes")
    if isinstance(value, str):
        return decode_base64_picture(value)
    if not isinstance(value, bytes):
        what = "missing" if value is None else f"neither bytes nor base64, but {type(value).__name__}"
        raise BadPicture(f"The picture is {what}.")
    return value


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
        ValueError: if nothing or too much is named, files are of several kinds, or one isn't there, is empty, damaged
            or of another kind, or lacks a column.
    """
    options = (id_column, caption_column, image_column, caption_separator)
    if dataset_name is not None:
        if files:
            raise ValueError("Both files and `dataset_name` are given: please give one of them.")
        named = readers.NamedDataset(dataset_name, dataset_config_name, split, cache_dir, streaming)
        source = DataSource("dataset", named.parts, *options, named=named)
        source.check_head(0)
        return source
    if isinstance(files, (str, Path)):  # a string is a sequence of strings, too
        raise ValueError(f"files is {str(files)!r}, but must be a list of files.")
    paths = [path for name in files or () for path in _find_files(str(name))]
    if not paths:
        raise ValueError("There are no data: please give files (`train_file`) or a `dataset_name`.")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{max(paths, key=paths.count)} is named twice: please name every file once.")
    kinds = {_kind_of(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(map(str, kinds.values()))} are of different kinds: please give files of one.")
    (kind,) = kinds
    if image_folder is not None and kind != "table":
        raise ValueError(f"image_folder is for the paths in CSV and JSON lines, and {paths[0]} is neither.")
    schema = Schema.parse(input_schema) if kind == "tsv" else None
    source = DataSource(kind, tuple(map(str, paths)), *options, schema, Path(image_folder) if image_folder else None)
    for part, path in enumerate(paths):
        if kind == "tar":
            readers.check_archive(path)
        source.check_head(part)
    return source


def _find_files(name: str) -> Iterator[Path]:
    """A name as it stands if there is such a file, else a pattern; of a folder, its table if it has one."""
    is_pattern = glob.has_magic(name) and not os.path.exists(name)
    found = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
    if not found:
        raise ValueError(f"No file matches {name}.")
    for path in map(Path, found):
        tables = [path / table for table in ("metadata.csv", "metadata.jsonl") if (path / table).is_file()]
        if len(tables) == 2:
            raise ValueError(f"The folder {path} has both metadata.csv and metadata.jsonl: please name the one to use.")
        yield tables[0] if tables else path


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "folder"
    check_file(path)
    kind = _KINDS.get(Path(path.name.lower().removesuffix(".gz")).suffix)
    if kind is None:
        known = ", ".join(_KINDS)
        raise ValueError(f"The kind of {path} is not known by its name; allowed are folders of pictures and {known}.")
    return kind
