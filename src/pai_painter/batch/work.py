# SPDX-License-Identifier: Apache-2.0
"""
A run on the disk. Beside `pictures.tsv`:

- `pictures.tsv.manifest.json`: what is being made, and in the end that it is complete;
- `pictures.tsv.parts/`: the shards that are done, each with a record, until they are joined.

Several processes, on several machines, need nothing but this folder in common.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..imaging.png_files import check_new_files
from .formats import OutputFormat, sync

__all__ = ["Manifest", "ShardRecord", "Work", "naming_the_output"]

_LAYOUT = 1


@dataclass
class Manifest:
    """
    Args:
        input (`dict`): Of the captions: their number, hash, and how they are read.
        options (`dict`): What else decides about the result.
        fixed (`dict`): What the first process has found out, for all that follow.
        resumable (`bool`): Whether the captions can be had again.
        complete (`dict`, *optional*): The summary, when all is done.
    """

    input: dict[str, Any]
    options: dict[str, Any]
    fixed: dict[str, Any]
    resumable: bool
    complete: dict[str, Any] | None = None


@dataclass
class ShardRecord:
    """
    What a shard has become. Its file is there before it.

    Args:
        bytes (`int`, *optional*): Length of its file, if it is one.
        rows, pictures (`int`): In it.
        batch_size (`int`): Pictures that were painted at once.
        cut, unknown (`int`): Captions that were too long, and that had words unknown to the model.
        joined_lines (`int`): Captions in which line breaks became blanks.
        rejects (`list[dict]`): Rows that can't be used: `line`, `idx`, `reason`.
        samples (`list[list[str]]`): The first pictures of the run for a contact sheet: caption, file in base64.
    """

    bytes: int | None = None
    rows: int = 0
    pictures: int = 0
    batch_size: int = 0
    cut: int = 0
    unknown: int = 0
    joined_lines: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    samples: list[list[str]] = field(default_factory=list)


@contextmanager
def naming_the_output(path: Path) -> Iterator[None]:
    """
    For the time in which something is written.

    Raises:
        OSError: if it can't be; its text names the place and the reason.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"{path} can't be written to ({reason}); when that is mended, the same command goes on"
        ) from error


