# SPDX-License-Identifier: Apache-2.0
"""Shards on the disk: each is whole or not there, and a manifest says how far the work has come."""

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import datasets
import pyarrow
import pyarrow.parquet

__all__ = ["Manifest", "ShardFolder", "ShardFormat", "ShardRow", "ShardWriter", "naming_the_folder"]

ShardFormat = Literal["tsv", "parquet"]

_MANIFEST, _REJECTED = "manifest.json", "rejected_rows.jsonl"
_LAYOUT = 1
# Readers hold one row group of Parquet in memory at a time.
_ROW_GROUP = 64
_FEATURES = datasets.Features(
    {"idx": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
)


@dataclass(frozen=True, slots=True)
class ShardRow:
    """
    Args:
        idx (`str`): The id.
        text (`str`): The caption's cell, on one line.
        picture (`bytes`): The picture file.
    """

    idx: str
    text: str
    picture: bytes


@dataclass
class Manifest:
    """
    What the shards were made of, and how far they have come.

    Args:
        source (`dict`): `rows`, `sha256` and `repeated_ids` of the source.
        options (`dict`): What else decides about the shards' bytes.
        shards (`list[dict]`): `file`, `rows`, `bytes` and `sha256` of each.
        position (`int`): Rows of the source that have been dealt with.
        rejected (`int`): How many of them can't be used.
        rejected_bytes (`int`): Length of the list of those.
        joined_lines (`int`): Captions in which line breaks and tabs became blanks.
        complete (`bool`): Whether all rows have been dealt with.
    """

    source: dict[str, Any]
    options: dict[str, Any]
    shards: list[dict[str, Any]] = field(default_factory=list)
    position: int = 0
    rejected: int = 0
    rejected_bytes: int = 0
    joined_lines: int = 0
    complete: bool = False

    @property
    def rows(self) -> int:
        """Rows in the shards."""
        return sum(shard["rows"] for shard in self.shards)


@contextmanager
def naming_the_folder(path: Path) -> Iterator[None]:
    """
    For the time in which something is written to a folder.

    Raises:
        OSError: if it can't be; its text names the folder and the reason.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} can't be written to ({error.strerror})") from error


class HashedSink:
    """A file whose hash is known; after an error it swallows what pyarrow still wants to write when it closes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size, self.closed, self.failed = file, hashlib.sha256(), 0, False, False

    def write(self, data: bytes) -> int:
        data = bytes(data)
        if not self.failed:
            try:
                self.file.write(data)
            except OSError:
                self.failed = True
                raise
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if not self.failed:
            self.file.flush()

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


class _Writer(Protocol):
    def write(self, row: ShardRow) -> None: ...

    def close(self) -> None: ...


class _TsvWriter:
    def __init__(self, sink: HashedSink) -> None:
        self.sink = sink

    def write(self, row: ShardRow) -> None:
        self.sink.write(f"{row.idx}\t{row.text}\t{base64.b64encode(row.picture).decode('ascii')}\n".encode())

    def close(self) -> None:
        """Rows are written at once."""


class _ParquetWriter:
    def __init__(self, sink: HashedSink) -> None:
        self.schema = _FEATURES.arrow_schema
        # Pictures are compressed already, and a dictionary of them would only be a copy.
        self.writer = pyarrow.parquet.ParquetWriter(sink, self.schema, compression="none", use_dictionary=False)
        self.rows: list[dict[str, Any]] = []

    def write(self, row: ShardRow) -> None:
        self.rows.append({"idx": row.idx, "text": row.text, "image": {"bytes": row.picture, "path": None}})
        if len(self.rows) == _ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        if self.rows:
            self._write_group()
        self.writer.close()

    def _write_group(self) -> None:
        rows, self.rows = self.rows, []
        self.writer.write_table(pyarrow.Table.from_pylist(rows, schema=self.schema))


class ShardFolder:
    """
    The folder of shards: `shard-00000.tsv` (or `.parquet`) and so on, `manifest.json`, `rejected_rows.jsonl`.

    A shard is written under another name, brought to the disk and renamed; then the rejected rows before its end are
    listed; then the manifest takes note of both. What a killed run leaves after its last manifest is written again.

    Args:
        path (`Path`): The folder.
        format (`str`): `"tsv"` or `"parquet"`.
    """

    def __init__(self, path: Path, format: ShardFormat) -> None:
        self.path, self.format = path, format

    @property
    def rejected_file(self) -> Path:
        """The list of rows that can't be used; not there if there are none."""
        return self.path / _REJECTED

    def begin(self, source: dict[str, Any], options: dict[str, Any], force: bool) -> Manifest:
        """
        The manifest to go on from, or a new one.

        Raises:
            ValueError: if the folder holds something else, unless `force`.
            OSError: if it can't be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: please name a folder for the shards.")
        self.path.mkdir(parents=True, exist_ok=True)
        if force:
            self._remove_all()
        elif not (self.path / _MANIFEST).exists():
            strangers = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
            if strangers:
                raise ValueError(
                    f"{self.path} holds {min(strangers)} and perhaps more, but no shards to go on from: please name a "
                    "new folder, or give --force to write into this one."
                )
        for partial in (*self.path.glob(".shard-*.partial"), *self.path.glob(f".{_MANIFEST}.partial")):
            partial.unlink()
        if not (self.path / _MANIFEST).exists():
            manifest = Manifest(source, options)
            self.save(manifest, [])
            return manifest
        found = self._read_manifest()
        self._check_same(found.source, source, "another source")
        self._check_same(found.options, options, "other options")
        self._check_shards(found)
        return found

    def writer(self, manifest: Manifest) -> "ShardWriter":
        """A writer of the next shard."""
        with naming_the_folder(self.path):
            return ShardWriter(self, self._shard_name(len(manifest.shards)))

    def save(self, manifest: Manifest, rejects: list[str]) -> None:
        """
        Takes note of what has been done.

        Args:
            manifest (`Manifest`): The state; its `rejected_bytes` is set here.
            rejects (`list[str]`): Lines for the rows rejected since the last time.
        """
        manifest.rejected_bytes = self.list_rejects(manifest, rejects)
        text = json.dumps({"layout": _LAYOUT, **asdict(manifest)}, ensure_ascii=False, indent=1) + "\n"
        with naming_the_folder(self.path):
            self._replace(_MANIFEST, text.encode())

    def list_rejects(self, manifest: Manifest, rejects: list[str]) -> int:
        """Appends to the list of rejected rows behind the place that the manifest knows; returns the new length."""
        added = "".join(line + "\n" for line in rejects).encode()
        length = manifest.rejected_bytes + len(added)
        if not length:
            self.rejected_file.unlink(missing_ok=True)
            return 0
        mode = "r+b" if self.rejected_file.exists() else "xb"
        with naming_the_folder(self.path), open(self.rejected_file, mode) as file:
            file.truncate(manifest.rejected_bytes)
            file.seek(manifest.rejected_bytes)
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        return length

    def sync(self) -> None:
        """Brings the folder's names to the disk."""
        if os.name == "posix":  # elsewhere folders can't be opened
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _replace(self, name: str, data: bytes) -> None:
        partial = self.path / f".{name}.partial"
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path / name)
        finally:
            partial.unlink(missing_ok=True)
        self.sync()

    def _read_manifest(self) -> Manifest:
        path = self.path / _MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("layout") != _LAYOUT:
                raise ValueError("it is of another version of pai-painter")
            return Manifest(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}): please give --force to begin again.") from error

    def _check_same(self, there: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
        different = [name for name in wanted if there.get(name) != wanted[name]]
        if different:
            facts = ", ".join(f"{name} {there.get(name)!s:.12} instead of {wanted[name]!s:.12}" for name in different)
            raise ValueError(
                f"{self.path} holds shards made from {what} ({facts}): please name a new folder, or give --force to "
                "begin again."
            )

    def _check_shards(self, manifest: Manifest) -> None:
        for shard in manifest.shards:
            path = self.path / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise ValueError(
                    f"{path} is missing or not as it was written: please name a new folder, or give --force to begin "
                    "again."
                )
        if self.rejected_file.exists() < bool(manifest.rejected_bytes):
            raise ValueError(f"{self.rejected_file} is missing: please give --force to begin again.")

    def _remove_all(self) -> None:
        # The manifest goes first: shards without one are begun again, a manifest without its shards is damaged.
        for path in (self.path / _MANIFEST, self.rejected_file):
            path.unlink(missing_ok=True)
        for ending in ("tsv", "parquet"):
            for path in self.path.glob(f"shard-[0-9][0-9][0-9][0-9][0-9].{ending}"):
                path.unlink()

    def _shard_name(self, number: int) -> str:
        return f"shard-{number:05d}.{self.format}"


class ShardWriter:
    """
    One shard while it grows. Made by [`ShardFolder.writer`]; ends with [`commit`] or [`discard`].

    Args:
        folder (`ShardFolder`): Where it goes.
        name (`str`): Its file's name.
    """

    def __init__(self, folder: ShardFolder, name: str) -> None:
        self.folder, self.name, self.rows = folder, name, 0
        self.partial = folder.path / f".{name}.partial"
        self.file = open(self.partial, "wb")  # noqa: SIM115 - closed by `commit` or `discard`
        self.sink = HashedSink(self.file)
        try:
            self.writer: _Writer = _ParquetWriter(self.sink) if folder.format == "parquet" else _TsvWriter(self.sink)
        except OSError:
            self.file.close()
            self.partial.unlink()
            raise

    def write(self, row: ShardRow) -> None:
        """
        Adds a row.

        Raises:
            OSError: if the disk is full.
        """
        with naming_the_folder(self.folder.path):
            self.writer.write(row)
        self.rows += 1

    def commit(self) -> dict[str, Any]:
        """
        Gives the shard its name, and returns what the manifest notes of it.

        Raises:
            OSError: if the disk is full.
        """
        with naming_the_folder(self.folder.path):
            self.writer.close()
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.partial, self.folder.path / self.name)
            self.folder.sync()
        return {
            "file": self.name,
            "rows": self.rows,
            "bytes": self.sink.size,
            "sha256": self.sink.sha256.hexdigest(),
        }

    def discard(self) -> None:
        """Leaves nothing behind."""
        self.sink.failed = True
        self.writer.close()
        try:
            self.file.close()
        except OSError:  # what was still in its buffer doesn't fit on the disk either
            self.file.close()
        self.partial.unlink(missing_ok=True)
