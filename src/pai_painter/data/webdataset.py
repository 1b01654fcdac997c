# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: tar archives in which the files of one sample stand together under one name."""

import gzip
import itertools
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .file_kinds import kind_of_file
from .picture_files import PICTURE_SUFFIXES
from .picture_rows import FileSource, PictureRow, Record, RowReader
from .tsv import MAX_LINE_BYTES, BadRow

__all__ = ["WebDatasetShards"]

_GZIP = "a gzip archive"
_BLOCK = 512  # what a tar archive is made of; its last one is zeros
_LOOKED_AT = 5  # samples at the beginning of a shard, of which one at least must have a caption and a picture
_DAMAGES = (tarfile.TarError, zlib.error, EOFError, OSError)


@dataclass(frozen=True)
class WebDatasetShards(FileSource):
    """
    Tar archives of samples such as `000.jpg` and `000.txt`, or `000.json` with a field `text` or `caption`.

    The archives are unpacked by the datasets library. The samples are put together here and not by its builder: that
    fixes the fields by the first five samples and stops at the first sample with another field or damaged JSON.
    The id is the sample's name, unless its JSON has a field for it.
    """

    def __post_init__(self) -> None:
        for part, path in enumerate(self.paths):
            self._check_archive(path)
            samples = list(itertools.islice(self.records(part), _LOOKED_AT))
            if not samples:
                raise ValueError(f"{path} is empty: it has no samples.")
            views = [self._columns_of(record) for record in samples]
            there = list(dict.fromkeys(itertools.chain.from_iterable(views)))
            for column, option in ((self._caption, "caption_column"), (self._picture, "image_column")):
                if all(column(view) is None for view in views):
                    raise ValueError(
                        f"{path} has no {'caption' if option == 'caption_column' else 'picture'} in its first samples, "
                        f"but {', '.join(map(repr, there))}: please set `{option}`."
                    )

    def _check_archive(self, path: Path) -> None:
        kind = kind_of_file(path)
        if kind == _GZIP:  # which notices by itself if it was cut off
            return
        if kind not in ("a tar archive", "a binary file"):
            raise ValueError(f"{path} is no tar archive: it looks like {kind}.")
        size = path.stat().st_size
        with open(path, "rb") as archive:
            archive.seek(max(0, size - _BLOCK))
            # tarfile takes an archive that was cut off between two files for a whole one.
            if (size % _BLOCK or any(archive.read())) and kind == "a tar archive":
                raise ValueError(f"{path} was cut off: it has not the end of a tar archive. Please copy it again.")

    @property
    def options(self) -> list[Any]:
        columns = self.columns
        return ["webdataset", columns.idx, columns.caption, columns.image, columns.caption_separator]

    def records(self, part: int) -> Iterator[Record]:
        """One for each run of files with the same name; the content is (name, extension → bytes)."""
        path = self.paths[part]
        number = 0
        try:
            with open(path, "rb") as raw:
                archive = gzip.GzipFile(fileobj=raw) if kind_of_file(path) == _GZIP else raw
                members = datasets.StreamingDownloadManager().iter_archive(archive)
                for name, group in itertools.groupby(members, lambda member: _split(member[0])[0]):
                    number += 1
                    yield Record(part, number, (name, _read_sample(group)))
        except _DAMAGES as error:
            what = f"is damaged after sample {number}" if number else "is no tar archive"
            raise ValueError(f"{path} {what}: {error}.") from error

    def read(self, record: Record) -> PictureRow:
        name, files = record.content
        file = self.parts[record.part]
        values: dict[str, Any] = {extension: content for extension, content in files.items() if extension != "json"}
        try:
            values = {**values, **{key: value for key, value in _json_of(files).items() if key not in values}}
        except (ValueError, RecursionError) as error:
            if not any(self._caption([extension]) for extension in values):
                raise BadRow(file, record.line, f"The sample's json is damaged: {error}.", name) from error
        caption, picture = self._caption(list(values)), self._picture(list(values))
        if picture is None or caption is None:
            missing = "picture" if picture is None else "caption"
            raise BadRow(file, record.line, f"The sample has no {missing}, but {', '.join(files)}.", name)
        if values[picture] is None:
            raise BadRow(file, record.line, f"The sample is larger than {MAX_LINE_BYTES} bytes.", name)
        text = values[caption]
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="surrogateescape")
        cells = {
            self.columns.idx: values.get(self.columns.idx, name),
            self.columns.caption: text,
            "picture": values[picture],
        }
        return RowReader(self, self.columns, "picture", has_ids=True).read(record, cells)

    def _columns_of(self, record: Record) -> list[str]:
        _, files = record.content
        try:
            return [*files, *_json_of(files)]
        except (ValueError, RecursionError):
            return list(files)

    def _caption(self, there: list[str]) -> str | None:
        wanted = ("txt", "text", "caption") if self.columns.caption == "text" else (self.columns.caption,)
        return next((column for column in wanted if column in there), None)

    def _picture(self, there: list[str]) -> str | None:
        if self.columns.image is not None:
            return self.columns.image if self.columns.image in there else None
        return next((column for column in there if f".{column}".lower().endswith(PICTURE_SUFFIXES)), None)


def _split(name: str) -> tuple[str, str]:
    """`a/b.c.png` is the file `c.png` of the sample `a/b`."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def _read_sample(members: Iterable[tuple[str, Any]]) -> dict[str, bytes | None]:
    """Extension → content; `None` for a file with which the sample would be too large to be held."""
    sample: dict[str, bytes | None] = {}
    left = MAX_LINE_BYTES
    for name, file in members:
        content: bytes = file.read(left + 1)
        sample[_split(name)[1]] = content if len(content) <= left else None
        left -= len(content) if len(content) <= left else 0
    return sample


def _json_of(files: dict[str, bytes | None]) -> dict[str, Any]:
    content = files.get("json")
    values = {} if content is None else json.loads(content)
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    return values
