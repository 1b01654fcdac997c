# SPDX-License-Identifier: Apache-2.0
"""What the datasets library reads: Parquet, WebDataset shards, and data sets by their name."""

import glob
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ..printable import printable
from .cells import Columns
from .folder_files import PICTURE_SUFFIXES, homes_of, read_inside
from .open_picture import MAX_PICTURE_BYTES, BadPicture
from .table_files import kind_of_file

__all__ = ["FAILURES", "NamedDataset", "check_archive", "check_parquet", "in_short", "read_archive", "read_parquet"]

FAILURES = (
    *(OSError, RuntimeError, ValueError, TypeError, EOFError, zlib.error, tarfile.TarError, pyarrow.ArrowException),
    datasets.exceptions.DatasetsError,
)

_BATCH, _BATCH_BYTES = 16, 256 * 1024 * 1024  # rows held at a time: pictures are large


def in_short(error: Exception) -> str:
    """What a library has to say, on one line."""
    return printable(" ".join(str(error).split()), 500).rstrip(".") + "."


def check_parquet(path: Path) -> list[str]:
    """The columns of a Parquet file; a `ValueError` if it is none, damaged or empty."""
    kind = kind_of_file(path)
    if kind != "a Parquet file":
        raise ValueError(f"{path} is not a Parquet file: it looks like {kind}.")
    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is a damaged Parquet file: {in_short(error)}") from error
    if not metadata.num_rows:
        raise ValueError(f"{path} is empty: it has no rows.")
    return list(metadata.schema.to_arrow_schema().names)


def read_parquet(path: Path, wanted: list[str]) -> datasets.IterableDataset:
    """The columns that are wanted and there, in batches that stay small even if one long cell stands in every row."""
    metadata = pyarrow.parquet.read_metadata(path)
    there = metadata.schema.to_arrow_schema().names
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max(group.column(place).total_uncompressed_size for group in groups for place in range(group.num_columns))
    options = pyarrow.dataset.ParquetFragmentScanOptions(
        use_buffered_stream=True, buffer_size=1 << 20, pre_buffer=False
    )
    rows = datasets.IterableDataset.from_parquet(
        glob.escape(str(path)),
        columns=[name for name in dict.fromkeys(wanted) if name in there],
        batch_size=max(1, min(_BATCH, _BATCH_BYTES // max(1, largest))),
        fragment_scan_options=options,
    )
    return _undecoded(rows)


def check_archive(path: Path) -> None:
    """A `ValueError` if this is no tar archive, or was truncated: tarfile takes one without its end for whole."""
    kind = kind_of_file(path)
    if kind not in ("a tar archive", "a gzip archive"):
        raise ValueError(f"{path} is not a tar archive: it looks like {kind}.")
    with open(path, "rb") as archive:
        archive.seek(max(0, path.stat().st_size - 512))
        if kind == "a tar archive" and any(archive.read()):
            raise ValueError(f"{path} is truncated: the end of the tar archive is missing. Please copy it again.")


def read_archive(path: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    """The samples of a WebDataset shard as cells: the id, `text` and `image`."""
    builder = WebDataset(data_files={"train": [glob.escape(str(path))]})
    captions = ("txt", "text", "caption") if columns.caption == Columns.caption else (columns.caption,)
    for sample in _undecoded(builder.as_streaming_dataset("train")):
        in_json = sample.get("json")
        fields = {**(in_json if isinstance(in_json, dict) else {}), **sample}
        pictures = [value for value in sample.values() if isinstance(value, dict) and "bytes" in value]
        yield {
            columns.idx: fields["__key__"] if fields.get(columns.idx) is None else fields[columns.idx],
            "text": next((fields[name] for name in captions if fields.get(name) is not None), None),
            "image": next(iter(pictures), None) if columns.image is None else fields.get(columns.image),
        }


class NamedDataset:
    """
    A split of a data set on the Hub, or of a folder of this machine as the datasets library reads it.

    A folder is always read where it is: the library's cache of it goes by the files' times and would miss a change.

    Raises:
        ValueError: If it can't be loaded, lacks a column, or names files outside of its folder.
    """

    def __init__(
        self, name: str, config_name: str | None, split: str, columns: Columns, cache_dir: Any, streaming: bool
    ) -> None:
        self.options = [config_name, split]
        self.folder = Path(name) if os.path.isdir(name) else None
        is_streamed = streaming or self.folder is not None
        try:
            builder = datasets.load_dataset_builder(name, config_name, cache_dir=cache_dir and str(cache_dir))
            self._check_files(builder.config.data_files)
            if not is_streamed:
                builder.download_and_prepare()
            rows = builder.as_streaming_dataset(split) if is_streamed else builder.as_dataset(split)
            there = rows.column_names or list(next(iter(rows), {}))
        except FAILURES as error:
            raise ValueError(f"The data set {name} ({split}) can't be loaded: {in_short(error)}") from error
        image = columns.image or "image"
        columns.check(f"The data set {name} ({split})", there, image)
        self.is_image_folder = builder.info.builder_name == "imagefolder"
        self.rows = _undecoded(rows).select_columns([c for c in (columns.idx, columns.caption, image) if c in there])
        #: Names the content of what was downloaded; `None` if the rows themselves must be looked at.
        self.fingerprint = None if is_streamed else str(rows._fingerprint)
        count = rows.num_shards if is_streamed else 1
        numbers = [f", shard {part + 1} of {count}" for part in range(count)] if count > 1 else [""]
        self.parts = tuple(f"{name} ({split}){number}" for number in numbers)

    def shard(self, part: int) -> Any:
        """The rows of one of the parts."""
        return self.rows.shard(len(self.parts), part) if len(self.parts) > 1 else self.rows

    def read_picture(self, cell: dict[str, Any]) -> Any:
        """
        The cell with the file of a picture that isn't in the table. Only the library's reader of folders says where it
        is; in a table, a path is a stranger's word.
        """
        path = cell.get("path")
        if path is None or not self.is_image_folder:
            return cell
        if self.folder is not None:
            return read_inside(self.folder, path)
        try:
            with fsspec.open(path, "rb") as file:
                return file.read(MAX_PICTURE_BYTES + 1)
        except FileNotFoundError as error:
            raise BadPicture(f"There is no file {path}.") from error

    def _check_files(self, data_files: Any) -> None:
        """A folder's card may name any file; pictures are looked at when they are read."""
        if self.folder is None:
            return
        homes = homes_of(self.folder)
        for path in (str(path) for files in (data_files or {}).values() for path in files):
            inside = any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes)
            if not inside and not path.lower().endswith(PICTURE_SUFFIXES):
                raise ValueError(f"its card or a link names {path!r}, which lies outside of the folder.")


def _undecoded(rows: Any) -> Any:
    """Pictures as they are in the file: they are opened with distrust."""
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows
