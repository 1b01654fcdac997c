# SPDX-License-Identifier: Apache-2.0
"""
A run on the disk. `pictures.tsv.parts/` holds a manifest that says what is being made, and the shards that are done;
at the end they become `pictures.tsv`, with `pictures.tsv.manifest.json` as a record beside it.

Several processes, on several machines, need nothing but this folder in common. A shard's content follows from the
manifest alone, so that nothing but time is lost when two of them paint the same one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from ..imaging.png_files import check_new_files
from ..whole_files import sync
from .output_formats import FormatName, PaintedRow, write_output

__all__ = ["ResumableRun"]

logger = logging.get_logger(__name__)

_LAYOUT = 2
_LONGEST_ENDING = 4096

Manifest = dict[str, Any]


class ResumableRun:
    """
    Args:
        output (`Path`): The file or folder that is to be there in the end.
        rejects (`Path`, *optional*): The list of rows that can't be painted.
        format (`tuple`): From [`~output_formats.find_format`].
        process (`str`): A name that no other process of this run has.
    """

    def __init__(self, output: Path, rejects: Path | None, format: tuple[FormatName, list[str]], process: str) -> None:
        if output.name in ("", "..", "-"):
            raise ValueError(f"The output {output} has no name of its own: please name a new file or folder.")
        self.output, self.format, self.process = output, format, process
        self.rejects = output.with_name(f"{output.name}.rejected_rows.jsonl") if rejects is None else rejects
        self.manifest_file = output.with_name(f"{output.name}.manifest.json")
        self.parts = output.with_name(f"{output.name}.parts")
        self.begun_file, self.joined, self.listed = map(self.parts.joinpath, ("manifest.json", "joined", "rejects"))
        self.id = ""

    def check_places(self, captions: Path) -> None:
        """A `ValueError` if one file would take another's place, or if something can't be renamed in the end."""
        for path in (self.output, self.manifest_file, self.parts, self.rejects):
            if path.is_symlink() or path.is_mount():
                raise ValueError(f"{path} is a link or a mount point, which can't be replaced: please name another.")
            for other in (captions, self.rejects):
                if other is not path and other.resolve().is_relative_to(path.resolve()):
                    raise ValueError(f"{other} is in a place that this run writes to ({path}): please name another.")

    def begin(self, wanted: Manifest, force: bool) -> Manifest:
        """
        The manifest to go on from: the one that is there, or else the one that is wanted. Its `input` and `options`
        must be the same whenever a run goes on; `force` removes what another run made, and starts over.

        Raises:
            ValueError: if another run was begun there, unless `force`; or if what was finished has changed.
            FileExistsError: if something is there that no manifest of ours names.
        """
        self.id = hashlib.sha256(json.dumps([_LAYOUT, wanted["input"], wanted["options"]]).encode()).hexdigest()
        if force:
            self._remove()
        begun = self._read(self.begun_file)
        finished = self._read(self.manifest_file)  # in this order: it comes before the other one goes
        found = finished or begun or self._create(wanted)
        for part, facts in ((part, found[part]) for part in ("input", "options")):
            for name in wanted[part]:
                if facts.get(name) != wanted[part][name]:
                    raise ValueError(
                        f"{self.output} was begun with other {part} ({name} {facts.get(name)!s:.24} instead of "
                        f"{wanted[part][name]!s:.24}): please give the same, another output, or --force to start over."
                    )
        if finished is not None:
            self._give_names(finished)
        elif self._read(self.manifest_file) is None:
            self._check_new(self.rejects)
        return found

    def finished(self) -> dict[str, Any] | None:
        """What is told of the finished output, `None` if it isn't there yet."""
        return (self._read(self.manifest_file) or {}).get("complete")

    @contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[None]:
        """A `ValueError` if another process has it, unless `wait`."""
        lock = FileLock(self.parts / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            held = f"Another process has locked {lock.lock_file}; if none runs on any machine, please remove that file"
            if not wait:
                raise ValueError(f"{held}.") from error
            logger.warning(f"Waiting: {held}.")
            lock.acquire(poll_interval=0.5)
        try:
            yield
        finally:
            lock.release()
            if not self.begun_file.exists():  # all is finished, and locking has made the folder again
                self._remove_parts()

    def ending_of(self, shard: int) -> dict[str, int] | None:
        """The counts of a shard of this run, `None` if it isn't there or not whole."""
        try:
            with open(self._path_of(shard), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_ENDING))
                ending = json.loads(file.readlines()[-1])
            return ending["counts"] if (ending["run"], ending["shard"]) == (self.id, shard) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def write_shard(self, shard: int, rows: Iterable[PaintedRow | dict[str, Any]], counts: dict[str, int]) -> None:
        """Painted rows and what the list says of the others; the last line names the run and what was counted."""

        def lines() -> Iterator[dict[str, Any]]:
            yield from (asdict(row) if isinstance(row, PaintedRow) else row for row in rows)
            yield {"run": self.id, "shard": shard, "counts": counts}

        self._write(self._path_of(shard), lines())

    def join(self, num_shards: int, counts: dict[str, int]) -> dict[str, Any]:
        """Makes the output of all shards. Whatever interrupts it, the next [`begin`] ends it, or the next `join`."""
        shutil.rmtree(self.joined, ignore_errors=True)
        with open(self.listed, "wb") as rejects:

            def painted() -> Iterator[PaintedRow]:
                for shard in range(num_shards):
                    with open(self._path_of(shard), "rb") as lines:
                        for line in lines:
                            row = json.loads(line)
                            if "pngs" in row:
                                yield PaintedRow(**row)
                            elif "reason" in row:
                                rejects.write(line)

            write_output(*self.format, self.joined, painted())
        sync(self.listed)
        self._check_new(self.rejects, self.output)  # nobody has made them in the meantime
        name = os.path.relpath(self.rejects, self.output.parent) if counts["rejected"] else None
        sizes = {"bytes": _size_of(self.joined), "rejects_bytes": _size_of(self.listed)}
        manifest = {**(self._read(self.begun_file) or {}), "complete": {**counts, "rejects": name, **sizes}}
        self._write(self.manifest_file, [manifest])
        self._give_names(manifest)
        return manifest["complete"]

    def _give_names(self, manifest: Manifest) -> None:
        made = manifest["complete"]
        if self.joined.exists():
            with suppress(FileNotFoundError):  # another process was quicker
                if made["rejects"] is not None:
                    rejects = self.output.parent / made["rejects"]
                    partial = rejects.with_name(f".{rejects.name}.partial")  # it may be on another file system
                    shutil.copyfile(self.listed, partial)
                    sync(partial)
                    os.replace(partial, rejects)
                os.replace(self.joined, self.output)
            sync(self.output.parent)
        if _size_of(self.output) != made["bytes"]:
            raise ValueError(f"{self.output} was finished, but is gone or changed: please give another output.")
        self._remove_parts()

    def _check_new(self, *paths: Path) -> None:
        for path in paths:
            if os.path.lexists(path):
                raise FileExistsError(f"{path} is there, and not of this run: please move it or name another.")
        check_new_files(paths, force=False)

    def _create(self, wanted: Manifest) -> Manifest:
        if self.parts.exists() and any(path.suffix not in (".lock", ".writing") for path in self.parts.iterdir()):
            raise FileExistsError(f"{self.parts} is not of this command: please move it or give another output.")
        if self.format[0] == "png":
            with suppress(OSError):
                self.output.rmdir()  # an empty folder is as good as none
        self._check_new(self.output, self.rejects)
        self.parts.mkdir(exist_ok=True)
        with self.lock("begin", wait=True):
            if not self.begun_file.exists():
                self._write(self.begun_file, [{"layout": _LAYOUT, **wanted}])
            return self._read(self.begun_file) or wanted

    def _remove(self) -> None:
        """What a manifest of ours names, and nothing else."""
        begun, finished = self._read(self.begun_file), self._read(self.manifest_file)
        made = {} if finished is None else finished["complete"]
        files = _own_files(self.output, made["bytes"]) if made and os.path.lexists(self.output) else []
        is_named = made.get("rejects") == os.path.relpath(self.rejects, self.output.parent)
        if is_named and _size_of(self.rejects) == made["rejects_bytes"]:
            files.append(self.rejects)
        else:
            self._check_new(self.rejects)
        if begun is not None:
            for path in self.parts.glob("*.lock"):
                with self.lock(path.stem):
                    pass
            self._remove_parts()
        for path in files:
            path.rmdir() if path.is_dir() else path.unlink()
        if made:
            self.manifest_file.unlink()

    def _remove_parts(self) -> None:
        """The manifest last: without it, the rest would be nobody's."""
        shutil.rmtree(self.joined, ignore_errors=True)
        for pattern in ("[0-9]*.jsonl", "*.writing", "*.lock", "joined", "rejects", "manifest.json"):
            for path in self.parts.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # it is gone, or somebody has put something else there
            self.parts.rmdir()

    def _path_of(self, shard: int) -> Path:
        return self.parts / f"{shard:06d}.jsonl"

    def _read(self, path: Path) -> Manifest | None:
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["layout"] != _LAYOUT:
                raise ValueError("it is of another version of pai-painter")
            return {**manifest, "input": dict(manifest["input"]), "options": dict(manifest["options"])}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a manifest of this command ({error}): please move it away.") from error

    def _write(self, path: Path, lines: Iterable[dict[str, Any]]) -> None:
        """JSON lines, whole or not at all. What a killed process leaves, its next run writes over or removes."""
        partial = self.parts / f"{self.process}.writing"
        try:
            with open(partial, "wb") as file:
                for line in lines:
                    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
                    file.write(text.encode("utf-8", "backslashreplace") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)


def _own_files(output: Path, size: int) -> list[Path]:
    """Files and folders in the order in which they can be removed; a `FileExistsError` if one isn't ours."""
    listing, ours = output / "metadata.jsonl", {output}
    walk = os.walk(output, topdown=False)
    found = [Path(folder) / name for folder, folders, files in walk for name in files + folders]
    if listing.is_file():
        with open(listing, "rb") as lines:
            ours |= {listing, *(output / json.loads(line)["file_name"] for line in lines)}
            ours |= {path.parent for path in ours} - {output.parent}
    strange = next((path for path in [*found, output] if path not in ours), None)
    if strange or output.is_symlink() or _size_of(output) != size:
        raise FileExistsError(f"{strange or output} isn't what this command wrote: please move it or name another.")
    return [*found, output]


def _size_of(path: Path) -> int:
    """Bytes of a file; of a folder, those of its listing."""
    path = path / "metadata.jsonl" if path.is_dir() else path
    return path.stat().st_size if path.is_file() else -1
