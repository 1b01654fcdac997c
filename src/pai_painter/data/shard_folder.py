# SPDX-License-Identifier: Apache-2.0
"""Shards on the disk: each is whole or not there, and a manifest says which are ours and how far the work has come."""

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

__all__ = ["Manifest", "ShardFolder", "ShardWriter", "naming_the_folder"]

_MANIFEST, _REJECTED = "manifest.json", "rejected_rows.jsonl"
_LAYOUT = "shards of pai-painter, 2"
_SHARD = re.compile(r"shard-\d{5}\.(tsv|parquet)")
_ROW_GROUP = 64  # readers hold one row group of Parquet in memory at a time
_SCHEMA = datasets.Features(
    {"idx": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
).arrow_schema


@dataclass
class Manifest:
    """
    Args:
        run (`dict`): What the shards are made of: hashes of the source and everything that decides about their bytes.
        next (`str`): The name under which the coming shard will appear.
        shards (`list[dict]`): `file`, `rows` and `bytes` of each.
        position (`int`): Rows of the source that have been dealt with.
        rejected (`list[str]`): Lines of JSON for those that can't be used.
        joined_lines (`int`): Captions in which line breaks and tabs became blanks.
        complete (`bool`): Whether all rows have been dealt with.
    """

    run: dict[str, Any]
    next: str
    shards: list[dict[str, Any]] = field(default_factory=list)
    position: int = 0
    rejected: list[str] = field(default_factory=list)
    joined_lines: int = 0
    complete: bool = False


class ShardFolder:
    """
    `shard-00000.tsv` (or `.parquet`) and so on, `manifest.json` and `rejected_rows.jsonl` in one folder.

    A shard is written under another name and renamed; then the manifest takes note of it. A file counts as ours only if
    the manifest names it, and what a killed run leaves after its last manifest is written again.
    """

    def __init__(self, path: Path, format: str) -> None:
        self.path, self.format = path, format
        self.rejected_file = path / _REJECTED

    def begin(self, run: dict[str, Any], force: bool) -> Manifest:
        """
        The manifest to resume from, or a new one.

        Raises:
            ValueError: If the folder holds something else. With `force`, shards of another run are removed.
        """
        found = self._read()
        for name in ("shard-*", _MANIFEST, _REJECTED):
            for partial in self.path.glob(f".{name}.partial"):
                partial.unlink()
        if found is not None and not force:
            self._check(found, run)
            return found
        if found is not None:
            for name in (*(shard["file"] for shard in found.shards), found.next, _REJECTED):
                (self.path / name).unlink(missing_ok=True)
        else:
            others = sorted(entry.name for entry in self.path.iterdir() if entry.name != ".lock")
            if others and (not force or _REJECTED in others):
                raise ValueError(
                    f"{self.path} holds {others[0]} and perhaps more, but no shards to resume from: please name a new "
                    "folder, or give --force to write beside other files."
                )
        manifest = Manifest(run, "")
        self.save(manifest)
        return manifest

    def save(self, manifest: Manifest) -> None:
        """
        Lists the rejected rows and takes note of what has been done.

        Raises:
            ValueError: If a stranger's file has the coming shard's name.
        """
        name = f"shard-{len(manifest.shards):05d}.{self.format}"
        if (self.path / name).exists() and name != manifest.next:
            raise ValueError(f"{self.path / name} is in the way and not ours: please name a new folder.")
        manifest.next = name
        self.list_rejected(manifest.rejected)
        text = json.dumps({"layout": _LAYOUT, **asdict(manifest)}, ensure_ascii=False, indent=1)
        self._replace(_MANIFEST, text + "\n")

    def list_rejected(self, lines: list[str]) -> None:
        """Writes the list of rejected rows, if there are any."""
        if lines:
            self._replace(_REJECTED, "".join(line + "\n" for line in lines))

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        with naming_the_folder(self.path):
            try:
                with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, self.path / name)
            finally:
                partial.unlink(missing_ok=True)

    def _read(self) -> Manifest | None:
        path = self.path / _MANIFEST
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("layout") != _LAYOUT:
                raise ValueError("it is of another program or version")
            manifest = Manifest(**content)
            for name in (manifest.next, *(shard["file"] for shard in manifest.shards)):
                if not _SHARD.fullmatch(name):
                    raise ValueError(f"it names {name!r}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a manifest of these shards ({error}): please name a new folder."
            ) from error
        return manifest

    def _check(self, found: Manifest, run: dict[str, Any]) -> None:
        different = [name for name in run if found.run.get(name) != run[name]]
        if different:
            facts = ", ".join(f"{name} {found.run.get(name)!s:.12} instead of {run[name]!s:.12}" for name in different)
            raise ValueError(
                f"{self.path} holds shards of another source or other options ({facts}): please name a new folder, or "
                "give --force to begin again."
            )
        for shard in found.shards:
            path = self.path / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise ValueError(
                    f"{path} is missing or not as it was written: please name a new folder, or give --force to begin "
                    "again."
                )


class ShardWriter:
    """One shard while it grows; ends with [`commit`] or [`discard`]."""

    def __init__(self, folder: ShardFolder, name: str) -> None:
        self.folder, self.name, self.rows = folder, name, 0
        self.partial = folder.path / f".{name}.partial"
        self._group: list[dict[str, Any]] = []
        self._parquet: Any = None
        with naming_the_folder(folder.path):
            self._file = open(self.partial, "wb")  # noqa: SIM115 - closed by `commit` or `discard`
            if folder.format == "parquet":
                # Pictures are compressed already, and a dictionary of them would only be a copy.
                self._parquet = pyarrow.parquet.ParquetWriter(
                    self._file, _SCHEMA, compression="none", use_dictionary=False
                )

    def write(self, idx: str, text: str, picture: bytes) -> None:
        """Adds a row."""
        with naming_the_folder(self.folder.path):
            if self._parquet is None:
                self._file.write(f"{idx}\t{text}\t{base64.b64encode(picture).decode('ascii')}\n".encode())
            else:
                self._group.append({"idx": idx, "text": text, "image": {"bytes": picture, "path": None}})
                if len(self._group) == _ROW_GROUP:
                    self._write_group()
        self.rows += 1

    def commit(self) -> dict[str, Any]:
        """Gives the shard its name, and returns what the manifest notes of it."""
        with naming_the_folder(self.folder.path):
            if self._parquet is not None:
                self._write_group()
                self._parquet.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            self._file.close()
            os.replace(self.partial, self.folder.path / self.name)
        return {"file": self.name, "rows": self.rows, "bytes": size}

    def discard(self) -> None:
        """Leaves nothing behind."""
        for file in (self._parquet, self._file, self._file):
            if file is not None:
                with suppress(OSError, ValueError, pyarrow.ArrowException):  # a full disk, once more
                    file.close()
        self.partial.unlink(missing_ok=True)

    def _write_group(self) -> None:
        rows, self._group = self._group, []
        if rows:
            self._parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA))


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
        raise OSError(error.errno, f"{path} can't be written to ({error.strerror or error})") from error
