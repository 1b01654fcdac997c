# SPDX-License-Identifier: Apache-2.0
"""Any source of captions and pictures to checked shards: what `pai-painter prepare` does."""

import io
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .open_picture import BadPicture, open_picture, picture_format
from .shard_folder import Manifest, ShardFolder, ShardWriter, naming_the_folder
from .sources import DataSource

__all__ = ["PrepareOptions", "Prepared", "prepare_rows"]

_LINE_BREAK = re.compile(r" *[\t\r\n]+ *")
_JPEG_QUALITY = 95


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

    format: Literal["tsv", "parquet"] = "tsv"
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
        shards (`list[Path]`): The files.
        bytes (`int`): Their size.
        rejected_file (`Path` or `None`): The list of rejected rows.
    """

    rows: int
    rejected: int
    joined_lines: int
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
    progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """
    Writes the rows of a source, each checked as training checks it, into shards.

    The result depends on the source and the options alone: not on the number of processes, nor on how often the work
    was stopped and resumed.

    Args:
        source (`DataSource`): See [`~data.sources.find_source`].
        output (`Path`): A new folder, or one in which the same work was begun.
        options ([`PrepareOptions`]): What the shards are like.
        workers (`int`, *optional*, defaults to 1): Processes that open pictures.
        max_bad_rows (`int`, *optional*, defaults to 100): More unusable rows than this are an error.
        force (`bool`, *optional*, defaults to `False`):
            Begin again if the folder holds other shards. Only the files that their manifest names are removed.
        progress (`Callable`, *optional*): Called with the number of rows done so far.

    Returns:
        [`Prepared`]: what was done, the parts before an interruption included.

    Raises:
        ValueError: if no row or too few rows can be used, or if the folder holds other things, or the source.
        OSError: if the disk is full; nothing half written is left.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, but must be at least 1.")
    if output.is_file() or output.suffix in (".tsv", ".parquet"):
        raise ValueError(f"{output} is a file or named like one: please name a folder for the shards.")
    for part in (*source.parts, *([source.image_folder] if source.image_folder else [])):
        if Path(os.path.realpath(part)).is_relative_to(os.path.realpath(output)):
            raise ValueError(f"{part} lies in {output}: please name another folder for the shards.")
    run = {"source": source.content_hash(), "columns": source.options, **asdict(options)}
    with naming_the_folder(output):
        output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            folder = ShardFolder(output, options.format)
            manifest = folder.begin(run, force)
            if not manifest.complete:
                _write_shards(source, folder, manifest, options, workers, max_bad_rows, progress)
    except Timeout as error:
        raise ValueError(f"Another process is writing to {output}: please wait for it, or stop it.") from error
    return Prepared(
        rows=sum(shard["rows"] for shard in manifest.shards),
        rejected=len(manifest.rejected),
        joined_lines=manifest.joined_lines,
        shards=[output / shard["file"] for shard in manifest.shards],
        bytes=sum(shard["bytes"] for shard in manifest.shards),
        rejected_file=folder.rejected_file if manifest.rejected else None,
    )


def _write_shards(
    source: DataSource,
    folder: ShardFolder,
    manifest: Manifest,
    options: PrepareOptions,
    workers: int,
    max_bad_rows: int,
    progress: Callable[[int], None],
) -> None:
    """From where the manifest is to the end."""
    position, shard = manifest.position, None
    rejected, joined_lines = list(manifest.rejected), manifest.joined_lines

    def save(shard: ShardWriter) -> None:
        manifest.shards.append(shard.commit())
        manifest.position, manifest.rejected, manifest.joined_lines = position, list(rejected), joined_lines
        folder.save(manifest)

    rows = map(source.read, source.records().skip(position))
    try:
        for row in _checked(rows, options.size, workers):
            position += 1
            if row["reason"] is not None:
                rejected.append(source.bad_row(row).as_json())
                _check_count(source, folder, rejected, position, max_bad_rows)
            else:
                shard = shard or ShardWriter(folder, manifest.next)
                text = _on_one_line(row, source, options.caption_separator)
                joined_lines += text != (options.caption_separator or "").join(row["captions"])
                shard.write(row["idx"], text, row["picture"])
                if shard.rows == options.shard_size:
                    save(shard)
                    shard = None
            progress(position)
        if shard is None and not manifest.shards:
            raise ValueError(f"{source.name} has no usable row.{_first(rejected)}")
        manifest.complete = True
        if shard is not None:
            save(shard)
            shard = None
        else:
            manifest.position, manifest.rejected = position, rejected
            folder.save(manifest)
    finally:
        if shard is not None:
            shard.discard()


class _Checked(Dataset[dict[str, Any]]):
    """Rows with their pictures opened, and shrunk to `size`: asked for by the row itself, so that workers get it."""

    def __init__(self, size: int | None) -> None:
        self.size = size

    def __getitem__(self, row: Any) -> dict[str, Any]:
        if row["reason"] is None and (not row["idx"].strip() or _LINE_BREAK.search(row["idx"])):
            return {**row, "reason": f"The id {row['idx']!r} is empty or has tabs or line breaks."}
        if row["reason"] is None:
            try:
                return {**row, "picture": _shrunk(row["picture"], self.size)}
            except BadPicture as error:
                return {**row, "reason": str(error)}
        return row


def _as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _checked(rows: Iterable[dict[str, Any]], size: int | None, workers: int) -> Iterator[dict[str, Any]]:
    """Checked rows in their order."""
    options: dict[str, Any] = {}
    if workers > 1:
        # Forking this process could copy a lock that another thread holds; a fork server has no other thread.
        methods = multiprocessing.get_all_start_methods()
        options = {
            "num_workers": workers,
            "prefetch_factor": 8,
            "multiprocessing_context": "forkserver" if "forkserver" in methods else "spawn",
        }
    loader = DataLoader(_Checked(size), batch_size=None, sampler=rows, collate_fn=_as_it_is, **options)
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            "A worker process was killed, perhaps because memory was full: please rerun the command with fewer "
            "--workers to resume."
        ) from error


def _shrunk(data: bytes, size: int | None) -> bytes:
    picture = open_picture(data)
    shorter = min(picture.size)
    if size is None or shorter <= size:
        return data
    width, height = (max(1, round(side * size / shorter)) for side in picture.size)
    shrunk, file = picture.resize((width, height), Image.Resampling.BICUBIC), io.BytesIO()
    if picture_format(data) in ("JPEG", "WEBP"):
        shrunk.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        shrunk.save(file, "PNG")
    return file.getvalue()


def _on_one_line(row: dict[str, Any], source: DataSource, separator: str | None) -> str:
    if len(row["captions"]) > 1 and separator is None:
        raise ValueError(
            f"{source.parts[row['part']]}, line {row['line']} has {len(row['captions'])} captions: please say what "
            "stands between them in the shards with --caption-separator."
        )
    return (separator or "").join(_LINE_BREAK.sub(" ", caption) for caption in row["captions"])


def _check_count(source: DataSource, folder: ShardFolder, rejected: list[str], position: int, limit: int) -> None:
    if len(rejected) > limit:
        folder.list_rejected(rejected)
        raise ValueError(
            f"{len(rejected)} of the first {position} rows of {source.name} can't be used, more than the {limit} allowed "
            f"(--max-bad-rows).{_first(rejected)} They are listed in {folder.rejected_file}."
        )


def _first(rejected: list[str]) -> str:
    if not rejected:
        return ""
    first = json.loads(rejected[0])
    return f" For example {first['file']}, line {first['line']}: {first['reason'].rstrip('.')}."
