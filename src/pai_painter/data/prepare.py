# SPDX-License-Identifier: Apache-2.0
"""Any source of captions and pictures to checked shards: what `pai-painter prepare` does."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .checking import check_rows
from .picture_rows import DataSource, PictureRow
from .repeated_ids import RepeatedIds
from .shards import Manifest, ShardFolder, ShardFormat, ShardRow, ShardWriter, naming_the_folder
from .tsv import BadRow

__all__ = ["PrepareOptions", "Prepared", "prepare_rows"]

Progress = Callable[[str, int, int | None], None]

_LINE_BREAK = re.compile(r" *[\t\r\n]+ *")


@dataclass(frozen=True)
class PrepareOptions:
    """
    What decides about the shards' bytes, besides the source.

    Args:
        format (`str`, *optional*, defaults to `"tsv"`): `"tsv"` (idx, text, imgbase64) or `"parquet"` (idx, text and
            an image as the datasets library writes it).
        shard_size (`int`, *optional*, defaults to 10000): Rows of a shard.
        size (`int`, *optional*): Pictures whose shorter side has more pixels are shrunk to this, as JPEG if they were
            JPEG or WebP and as PNG otherwise. The files of all others are kept byte for byte.
        caption_separator (`str`, *optional*): Stands between several captions of one picture.

    Raises:
        ValueError: if one of them is out of range.
    """

    format: ShardFormat = "tsv"
    shard_size: int = 10_000
    size: int | None = None
    caption_separator: str | None = None

    def __post_init__(self) -> None:
        if self.format not in ("tsv", "parquet"):
            raise ValueError(f"The format of shards is tsv or parquet, not {self.format!r}.")
        for name, value in (("shard_size", self.shard_size), ("size", self.size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1.")
        if self.caption_separator is not None and _LINE_BREAK.search(self.caption_separator):
            raise ValueError("The captions of a row stand on one line: caption_separator can't be a tab or line break.")


@dataclass(frozen=True)
class Prepared:
    """
    Args:
        rows (`int`): Rows in the shards.
        rejected (`int`): Rows that can't be used.
        joined_lines (`int`): Captions in which line breaks and tabs became blanks.
        repeated_ids (`int`): Rows with an id that an earlier row has.
        shards (`list[Path]`): The files.
        bytes (`int`): Their size.
        rejected_file (`Path` or `None`): The list of rejected rows.
    """

    rows: int
    rejected: int
    joined_lines: int
    repeated_ids: int
    shards: list[Path]
    bytes: int
    rejected_file: Path | None


def prepare_rows(
    source: DataSource,
    output: Path,
    options: PrepareOptions,
    *,
    workers: int = 1,
    max_bad_rows: int = 100,
    force: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Prepared:
    """
    Writes the rows of a source, each checked as training checks it, into shards.

    The result depends on the source and the options alone: not on the number of processes, nor on how often the work
    was stopped and begun again.

    Args:
        source (`DataSource`): See [`~data.sources.find_source`].
        output (`Path`): A new folder, or one in which the same work was begun.
        options ([`PrepareOptions`]): What the shards are like.
        workers (`int`, *optional*, defaults to 1): Processes that open pictures.
        max_bad_rows (`int`, *optional*, defaults to 100): More unusable rows than this are an error.
        force (`bool`, *optional*, defaults to `False`): Begin again if the folder holds something else.
        progress (`Callable`, *optional*): Called now and then with what is being done, how many rows of it are done,
            and of how many (or `None`).

    Returns:
        [`Prepared`]: what was done, the parts before an interruption included.

    Raises:
        ValueError: if no row or too few rows can be used, or if the folder holds other shards.
        OSError: if the disk is full; nothing half written is left.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, but must be at least 1.")
    if output.is_file():
        raise ValueError(f"{output} is a file: please name a folder for the shards.")
    if output.suffix in (".tsv", ".parquet"):
        raise ValueError(f"{output} would be a folder of shards: please name it without {output.suffix}.")
    identity = _identify(source, progress)
    with naming_the_folder(output):
        output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            folder = ShardFolder(output, options.format)
            manifest = folder.begin(identity, vars(options), force)
            if not manifest.complete:
                _Preparation(source, folder, manifest, options, workers, max_bad_rows, progress).run()
    except Timeout as error:
        raise ValueError(f"Another process is writing to {output}: please wait for it, or stop it.") from error
    return Prepared(
        rows=manifest.rows,
        rejected=manifest.rejected,
        joined_lines=manifest.joined_lines,
        repeated_ids=identity["repeated_ids"],
        shards=[output / shard["file"] for shard in manifest.shards],
        bytes=sum(shard["bytes"] for shard in manifest.shards),
        rejected_file=folder.rejected_file if manifest.rejected else None,
    )


