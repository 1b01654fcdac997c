# SPDX-License-Identifier: Apache-2.0
"""
A run on the disk. `pictures.tsv.manifest.json` says what is being made and at the end what was made; the shards that
are done are in `pictures.tsv.parts/` until they become `pictures.tsv`.

Several processes, on several machines, need nothing but these in common. A shard's content follows from the manifest
alone, so that nothing but time is lost when two of them paint the same one.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from ..whole_files import check_new_files, sync, write_whole
from .output_formats import FormatName, PaintedRow, write_output

logger = logging.get_logger(__name__)

_LAYOUT = 3

Manifest = dict[str, Any]


class ResumableRun:
    """
    Args:
        captions (`Path`): The file that is read.
        output (`Path`): The file or folder that is to be there in the end.
        format (`tuple`): From [`~output_formats.find_format`].
        process (`str`): A name that no other process of this run has.

    Raises:
        ValueError: if a file would take the captions' place, or if something can't be renamed in the end.
    """

    def __init__(self, captions: Path, output: Path, format: tuple[FormatName, list[str]], process: str) -> None:
        if output.name in ("", "..", "-"):
            raise ValueError(f"The output {output} has no name of its own: please name a new file or folder.")
        self.output, self.format, self.process = output, format, process
        self.manifest = output.with_name(f"{output.name}.manifest.json")
        self.rejects = output.with_name(f"{output.name}.rejected_rows.jsonl")
        self.parts = output.with_name(f"{output.name}.parts")
        self.joined, self.listed = self.parts / "joined", self.parts / "rejects"
        self.id, self.begun = "", Manifest()
        for path in (self.output, self.manifest, self.rejects, self.parts):
            if path.is_symlink() or path.is_mount():
                raise ValueError(f"{path} is a link or a mount point, which can't be replaced: please name another.")
            if captions.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"{captions} is in a place that this run writes to ({path}): please name another.")

    def begin(self, wanted: Manifest, force: bool) -> Manifest:
        """
        The manifest to go on from: the one that is there, or else the one that is wanted. Its `input` and `options`
        must be the same whenever a run goes on; `force` removes what another run made, and starts over.

        Raises:
            ValueError: if another run was begun there, unless `force`; or if what was finished has changed.
            FileExistsError: if something is there that no manifest of ours names.
        """
        self.id = hashlib.sha256(json.dumps([wanted["input"], wanted["options"]]).encode()).hexdigest()[:16]
        if force:
            self._remove()
        made = self.finished()
        if made is None:
            self._check_new()
        self.begun = self._read() or self._create(wanted)
        for part in ("input", "options"):
            for name, value in wanted[part].items():
                if self.begun[part].get(name) != value:
                    raise ValueError(
                        f"{self.output} was started with different {part} ({name} {self.begun[part].get(name)!s:.24} "
                        f"instead of {value!s:.24}): please give the same, another output, or --force to start over."
                    )
        if made is not None:
            self._give_names(made)
        return self.begun

    def finished(self) -> dict[str, Any] | None:
        """What is told of the finished output, `None` if it isn't there yet."""
        return (self._read() or {}).get("complete")

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
            if self.finished() is not None and not self.joined.exists():  # locking has made the folder again
                self._remove_parts()

    def path_of(self, shard: int) -> Path:
        """The file of a shard of this run, which is there whole or not at all."""
        return self.parts / f"{shard:06d}-{self.id}.jsonl"

    def write_shard(self, shard: int, rows: Iterable[PaintedRow | dict[str, Any]]) -> None:
        """Painted rows, what the list says of the others, and counts."""
        self._write(self.path_of(shard), (asdict(row) if isinstance(row, PaintedRow) else row for row in rows))

    def join(self, shards: range) -> dict[str, Any]:
        """Makes the output of all shards. Whatever interrupts it, the next [`begin`] ends it, or the next `join`."""
        shutil.rmtree(self.joined, ignore_errors=True)
        counts: Counter[str] = Counter()
        with open(self.listed, "wb") as rejects:

            def painted() -> Iterator[PaintedRow]:
                for shard in shards:
                    with open(self.path_of(shard), "rb") as lines:
                        for line in lines:
                            row = json.loads(line)
                            if "text" in row:
                                yield PaintedRow(**row)
                            elif "reason" in row:
                                rejects.write(line)
                            else:
                                counts.update(row)

            write_output(*self.format, self.joined, painted())
        sync(self.listed)
        self._check_new()  # nobody has made them in the meantime
        if not counts["rejected"]:
            self.listed.unlink()
        made = {**counts, "bytes": _size_of(self.joined), "rejects_bytes": _size_of(self.listed)}
        self._write(self.manifest, [{**self.begun, "complete": made}])
        self._give_names(made)
        return made

    def _give_names(self, made: dict[str, Any]) -> None:
        for path, name in ((self.listed, self.rejects), (self.joined, self.output)):
            with suppress(FileNotFoundError):  # an earlier process has got that far
                os.replace(path, name)
        sync(self.output.parent)
        if _size_of(self.output) != made["bytes"]:
            raise ValueError(f"{self.output} was finished, but is gone or changed: please give another output.")
        self._remove_parts()

    def _check_new(self) -> None:
        if self.format[0] == "png":
            with suppress(OSError):
                self.output.rmdir()  # an empty folder is as good as none
        for path in (self.output, self.rejects):
            if os.path.lexists(path):
                raise FileExistsError(f"{path} already exists and isn't from this run: please move it or name another.")
        check_new_files([self.output], force=False)

    def _create(self, wanted: Manifest) -> Manifest:
        if self.parts.exists() and any(path.suffix not in (".lock", ".writing") for path in self.parts.iterdir()):
            raise FileExistsError(f"{self.parts} wasn't written by this command: please move it or use another output.")
        self.parts.mkdir(exist_ok=True)
        with self.lock("begin", wait=True):
            if not self.manifest.exists():
                self._write(self.manifest, [{"layout": _LAYOUT, **wanted}])
            return self._read() or wanted

    def _remove(self) -> None:
        """What a manifest of ours names, and nothing else; the manifest last, without it the rest would be nobody's."""
        found = self._read()
        if found is None:
            return
        made, files = found.get("complete"), []
        if made is None:
            self._check_new()
        else:
            files = [*_own_files(self.output, made["bytes"]), *_own_files(self.rejects, made["rejects_bytes"])]
        for path in self.parts.glob("*.lock"):
            with self.lock(path.stem):
                pass
        self._remove_parts()
        for path in files:
            path.rmdir() if path.is_dir() else path.unlink()
        self.manifest.unlink()

    def _remove_parts(self) -> None:
        shutil.rmtree(self.joined, ignore_errors=True)
        for pattern in ("[0-9]*.jsonl", "*.writing", "*.lock", "joined", "rejects"):
            for path in self.parts.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # it is gone, or somebody has put something else there
            self.parts.rmdir()

    def _read(self) -> Manifest | None:
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            if manifest["layout"] != _LAYOUT:
                raise ValueError("it is of another version of pai-painter")
            return manifest
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            reason = f"{self.manifest} is not a manifest of this command ({error}): please move it away."
            raise ValueError(reason) from error

    def _write(self, path: Path, lines: Iterable[dict[str, Any]]) -> None:
        """JSON lines. What a killed process leaves, its next run writes over or removes."""

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                for line in lines:
                    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
                    file.write(text.encode("utf-8", "backslashreplace") + b"\n")

        write_whole(path, write, partial=self.parts / f"{self.process}.writing")
        sync(path.parent)


def _own_files(output: Path, size: int) -> list[Path]:
    """Files and folders in the order in which they can be removed; a `FileExistsError` if one isn't ours."""
    if not os.path.lexists(output):
        return []
    listing, ours = output / "metadata.jsonl", {output}
    if listing.is_file():
        with open(listing, "rb") as lines:
            ours |= {listing, *(output / json.loads(line)["file_name"] for line in lines)}
            ours |= {path.parent for path in ours} - {output.parent}
    found = sorted([*output.rglob("*"), output], key=lambda path: (-len(path.parts), path))
    strange = next((path for path in found if path not in ours), None)
    if strange or _size_of(output) != size:
        raise FileExistsError(f"{strange or output} isn't what this command wrote: please move it or name another.")
    return found


def _size_of(path: Path) -> int:
    """Bytes of a file; of a folder, those of its listing."""
    path = path / "metadata.jsonl" if path.is_dir() else path
    return path.stat().st_size if path.is_file() else -1
