# SPDX-License-Identifier: Apache-2.0
"""From what the user names (files, patterns, a folder, a data set) to a source of rows."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from .csv_jsonl import TABLE_SUFFIXES
from .named_dataset import NamedDataset
from .picture_files import METADATA_FILES, CaptionTables, CaptionTexts
from .picture_rows import Columns, DataSource, FileSource, PictureRow, Record
from .picture_tables import ParquetFiles, TsvFiles
from .tsv import Schema
from .webdataset import WebDatasetShards

__all__ = ["Columns", "DataSource", "PictureRow", "Record", "find_source"]

_SUFFIXES: dict[type[FileSource], tuple[str, ...]] = {
    TsvFiles: (".tsv", ".txt", ".tsv.gz", ".txt.gz"),
    ParquetFiles: (".parquet",),
    WebDatasetShards: (".tar", ".tar.gz", ".tgz"),
    CaptionTables: TABLE_SUFFIXES,
}
_ALLOWED = (
    "TSV (.tsv, .txt, .tsv.gz), Parquet (.parquet), WebDataset shards (.tar), CSV (.csv) and JSON lines (.jsonl), and "
    "folders of pictures"
)


def find_source(
    files: Sequence[str | Path] | None,
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str = "train",
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
        input_schema: the columns of TSV files, such as `idx:str:1,text:str:1,imgbase64:str:1`.
        id_column:
            The column of ids. A table without a column `idx` (the default) gets the rows' numbers as ids, or the paths
            of their pictures; with several files `2-17` is row 17 of the second. In WebDataset shards ids are the
            samples' names.
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
        return NamedDataset(dataset_name, dataset_config_name, split, columns, str(cache_dir) if cache_dir else None)
    if isinstance(files, (str, Path)):  # a string is a sequence of strings, too
        raise ValueError(f"files is {str(files)!r}, but must be a list of files.")
    paths = [path for name in files or () for path in _find_files(str(name))]
    if not paths:
        raise ValueError("There are no data: please give files (`train_file`) or a `dataset_name`.")
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is named twice: please name every file once.")
    kinds = {path: _kind_of(path) for path in paths}
    kind = kinds[paths[0]]
    for path in paths:
        if kinds[path] is not kind:
            raise ValueError(f"{paths[0]} and {path} are of different kinds: please give files of one kind.")
    if kind is CaptionTables:
        folder = None if image_folder is None else Path(image_folder)
        return CaptionTables(tuple(paths), columns, image_folder=folder)
    if image_folder is not None:
        raise ValueError(f"image_folder is for the paths in CSV and JSON lines, and {paths[0]} is neither.")
    if kind is TsvFiles:
        return TsvFiles(tuple(paths), columns, schema=Schema.parse(input_schema))
    return kind(tuple(paths), columns)


def _find_files(name: str) -> list[Path]:
    """A name as it stands if there is such a file, else a pattern; of a folder, its table if it has one."""
    if os.path.exists(name) or not glob.has_magic(name):
        return [_table_of(Path(name))]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise ValueError(f"No file matches {name}.")
    return [_table_of(Path(path)) for path in found]


def _table_of(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise ValueError(f"There is no file {path}.")
        return path
    tables = [path / name for name in METADATA_FILES if (path / name).is_file()]
    if len(tables) == 2:
        raise ValueError(f"The folder {path} has both {' and '.join(METADATA_FILES)}: please name the one to use.")
    return tables[0] if tables else path


def _kind_of(path: Path) -> type[FileSource]:
    if path.is_dir():
        return CaptionTexts
    for kind, suffixes in _SUFFIXES.items():
        if path.name.lower().endswith(suffixes):
            return kind
    raise ValueError(f"The kind of {path} is not known by its name; allowed are {_ALLOWED}.")