def _identify(source: DataSource, progress: Progress) -> dict[str, Any]:
    """Reads everything once: what is changed later is noticed, and the progress bar knows the end."""
    digest, ids, count = hashlib.sha256(), RepeatedIds(), 0
    for row in source.good_and_bad_rows():
        count += 1
        if isinstance(row, BadRow):
            digest.update(repr(("bad", row.line_number, row.idx, row.reason)).encode())
        else:
            digest.update(repr((row.idx, row.captions, len(row.picture))).encode())
            digest.update(row.picture)
            ids.add(row.idx)
        progress("Reading", count, None)
    return {"rows": count, "sha256": digest.hexdigest(), "repeated_ids": ids.count()}


class _Preparation:
    """The state of one run between two notes in the manifest."""

    def __init__(
        self,
        source: DataSource,
        folder: ShardFolder,
        manifest: Manifest,
        options: PrepareOptions,
        workers: int,
        max_bad_rows: int,
        progress: Progress,
    ) -> None:
        self.source, self.folder, self.manifest, self.options = source, folder, manifest, options
        self.workers, self.max_bad_rows, self.progress = workers, max_bad_rows, progress
        self.rejects: list[str] = []
        self.joined_lines = 0
        self.position = manifest.position

    def run(self) -> None:
        """From where the manifest is to the end."""
        total = self.manifest.source["rows"]
        rows = islice(self.source.good_and_bad_rows(), self.position, None)
        checked = check_rows(rows, self.options.size, self.workers)
        shard: ShardWriter | None = None
        try:
            for row in checked:
                self.position += 1
                if isinstance(row, PictureRow) and (not row.idx.strip() or _LINE_BREAK.search(row.idx)):
                    row = BadRow(row.file, row.line, f"The id {row.idx!r} is empty or has line breaks.", row.idx)
                if isinstance(row, BadRow):
                    self._reject(row)
                else:
                    if shard is None:
                        shard = self.folder.writer(self.manifest)
                    shard.write(self._on_one_line(row))
                    if shard.rows == self.options.shard_size:
                        self._commit(shard)
                        shard = None
                self.progress("Preparing", self.position, total)
            self._finish(shard)
            shard = None
        finally:
            checked.close()
            if shard is not None:
                shard.discard()

    def _commit(self, shard: ShardWriter) -> None:
        self.manifest.shards.append(shard.commit())
        self._save()

    def _finish(self, shard: ShardWriter | None) -> None:
        if shard is None and not self.manifest.shards:
            raise ValueError(f"{self.source.name} has no usable row.{self._first_reject()}")
        if shard is not None:
            self.manifest.shards.append(shard.commit())
        self.manifest.complete = True
        self._save()

    def _save(self) -> None:
        self.manifest.position = self.position
        self.manifest.rejected += len(self.rejects)
        self.manifest.joined_lines += self.joined_lines
        self.folder.save(self.manifest, self.rejects)
        self.rejects, self.joined_lines = [], 0

    def _reject(self, bad: BadRow) -> None:
        record = {"file": str(bad.path), "line": bad.line_number, "idx": bad.idx, "reason": bad.reason}
        self.rejects.append(json.dumps(record, ensure_ascii=False))
        count = self.manifest.rejected + len(self.rejects)
        if count > self.max_bad_rows:
            self.folder.list_rejects(self.manifest, self.rejects)
            raise ValueError(
                f"{count} of the first {self.position} rows of {self.source.name} can't be used, more than the "
                f"{self.max_bad_rows} allowed (--max-bad-rows).{self._first_reject()} They are listed in "
                f"{self.folder.rejected_file}."
            )

    def _first_reject(self) -> str:
        if not self.rejects:
            return ""
        first = json.loads(self.rejects[0])
        return f" For example {first['file']}, line {first['line']}: {first['reason'].rstrip('.')}."

    def _on_one_line(self, row: PictureRow) -> ShardRow:
        if len(row.captions) > 1 and self.options.caption_separator is None:
            raise ValueError(
                f"{row.file}, line {row.line} has {len(row.captions)} captions: please say what stands between them in "
                "the shards with --caption-separator."
            )
        captions = [_LINE_BREAK.sub(" ", caption) for caption in row.captions]
        self.joined_lines += captions != row.captions
        return ShardRow(row.idx, (self.options.caption_separator or "").join(captions), row.picture)
