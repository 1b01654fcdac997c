# SPDX-License-Identifier: Apache-2.0
"""Rows out of everything that is no table of text: folders of pictures, Parquet, WebDataset shards, named data sets."""

import errno
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from pyarrow.parquet import ParquetFile
from transformers.utils import logging

from ..printable import printable
from .open_picture import MAX_PICTURE_BYTES, BadPicture
from .table_files import Row

logger = logging.get_logger(__name__)

# Those of the last line can't be read; opening them says why.
_PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".ico", ".tga", ".ppm", ".eps"),
)
# What a single file is to blame for; everything else is the machine's trouble and ends the work.
_FILE_TROUBLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_LINKED = "This is a linked folder, which is not followed: please name it as a further folder."


def read_inside(folder: Path, name: str) -> bytes:
    """
    The content of a file in a folder, named by a stranger. A `ValueError` if it isn't there or can't be read, is no
    regular file, is too large, or lies outside of the folder, be it by a symbolic link.
    """
    shown = printable(name)[:80]
    try:
        path = folder / name
        if not _is_inside(folder, path):
            raise BadPicture(f"The file {shown} lies outside of the folder.")
        if not path.is_file():  # reading a pipe would wait for ever
            raise BadPicture(f"There is no file {shown}.")
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise BadPicture(f"The file {shown} is larger than {MAX_PICTURE_BYTES} bytes.")
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _FILE_TROUBLE:
            raise
        raise BadPicture(f"The file {shown} can't be read ({error.strerror}).") from error


def _is_inside(folder: Path, path: Path) -> bool:
    """Whether it lies in the folder or, in a snapshot of the Hub's cache, in the blobs that this links to."""
    home = Path(os.path.realpath(folder))
    homes = [home, *(parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots")]
    return any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes)


def read_folder(folder: Path, caption: str, image: str) -> Iterator[Row]:
    """
    The pictures below a folder by their paths, sorted, with `/` on every system, each with the caption in the text file
    beside it. Hidden files are left out; other files that are neither are named in a warning.
    """
    linked, files = set(), set()
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked |= {(here / name).as_posix() for name in folders if Path(place, name).is_symlink()}
        files |= {(here / name).as_posix() for name in names if not name.startswith(".")}
    pictures = {name for name in files if name.lower().endswith(_PICTURE_SUFFIXES)}
    texts = {name: Path(name).with_suffix(".txt").as_posix() for name in pictures}
    others = printable(", ".join(sorted(files - pictures - {*texts.values()})), 200)
    if others:
        logger.warning_once(f"Neither pictures nor their texts, and left out of {folder}: {others}")
    for number, name in enumerate(sorted(linked | pictures), 1):
        cells, reason = {image: name}, _LINKED if name in linked else None
        try:
            if reason is None:
                cells[caption] = read_inside(folder, texts[name]).decode("utf-8-sig", "surrogateescape")
        except BadPicture as error:
            reason = str(error)
        yield number, cells, reason


def numbered(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Row]:
    """Rows with their numbers. Where a library can't read on, a `ValueError` names the place."""
    number = 0
    try:
        for number, cells in enumerate(rows, 1):
            yield number, cells, None
    except Exception as error:  # nearly anything, over damage
        raise ValueError(f"{name} can't be read after row {number}: {printable(error, 500)}") from error


def read_parquet(path: Path, wanted: list[str] | None) -> Iterator[dict[str, Any]]:
    """All columns, or those that are wanted and there; one row at a time: a dictionary may hide a long cell in each."""
    with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
        there = None if wanted is None else [name for name in wanted if name in table.schema_arrow.names]
        for batch in table.iter_batches(1, columns=there, use_threads=False):
            yield from batch.to_pylist()


def read_archive(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a WebDataset shard, with `idx`, `text` and `image` where they have other names for these."""
    with open(path, "rb") as archive:
        head = archive.read(512)
        if head[257:262] == b"ustar":
            archive.seek(-512, os.SEEK_END)
            if any(archive.read()):  # tarfile takes it for whole
                raise ValueError("the end of the tar archive is missing. Please copy it again.")
        elif not head.startswith(b"\x1f\x8b"):
            raise ValueError("it is not a tar archive.")
    builder = WebDataset(data_files={"train": [glob.escape(str(path))]})
    for sample in _undecoded(builder.as_streaming_dataset("train")):
        in_json = sample.get("json")
        cells = {**(in_json if isinstance(in_json, dict) else {}), **sample}
        cells = {name: value for name, value in cells.items() if value is not None}
        text = next((cells[name] for name in ("txt", "text", "caption") if name in cells), None)
        image = next((value for value in sample.values() if isinstance(value, dict) and "bytes" in value), None)
        yield {"idx": sample["__key__"], **cells, "text": text, "image": image}


class NamedDataset:
    """
    A split of a data set on the Hub, or of a folder of this machine as the datasets library reads it. A folder is
    always read where it is: the library's cache of it goes by the files' times and would miss a change.

    Raises:
        ValueError: If it can't be loaded, or names files outside of its folder.
    """

    def __init__(self, name: str, config_name: str | None, split: str, cache_dir: Any, streaming: bool) -> None:
        self.options = [config_name, split]
        self.folder = folder = Path(name) if os.path.isdir(name) else None
        is_streamed = streaming or folder is not None
        try:
            builder = datasets.load_dataset_builder(name, config_name, cache_dir=cache_dir and str(cache_dir))
            files = [str(path) for paths in (builder.config.data_files or {}).values() for path in paths]
            # A folder's card may name any file. Pictures are looked at when they are read.
            for path in files:
                if folder and not (_is_inside(folder, Path(path)) or path.lower().endswith(_PICTURE_SUFFIXES)):
                    raise ValueError(f"its card or a link names {path!r}, which lies outside of the folder.")
            if not is_streamed:
                builder.download_and_prepare()
            rows = builder.as_streaming_dataset(split) if is_streamed else builder.as_dataset(split)
            self._columns = rows.column_names or list(next(iter(rows), {}))
        except Exception as error:  # as above
            raise ValueError(f"The data set {name} ({split}) can't be loaded: {printable(error, 500)}") from error
        self._rows, self._is_image_folder = _undecoded(rows), builder.info.builder_name == "imagefolder"
        # Of what was downloaded, or else the rows themselves must be looked at.
        self.fingerprint = None if is_streamed else str(rows._fingerprint)
        count = rows.num_shards if is_streamed else 1
        numbers = [f", shard {part + 1} of {count}" for part in range(count)] if count > 1 else [""]
        self.parts = tuple(f"{name} ({split}){number}" for number in numbers)

    def read(self, part: int, wanted: list[str] | None) -> Any:
        """The rows of one of the parts, with all columns or those that are wanted and there."""
        there = [name for name in self._columns if wanted is None or name in wanted]
        return self._rows.select_columns(there).shard(len(self.parts), part)

    def read_picture(self, cell: Any) -> Any:
        """The cell or, of a folder of pictures, the file. In a table, a path would be a stranger's word."""
        path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else None
        if path is None or not self._is_image_folder:
            return cell
        if self.folder is not None:
            return read_inside(self.folder, path)
        try:
            with fsspec.open(path, "rb") as file:
                return file.read(MAX_PICTURE_BYTES + 1)
        except FileNotFoundError as error:
            raise BadPicture(f"There is no file {path}.") from error


def _undecoded(rows: Any) -> Any:
    """Pictures as they are in the file: they are opened with distrust."""
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows
