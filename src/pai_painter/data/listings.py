# SPDX-License-Identifier: Apache-2.0
"""Picture files and their captions as people keep them: a folder, a CSV or a JSON lines file."""

import csv
import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .file_kinds import kind_of_file
from .picture_folder import METADATA_FILES
from .picture_rows import PictureRow
from .pictures import BadPicture, decode_base64_picture
from .sources import find_source
from .tsv import MAX_LINE_BYTES, BadRow, split_captions

__all__ = ["PictureFolder", "PictureList", "PictureSource", "find_pictures", "numbered_rows"]

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_COLUMNS = ("file_name", "image", "imgbase64", "base64")

# What a single file is to blame for; everything else is the machine's trouble and ends the work.
_FILE_TROUBLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class PictureSource(Protocol):
    """Anything that gives captions with pictures in a fixed order, a [`~data.sources.DataSource`] for example."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def rows(self, on_bad_row: Callable[[BadRow], None]) -> Iterator[PictureRow]:
        """The rows in order; `on_bad_row` takes each that can't be used when its turn has come."""


def find_pictures(
    files: Sequence[str],
    *,
    input_schema: str,
    id_column: str = "idx",
    caption_column: str = "text",
    image_column: str | None = None,
    caption_separator: str | None = None,
    image_folder: Path | None = None,
) -> PictureSource:
    """
    Whatever the user has named: one folder, CSV or JSON lines file, or what [`~data.sources.find_source`] reads.

    Args:
        files (`Sequence[str]`): The names.
        input_schema (`str`): Columns of a TSV.
        id_column, caption_column, image_column (`str`): Names of columns in the other kinds.
        caption_separator (`str`, *optional*): Splits a cell with several captions of one picture.
        image_folder (`Path`, *optional*): What the paths in a CSV or JSON lines file start from; its own folder by
            default.

    Raises:
        ValueError: if there is no such source, if it is empty or of an unknown kind, or if an option doesn't fit it.
    """
    if caption_separator == "":
        raise ValueError("caption_separator is empty: please give at least one character, or None.")
    path = Path(files[0])
    is_list = path.suffix.lower() in (".csv", ".jsonl") and not path.is_dir()
    is_bare_folder = path.is_dir() and not any((path / name).exists() for name in METADATA_FILES)
    if image_folder is not None and not is_list:
        raise ValueError(f"image_folder is for paths in a CSV or JSON lines file, and {path} is neither.")
    if (is_list or is_bare_folder) and len(files) > 1:
        raise ValueError(f"{path} must be the only source: several of its kind can't be read together.")
    if is_bare_folder:
        return PictureFolder(path, caption_separator)
    if is_list:
        if (kind := kind_of_file(path)) != "plain text":
            raise ValueError(f"{path} is no text, as its name says: it looks like {kind}.")
        folder = path.parent if image_folder is None else image_folder
        return PictureList(path, folder, id_column, caption_column, image_column, caption_separator)
    return find_source(
        files,
        input_schema=input_schema,
        id_column=id_column,
        caption_column=caption_column,
        image_column=image_column,
        caption_separator=caption_separator,
    )


@dataclass(frozen=True)
class PictureList:
    """
    A CSV file with a header, or a file of JSON objects one a line. The picture's cell is a path, or base64 (with or
    without `data:image/png;base64,`): base64 has no dot, and a path has one in front of its ending. Nothing is
    downloaded.

    Args:
        path (`Path`): The file.
        folder (`Path`): Paths start from here, and none may lead out of it, not even by a symbolic link.
        id_column (`str`): The column of ids. Without it, a row is named by its path, or by its line.
        caption_column (`str`): The column of captions.
        image_column (`str`, *optional*): The column of pictures; by default the one of `file_name`, `image`,
            `imgbase64` and `base64` that is there.
        caption_separator (`str`, *optional*): Splits a cell with several captions of one picture.
    """

    path: Path
    folder: Path
    id_column: str = "idx"
    caption_column: str = "text"
    image_column: str | None = None
    caption_separator: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return str(self.path)

    def rows(self, on_bad_row: Callable[[BadRow], None]) -> Iterator[PictureRow]:
        """
        The rows in order. See [`PictureSource`].

        Raises:
            ValueError: if the file is empty or isn't what its name says, or if a column is missing.
        """
        records = _csv_records if self.path.suffix.lower() == ".csv" else _json_records
        for line, record in records(self.path):
            idx = None
            try:
                if isinstance(record, str):
                    raise _Unusable(record)
                idx = _id_of(record, self.id_column)
                yield self._row(line, record, idx)
            except (_Unusable, BadPicture) as error:
                on_bad_row(BadRow(self.path, line, str(error), idx))

    def _row(self, line: int, record: dict[str, Any], idx: str | None) -> PictureRow:
        column = self.image_column or next((name for name in IMAGE_COLUMNS if name in record), None)
        for name in (column or IMAGE_COLUMNS[0], self.caption_column):
            if name not in record:
                # Every row of a CSV has the header's columns, so this ends the reading of a wrong file at once.
                kind = ValueError if self.path.suffix.lower() == ".csv" else _Unusable
                raise kind(f"{self.path} has no column {name!r}, but {', '.join(map(repr, record))}.")
        text, cell = record[self.caption_column], record[column or IMAGE_COLUMNS[0]]
        if not isinstance(text, str) or not isinstance(cell, str):
            raise _Unusable("The caption and the picture must be strings.")
        _check_text(text)
        captions = _split(text, self.caption_separator)
        cell = cell.strip()
        if cell.startswith("data:") or ("." not in cell and "://" not in cell):
            picture, own_name = decode_base64_picture(cell), str(line)
        else:
            picture, own_name = read_picture_file(self.folder, cell), cell
        return PictureRow(str(self.path), line, own_name if idx is None else idx, text, captions, picture)