class Work:
    """
    Args:
        output (`Path`): The file or folder that is to be there in the end.
        format ([`OutputFormat`]): What it is.
    """

    def __init__(self, output: Path, format: OutputFormat) -> None:
        self.output, self.format = output, format
        self.manifest_file = output.with_name(f"{output.name}.manifest.json")
        self.parts = output.with_name(f"{output.name}.parts")
        self.joined = self.parts / "joined"

    def begin(self, new: Manifest, overwrite: bool, other_files: list[Path]) -> Manifest:
        """
        The manifest to go on from, or else the new one.

        Args:
            new ([`Manifest`]): What is wanted.
            overwrite (`bool`): Start over, whatever is there.
            other_files (`list[Path]`): Files that will be written, too.

        Raises:
            ValueError: if something else has been begun there, unless `overwrite`.
            FileExistsError: if one of the files is there, unless `overwrite`.
        """
        if overwrite or self._is_left_over():
            self._remove_all()
        if not self.manifest_file.exists():
            if not self.output.is_dir():
                check_new_files([self.output], overwrite)
            elif any(self.output.iterdir()):
                raise FileExistsError(f"{self.output} is a folder with something in it: please give a new name.")
            check_new_files(other_files, overwrite)
            with naming_the_output(self.parts):
                self.parts.mkdir(parents=True, exist_ok=True)
                self._create_manifest(new)
        found = self.read_manifest()
        self._check_same(found.input, new.input, "other captions")
        self._check_same(found.options, new.options, "other options")
        if found.complete is not None:
            self._finish_rename()
        return found

    def read_manifest(self) -> Manifest:
        """
        The manifest on the disk.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            content = json.loads(self.manifest_file.read_text(encoding="utf-8"))
            if content.pop("layout") != _LAYOUT:
                raise ValueError("it is of another version of pai-painter")
            return Manifest(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{self.manifest_file} is damaged ({error}): please give --force to start over."
            ) from error

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """For a shard or for joining; gives `False` if another process has it."""
        try:
            lock = FileLock(self.parts / f"{name}.lock")
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except NotImplementedError:  # a shared folder without locks: two processes with one rank would do work twice
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    def record_of(self, shard: int) -> ShardRecord | None:
        """What a shard has become, or `None` if it isn't whole."""
        try:
            record = ShardRecord(**json.loads(self._record_file(shard).read_text(encoding="utf-8")))
            status = self.format.part_path(self.parts, shard).stat()
        except (OSError, ValueError, TypeError):
            return None
        return record if record.bytes in (None, status.st_size) else None

    def partial(self, shard: int) -> Path:
        """Where a shard is written before it is whole."""
        path = self.format.part_path(self.parts, shard)
        return path.with_name(f".{path.name}.partial")

    def commit(self, shard: int, record: ShardRecord) -> None:
        """Gives a shard its name and notes it."""
        path, partial = self.format.part_path(self.parts, shard), self.partial(shard)
        if path.is_dir():  # from a run that was killed before it could note the shard
            shutil.rmtree(path)
        record.bytes = None if partial.is_dir() else partial.stat().st_size
        os.replace(partial, path)
        sync(path.parent)
        self._replace(self._record_file(shard), asdict(record))

    def discard(self, shard: int) -> None:
        """Removes what a shard has left unfinished."""
        partial = self.partial(shard)
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)

    def keep_batch_size(self, size: int) -> None:
        """For the shards to come, of all processes."""
        self._replace(self.parts / "batch_size.json", size)

    def kept_batch_size(self, largest: int) -> int:
        """The batch size at last, if memory was full with `largest`."""
        try:
            return min(largest, int(json.loads((self.parts / "batch_size.json").read_text(encoding="utf-8"))))
        except FileNotFoundError:
            return largest

    def complete(self, manifest: Manifest, num_shards: int, summary: dict[str, Any]) -> None:
        """Joins all shards. Whatever interrupts it, it can be called again, or the next [`begin`] ends it."""
        with naming_the_output(self.output):
            self.format.join([self.format.part_path(self.parts, shard) for shard in range(num_shards)], self.joined)
            manifest.complete = summary
            self._replace(self.manifest_file, {"layout": _LAYOUT, **asdict(manifest)})
            self._finish_rename()

    def abandon(self) -> None:
        """Leaves nothing behind."""
        self.manifest_file.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)

    def write_rejects(self, path: Path, num_shards: int, name: str) -> int:
        """Lists the rows of all shards that can't be used, and returns their number; without any there is no file."""
        count, partial = 0, path.with_name(f".{path.name}.partial")
        with naming_the_output(path), open(partial, "w", encoding="utf-8") as file:
            for shard in range(num_shards):
                record = self.record_of(shard) or ShardRecord()
                count += len(record.rejects)
                lines = (json.dumps({"file": name, **reject}, ensure_ascii=False) for reject in record.rejects)
                file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        if count:
            os.replace(partial, path)
        else:
            partial.unlink()
            path.unlink(missing_ok=True)
        return count

    def _finish_rename(self) -> None:
        if self.joined.exists():
            if self.output.is_dir():
                with suppress(OSError):  # an empty one, as `begin` has seen, or what another process has just made
                    self.output.rmdir()
            with suppress(FileNotFoundError):  # another process was quicker
                os.replace(self.joined, self.output)
            sync(self.output.parent)
        if not self.output.exists():
            raise ValueError(
                f"{self.manifest_file} says that {self.output} was finished, but it is gone: please give --force to "
                f"start over."
            )
        shutil.rmtree(self.parts, ignore_errors=True)

    def _is_left_over(self) -> bool:
        """Whether a killed run from standard input has left something."""
        if not self.manifest_file.exists():
            return False
        manifest = self.read_manifest()
        return not manifest.resumable and manifest.complete is None

    def _remove_all(self) -> None:
        # The manifest goes first: without it the rest is nothing that anybody would go on from.
        is_ours = self.manifest_file.exists()
        self.abandon()
        if self.output.is_dir() and is_ours and (self.output / "metadata.jsonl").is_file():
            shutil.rmtree(self.output)

    def _create_manifest(self, manifest: Manifest) -> None:
        """Of several processes that begin at once, one is the first; the others find its manifest."""
        temporary = self.parts / f"manifest-{secrets.token_hex(8)}"
        self._replace(temporary, {"layout": _LAYOUT, **asdict(manifest)})
        try:
            with suppress(FileExistsError):
                os.link(temporary, self.manifest_file)
        except OSError:  # a file system without hard links
            os.replace(temporary, self.manifest_file)
        temporary.unlink(missing_ok=True)
        sync(self.manifest_file.parent)

    def _check_same(self, there: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
        different = [name for name in wanted if there.get(name) != wanted[name]]
        if different:
            facts = ", ".join(f"{name} {there.get(name)!s:.24} instead of {wanted[name]!s:.24}" for name in different)
            raise ValueError(
                f"{self.output} was begun with {what} ({facts}): please give the same again, another name, or --force "
                f"to start over."
            )

    def _record_file(self, shard: int) -> Path:
        return self.parts / f"{shard:06d}.json"

    def _replace(self, path: Path, content: Any) -> None:
        # Made among the parts, so that nothing is left elsewhere by a run that is killed.
        temporary = self.parts / f".{path.name}.{secrets.token_hex(4)}"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
