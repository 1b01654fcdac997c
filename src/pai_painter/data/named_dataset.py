# SPDX-License-Identifier: Apache-2.0
"""Data sets that the datasets library finds by their name: on the Hub, or in a folder of this machine."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import fsspec

from .picture_files import read_inside
from .picture_rows import Columns, DataSource, PictureRow, Record, RowReader, hash_of_file
from .pictures import BadPicture
from .tsv import MAX_LINE_BYTES, BadRow

__all__ = ["NamedDataset"]

_FAILURES = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)


@dataclass(frozen=True)
class NamedDataset(DataSource):
    """
    A split of a data set. It is looked up when the first row is asked for.

    A folder of this machine is always read where it is: the library's own cache of it goes by the files' times and
    would miss a change. From the Hub, rows are streamed unless [`on_disk`] is asked for.

    Args:
        dataset_name (`str`): Repository on the Hub, or a folder without scripts.
        config_name (`str` or `None`): Its configuration.
        split (`str`): Its split.
        columns (`Columns`): Its columns; the picture is `image` by default.
        cache_dir (`str` or `None`): Where the library keeps what it downloads.
        streaming (`bool`): Whether rows come over the network as they are needed.

    Raises:
        ValueError: If a folder has Python scripts.
    """

    dataset_name: str
    config_name: str | None
    split: str
    columns: Columns
    cache_dir: str | None = None
    streaming: bool = True

    def __post_init__(self) -> None:
        scripts = sorted(Path(self.dataset_name).glob("*.py")) if self.is_folder else []
        if scripts:
            raise ValueError(
                f"The folder {self.dataset_name} holds a Python script ({scripts[0].name}), and data sets with scripts "
                "are not read: please take it away, or give data files."
            )

    @property
    def is_folder(self) -> bool:
        return os.path.isdir(self.dataset_name)

    @property
    def name(self) -> str:
        return f"{self.dataset_name} ({self.split})"

    @cached_property
    def parts(self) -> tuple[str, ...]:
        count = self._rows.num_shards if self._is_streamed else 1
        return (
            tuple(f"{self.name}, shard {part + 1} of {count}" for part in range(count)) if count > 1 else (self.name,)
        )

    @property
    def options(self) -> list[Any]:
        columns = self.columns
        used = [columns.idx, columns.caption, self._image, columns.caption_separator]
        return ["dataset", self.config_name, self.split, *used]

    def on_disk(self) -> DataSource:
        return self if self.is_folder else replace(self, streaming=False)

    def content_hash(self) -> str:
        """Of the folder's files with their names, or of the tables that the library made of what it downloaded."""
        if self.is_folder:
            folder = Path(self.dataset_name)
            inside = sorted(path for path in folder.rglob("*") if path.is_file())
            files = [(str(path.relative_to(folder)), path) for path in inside]
        elif self._is_streamed:
            raise ValueError(f"The data set {self.dataset_name} is streamed and has no hash of its content.")
        else:
            files = [("", Path(file["filename"])) for file in self._rows.cache_files]
        return hashlib.sha256("\n".join(f"{hash_of_file(path)} {name}" for name, path in files).encode()).hexdigest()

    def records(self, part: int) -> Iterator[Record]:
        rows = self._rows.shard(len(self.parts), part) if len(self.parts) > 1 else self._rows
        line = 0
        try:
            for line, values in enumerate(rows, 1):
                yield Record(part, line, values)
        except _FAILURES as error:
            raise ValueError(f"{self.parts[part]} can't be read after row {line}: {_in_short(error)}") from error

    def read(self, record: Record) -> PictureRow:
        picture = record.content.get(self._image)
        # Only the library's own reader of folders says where a picture is. In a table, a path is a stranger's word.
        from_folder = self._rows.info.builder_name == "imagefolder"
        if from_folder and isinstance(picture, dict) and picture["bytes"] is None and picture["path"] is not None:
            try:
                picture = self._read_file(picture["path"])
            except BadPicture as error:
                idx = self._reader.id_of(record, record.content)
                raise BadRow(self.parts[record.part], record.line, str(error), idx) from error
        return self._reader.read(record, {**record.content, self._image: picture})

    def _read_file(self, path: str) -> bytes:
        if self.is_folder:
            folder = Path(os.path.realpath(self.dataset_name))
            # In a snapshot of the Hub's cache, pictures are links into the folder of blobs beside it.
            blobs = (str(folder.parents[1] / "blobs"),) if folder.parent.name == "snapshots" else ()
            return read_inside(folder, path, (str(folder), *blobs))
        try:
            with fsspec.open(path, "rb") as file:
                content: bytes = file.read(MAX_LINE_BYTES + 1)
        except FileNotFoundError as error:
            raise BadPicture(f"There is no file {path}.") from error
        if len(content) > MAX_LINE_BYTES:
            raise BadPicture(f"The file {path} is larger than {MAX_LINE_BYTES} bytes.")
        return content

    @property
    def _is_streamed(self) -> bool:
        return self.streaming or self.is_folder

    @property
    def _image(self) -> str:
        return "image" if self.columns.image is None else self.columns.image

    @cached_property
    def _rows(self) -> Any:
        try:
            rows = datasets.load_dataset(
                self.dataset_name,
                self.config_name,
                split=self.split,
                streaming=self._is_streamed,
                cache_dir=self.cache_dir,
            )
            there = rows.column_names or list(next(iter(rows), {}))
        except _FAILURES as error:
            raise ValueError(f"The data set {self.name} can't be loaded: {_in_short(error)}") from error
        self.columns.check(f"The data set {self.name}", there, self._image)
        for column, feature in (rows.features or {}).items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))  # pictures are opened with distrust
        used = [column for column in (self.columns.idx, self.columns.caption, self._image) if column in there]
        return rows.select_columns(used)

    @cached_property
    def _reader(self) -> RowReader:
        has_ids = self.columns.idx != Columns.idx or self.columns.idx in (self._rows.column_names or [])
        return RowReader(self, self.columns, self._image, has_ids)


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:500].rstrip(".") + "."