@dataclass(frozen=True)
class PictureFolder:
    """
    Picture files, each beside a text file with its caption: cat.jpg and cat.txt. Sub-folders are read, too; rows are in
    the order of the paths, which are also their ids.

    Args:
        path (`Path`): The folder.
        caption_separator (`str`, *optional*): Splits a text with several captions of one picture.
    """

    path: Path
    caption_separator: str | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return str(self.path)

    def rows(self, on_bad_row: Callable[[BadRow], None]) -> Iterator[PictureRow]:
        """
        The rows in order. See [`PictureSource`].

        Raises:
            ValueError: if the folder holds no picture with a caption.
        """
        pictures = [name for name in _files_below(self.path) if Path(name).suffix.lower() in PICTURE_ENDINGS]
        if not any((self.path / name).with_suffix(".txt").exists() for name in pictures):
            raise ValueError(
                f"{self.path} holds neither {' nor '.join(METADATA_FILES)} nor pictures with a .txt file of the same "
                "name."
            )
        for name in pictures:
            try:
                text = self._caption(name)
                captions = _split(text, self.caption_separator)
                yield PictureRow(str(self.path / name), 1, name, text, captions, read_picture_file(self.path, name))
            except _Unusable as error:
                on_bad_row(BadRow(self.path / name, 1, str(error), name))

    def _caption(self, name: str) -> str:
        _check_text(name)
        file = Path(name).with_suffix(".txt")
        try:
            text = read_picture_file(self.path, str(file)).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise _Unusable(f"The caption in {file.name} is not UTF-8.") from error
        if not text:
            raise _Unusable(f"The caption in {file.name} is empty.")
        return text


def numbered_rows(source: PictureSource) -> Iterator[PictureRow | BadRow]:
    """The rows of a source in order, good and bad, so that the n-th is the same whenever it is read."""
    bad_rows: list[BadRow] = []
    for row in source.rows(bad_rows.append):
        yield from bad_rows
        bad_rows.clear()
        yield row
    yield from bad_rows


class _Unusable(Exception):
    """A row that can't be used; its text says why."""


def read_picture_file(folder: Path, name: str) -> bytes:
    """
    A file in a folder, named by a stranger.

    Raises:
        _Unusable: if it isn't there or can't be read, is no ordinary file, or lies outside the folder.
    """
    shown = ascii(name)[1:-1][:80] if "\x00" in name or not name.isprintable() else name[:80]
    if "://" in name:
        raise _Unusable(f"The picture {shown} is on the net; nothing is downloaded.")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise _Unusable(f"The path {shown} leads out of the folder {folder}.")
        if not path.is_file():  # reading a pipe would wait for ever
            raise _Unusable(f"There is no file {shown}.")
        if path.stat().st_size > MAX_LINE_BYTES:
            raise _Unusable(f"The file {shown} is larger than {MAX_LINE_BYTES} bytes.")
        return path.read_bytes()
    except OSError as error:
        if error.errno in _FILE_TROUBLE:
            raise _Unusable(f"The file {shown} can't be read ({error.strerror}).") from error
        raise
    except (ValueError, RuntimeError) as error:  # of a zero byte; of links in a circle
        raise _Unusable(f"The path {shown} can't be followed ({error}).") from error


def _files_below(folder: Path) -> list[str]:
    """Paths of the files in a folder, sorted, with `/` on every system; hidden ones and linked folders are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    # Pictures in base64 are long cells, and Python has one limit for the whole process.
    csv.field_size_limit(MAX_LINE_BYTES)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        line = 1
        try:
            for cells in reader:
                if header is None:
                    header = [cell.strip() for cell in cells]
                    if len(set(header)) < len(header) or not header:
                        raise ValueError(f"{path} needs a first line with a different name for every column.")
                elif len(cells) == len(header):
                    yield line, dict(zip(header, cells, strict=True))
                elif cells:
                    yield line, f"The row has {len(cells)} cells instead of {len(header)} ({', '.join(header)})."
                else:
                    yield line, "The row is empty."
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path} is no valid CSV from line {line} on: {error}.") from error


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    line = 0
    with open(path, "rb") as file:
        while text := file.readline(MAX_LINE_BYTES + 1):
            line += 1
            if len(text) > MAX_LINE_BYTES:
                raise ValueError(f"{path}, line {line} is longer than {MAX_LINE_BYTES} bytes.")
            if not text.strip():
                yield line, "The row is empty."
                continue
            try:
                record = json.loads(text.decode("utf-8-sig" if line == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield line, f"The row is no JSON in UTF-8 ({error})."
                continue
            yield line, record if isinstance(record, dict) else "The row is no JSON object ({…})."


def _id_of(record: dict[str, Any], column: str) -> str | None:
    idx = record.get(column)
    if idx is None or idx == "":
        return None
    if not isinstance(idx, (str, int)) or isinstance(idx, bool):
        raise _Unusable(f"The id in {column!r} must be a string or a whole number.")
    _check_text(str(idx))
    return str(idx)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Unusable("The row is not UTF-8, or holds half a surrogate pair.") from error


def _split(text: str, separator: str | None) -> list[str]:
    captions = split_captions(text, separator)
    if not captions:
        raise _Unusable("The caption is empty.")
    return captions
