# SPDX-License-Identifier: Apache-2.0
"""Pictures as files of their own, with captions in a CSV or JSON lines file, or in a text file beside each."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .csv_jsonl import columns_of, read_table
from .picture_rows import FileSource, PictureRow, Record, RowReader, hash_of_file
from .pictures import BadPicture, decode_base64_picture
from .tsv import MAX_LINE_BYTES, BadRow

__all__ = ["METADATA_FILES", "PICTURE_SUFFIXES", "CaptionTables", "CaptionTexts", "read_inside"]

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_PATH_COLUMN = "file_name"  # holds paths and nothing else, as the datasets library has it
_IMAGE_COLUMNS = (_PATH_COLUMN, "image", "imgbase64", "base64")
# NUL, and the halves of surrogate pairs that don't stand for a byte.
_NO_NAME = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")
# What a single file is to blame for; everything else is the machine's trouble and ends the work.
_FILE_TROUBLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class CaptionTables(FileSource):
    """
    CSV files with a header, or files of JSON objects one a line, among them the metadata.csv and metadata.jsonl of
    datasets' imagefolder.

    A picture's cell is a path or base64 (with or without `data:image/png;base64,`): base64 has no dot, and a path has
    one in front of its ending; in a column `file_name` it is always a path. Nothing is downloaded. Rows without an id
    are called by their path, or by their line.

    Args:
        image_folder (`Path`, *optional*):
            Paths start from here (by default from the table's folder), and none may lead out of it, not even by a
            symbolic link: tables come from strangers, too.
    """

    image_folder: Path | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for part, path in enumerate(self.paths):
            self.columns.check(str(path), columns_of(path), self._images[part])

    @cached_property
    def _images(self) -> list[str]:
        """The column of pictures in each table."""
        if self.columns.image is not None:
            return [self.columns.image] * len(self.paths)
        heads = [columns_of(path) for path in self.paths]
        return [next((name for name in _IMAGE_COLUMNS if name in head), _PATH_COLUMN) for head in heads]

    @property
    def options(self) -> list[Any]:
        suffixes = [path.suffix.lower() for path in self.paths]
        used = [self.columns.idx, self.columns.caption, self._images, self.columns.caption_separator]
        return ["picture files", suffixes, *used]

    def content_hash(self) -> str:
        """Of the tables and of the pictures named in them."""
        digest = hashlib.sha256()
        for part, path in enumerate(self.paths):
            digest.update(f"table {hash_of_file(path)}".encode())
            for record in self.records(part):
                try:
                    _, cell, _ = self._cell(record)
                except BadRow:
                    continue  # what is wrong with it stands in the table
                if not _is_base64(cell, self._images[part]):
                    digest.update(f" {_hash_inside(self._home(part), cell, self._homes(part))}".encode())
        return digest.hexdigest()

    def records(self, part: int) -> Iterator[Record]:
        for line, values in read_table(self.paths[part]):
            yield Record(part, line, values)

    def read(self, record: Record) -> PictureRow:
        values, image = record.content, self._images[record.part]
        file, cell, idx = self._cell(record)
        try:
            if _is_base64(cell, image):
                picture = decode_base64_picture(cell)
            else:
                picture = read_inside(self._home(record.part), cell, self._homes(record.part))
        except BadPicture as error:
            raise BadRow(file, record.line, str(error), idx) from error
        reader = RowReader(self, self.columns, image, has_ids=True)
        return reader.read(record, {**values, self.columns.idx: idx, image: picture})

    def _cell(self, record: Record) -> tuple[str, str, Any]:
        """The row's file, its picture's cell and its id."""
        values, image, file = record.content, self._images[record.part], self.parts[record.part]
        if isinstance(values, str):
            raise BadRow(file, record.line, values)
        cell, idx = values.get(image), values.get(self.columns.idx)
        has_cell = isinstance(cell, str) and cell.strip() != ""
        if idx is None or idx == "":
            idx = self.own_id(record, cell.strip() if has_cell and not _is_base64(cell, image) else record.line)
        if not has_cell:
            raise BadRow(file, record.line, f"The picture ({image}) is missing.", str(idx))
        return file, cell.strip(), idx

    def _home(self, part: int) -> Path:
        """Where paths start."""
        return self.paths[part].parent if self.image_folder is None else self.image_folder

    def _homes(self, part: int) -> tuple[str, ...]:
        """Where pictures may lie."""
        if self.image_folder is not None:
            return (os.path.realpath(self.image_folder),)
        # In the Hub's cache the table and the pictures alike are links into one folder of blobs.
        table = self.paths[part]
        return (os.path.realpath(table.parent), os.path.dirname(os.path.realpath(table)))


@dataclass(frozen=True)
class CaptionTexts(FileSource):
    """
    Folders of pictures, each beside a text file with its caption: cat.jpg and cat.txt. Sub-folders are read, too; rows
    are in the order of the paths, which are also their ids.
    """

    def __post_init__(self) -> None:
        for path in self.paths:
            if not any((path / name).with_suffix(".txt").exists() for name in _pictures_below(path)):
                inside = sorted(entry.name for entry in path.iterdir())
                listed = ", ".join(inside[:5]) + (", …" if len(inside) > 5 else "") if inside else "nothing"
                raise ValueError(
                    f"{path} is a folder without {' or '.join(METADATA_FILES)}, and none of its pictures has a .txt "
                    f"file of the same name (it holds {listed}): please name its files, or give it as `dataset_name`."
                )

    @property
    def options(self) -> list[Any]:
        return ["picture files", "texts", self.columns.caption_separator]

    def content_hash(self) -> str:
        """Of the pictures and texts, and of their names, which are the ids."""
        digest = hashlib.sha256()
        for part, folder in enumerate(self.paths):
            for record in self.records(part):
                for name in (record.content, _text_of(record.content)):
                    digest.update(f" {os.fsencode(name)!r} {_hash_inside(folder, name)}".encode())
        return digest.hexdigest()

    def records(self, part: int) -> Iterator[Record]:
        for number, name in enumerate(_pictures_below(self.paths[part]), 1):
            yield Record(part, number, name)

    def read(self, record: Record) -> PictureRow:
        folder, name = self.paths[record.part], record.content
        idx = self.own_id(record, name)
        try:
            text = read_inside(folder, _text_of(name)).decode("utf-8-sig").strip()
            values = {"idx": idx, "text": text, "picture": read_inside(folder, name)}
        except UnicodeDecodeError as error:
            raise BadRow(str(folder), record.line, f"The caption in {_text_of(name)} is not UTF-8.", idx) from error
        except BadPicture as error:
            raise BadRow(str(folder), record.line, str(error), idx) from error
        columns = replace(self.columns, idx="idx", caption="text")
        return RowReader(self, columns, "picture", has_ids=True).read(record, values)


def _is_base64(cell: str, column: str) -> bool:
    cell = cell.strip()
    return cell.startswith("data:") or (column != _PATH_COLUMN and "." not in cell and "://" not in cell)


def _find_inside(folder: Path, name: str, homes: tuple[str, ...] | None = None) -> Path:
    """See [`read_inside`]."""
    shown = _shown(name)
    if "://" in name:
        raise BadPicture(f"The picture {shown} is on the net; nothing is downloaded.")
    if _NO_NAME.search(name):
        raise BadPicture(f"No file can have the name {shown}.")
    with _blaming(name):
        path = Path(os.path.realpath(folder / name))
        if not any(path.is_relative_to(home) for home in homes or (os.path.realpath(folder),)):
            raise BadPicture(f"The file {shown} lies outside of the folder.")
        if not path.is_file():  # reading a pipe would wait for ever
            raise BadPicture(f"There is no file {shown}.")
        if path.stat().st_size > MAX_LINE_BYTES:
            raise BadPicture(f"The file {shown} is larger than {MAX_LINE_BYTES} bytes.")
    return path


def read_inside(folder: Path, name: str, homes: tuple[str, ...] | None = None) -> bytes:
    """
    The content of a file in a folder, named by a stranger.

    Raises:
        BadPicture: If it isn't there or can't be read, is no ordinary file, or lies outside of the `homes` (by default
            the folder), be it by a symbolic link.
        OSError: If the machine is in trouble.
    """
    path = _find_inside(folder, name, homes)
    with _blaming(name):
        return path.read_bytes()


def _hash_inside(folder: Path, name: str, homes: tuple[str, ...] | None = None) -> str:
    """Of a file's content, or what is wrong with it."""
    try:
        path = _find_inside(folder, name, homes)
        with _blaming(name):
            return hash_of_file(path)
    except BadPicture as error:
        return str(error)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Errors of the system for which this file is to blame make it a bad picture."""
    try:
        yield
    except OSError as error:
        if error.errno in _FILE_TROUBLE:
            raise BadPicture(f"The file {_shown(name)} can't be read ({error.strerror}).") from error
        raise


def _shown(name: str) -> str:
    return (name if name.isprintable() else ascii(name)[1:-1])[:80]


def _text_of(picture: str) -> str:
    return str(Path(picture).with_suffix(".txt"))


def _pictures_below(folder: Path) -> list[str]:
    """Paths of pictures, sorted, with `/` on every system; hidden files and linked folders are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictures = [name for name in names if not name.startswith(".") and name.lower().endswith(PICTURE_SUFFIXES)]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in pictures]
    return sorted(found)
