# SPDX-License-Identifier: Apache-2.0
"""Any source of captions and pictures to checked shards: what `pai-painter prepare` does."""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow
from filelock import FileLock, Timeout
from PIL import Image
from pyarrow.parquet import ParquetWriter

from ..whole_files import write_whole
from .open_picture import open_picture, picture_format
from .row_cache import load_rows, mapped
from .sources import DataSource

__all__ = ["PrepareOptions", "Prepared", "prepare_rows"]

_MANIFEST, _REJECTED = "manifest.json", "rejected_rows.jsonl"
_LAYOUT = "shards of pai-painter, 2"
_LINE_BREAK = re.compile(r" *[\t\r\n]+ *")
_JPEG_QUALITY = 95
_ROW_GROUP = 64  # readers hold one row group of Parquet in memory at a time
_STRING = datasets.Value("string")
_SCHEMA = datasets.Features({"idx": _STRING, "text": _STRING, "image": datasets.Image()}).arrow_schema


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
    """

    format: Literal["tsv", "parquet"] = "tsv"
    shard_size: int = 10_000
    size: int | None = None
    caption_separator: str | None = None

    def __post_init__(self) -> None:
        if self.format not in ("tsv", "parquet"):
            raise ValueError(f"The format of shards is tsv or parquet, not {self.format!r}.")
        if self.shard_size < 1 or (self.size is not None and self.size < 1):
            raise ValueError(f"shard_size ({self.shard_size}) and size ({self.size}) must be at least 1.")
        if self.caption_separator is not None and _LINE_BREAK.search(self.caption_separator):
            raise ValueError("The captions of a row stand on one line: caption_separator can't be a tab or line break.")


@dataclass(frozen=True)
class Prepared:
    """
    The shards and how many rows are in them, how many rows can't be used and where they are listed, and in how many
    captions line breaks and tabs became spaces.
    """

    shards: list[Path]
    rows: int
    rejected: int
    rejected_file: Path | None
    joined_lines: int


def prepare_rows(
    source: DataSource,
    output: Path,
    options: PrepareOptions,
    *,
    workers: int = 1,
    max_bad_rows: int = 100,
    force: bool = False,
    cache_dir: str | Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """
    Writes the rows of a source, each checked as training checks it, into shards.

    The result depends on the source and the options alone: not on the number of processes, nor on how often the work
    was stopped and resumed. The checked rows are kept in the cache that training uses, too.

    Args:
        output (`Path`): A new folder, or one in which the same work was begun.
        workers, max_bad_rows, cache_dir: See [`~data.row_cache.load_rows`].
        force (`bool`, *optional*, defaults to `False`):
            Begin again if the folder holds other shards. Only the files that their manifest names are removed.
        progress (`Callable`, *optional*): Called with the number of rows written so far.

    Raises:
        ValueError: if no row or too few rows can be used, or if the folder holds other things, or the source.
        OSError: if the disk is full; nothing half written is left.
    """
    if output.is_file() or output.suffix in (".tsv", ".parquet"):
        raise ValueError(f"{output} is a file or named like one: please name a folder for the shards.")
    for part in (*source.parts, *([str(source.image_folder)] if source.image_folder else [])):
        if Path(os.path.realpath(part)).is_relative_to(os.path.realpath(output)):
            raise ValueError(f"{part} lies in {output}: please name another folder for the shards.")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            before = _begin(output, force)
            _check_same(output, before, asdict(options), force)
            listed = output / _REJECTED if force or not before["run"] else None  # else it is there
            rows = load_rows(source, max_bad_rows, cache_dir, listed, workers)
            joined = _check_captions(rows, options.caption_separator)
            starts = range(0, len(rows), options.shard_size)
            shards = [output / f"shard-{number:05d}.{options.format}" for number in range(len(starts))]
            run = {"rows": rows._fingerprint, **asdict(options)}
            _check_same(output, before, run, force)
            _claim(output, before, run, shards, force)
            missing = [(start, shard) for start, shard in zip(starts, shards, strict=True) if not shard.exists()]
            wanted = [row for start, _ in missing for row in range(len(rows))[start : start + options.shard_size]]
            lines = _shard_rows(rows.select(wanted), options, workers)
            for start, shard in missing:
                _write_shard(islice(lines, options.shard_size), shard, options.format)
                progress(min(start + options.shard_size, len(rows)))
    except Timeout as error:
        raise ValueError(f"Another process is writing to {output}: please wait for it, or stop it.") from error
    rejected = (output / _REJECTED).read_bytes().count(b"\n") if (output / _REJECTED).exists() else 0
    return Prepared(shards, len(rows), rejected, output / _REJECTED if rejected else None, joined)


def _begin(output: Path, force: bool) -> dict[str, Any]:
    """
    The manifest of what is in the folder. Only files that it names are ours: it is there before any of them. A shard
    gets its name when it is whole, and counts if it is of the same run.
    """
    path = output / _MANIFEST
    for partial in (*output.glob(".shard-*.partial"), *output.glob(f".{_MANIFEST}.partial")):
        partial.unlink()
    if path.exists():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["layout"] != _LAYOUT or not all(re.fullmatch(r"shard-\d+\.\w+", n) for n in manifest["shards"]):
                raise ValueError("it is of another program or version")
            if not isinstance(manifest["run"], dict | None):
                raise TypeError("it has no run")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no manifest of these shards ({error}): please name a new folder.") from error
    else:
        others = sorted({entry.name for entry in output.iterdir()} - {".lock"})
        if (others and not force) or _REJECTED in others:
            raise ValueError(
                f"{output} holds {others[0]} and perhaps more, but no shards to resume from: please name a new folder, "
                "or give --force to write beside other files."
            )
        manifest = {"layout": _LAYOUT, "run": None, "shards": []}
        _write_manifest(output, manifest)
    return manifest


def _check_same(output: Path, before: dict[str, Any], run: dict[str, Any], force: bool) -> None:
    for name in run:
        if before["run"] and before["run"].get(name) != run[name] and not force:
            raise ValueError(
                f"{output} holds shards of another source or other options ({name} {before['run'].get(name)!s:.12} "
                f"instead of {run[name]!s:.12}): please name a new folder, or give --force to begin again."
            )


def _claim(output: Path, before: dict[str, Any], run: dict[str, Any], shards: list[Path], force: bool) -> None:
    """Makes the folder that of this run, with the names that its shards will have."""
    if force or not before["run"]:
        for name in before["shards"]:
            (output / name).unlink(missing_ok=True)
        for shard in shards:
            if shard.exists():
                raise ValueError(f"{shard} is in the way and not of this run: please name a new folder.")
    _write_manifest(output, {"layout": _LAYOUT, "run": run, "shards": [shard.name for shard in shards]})


def _write_manifest(output: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    write_whole(output / _MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))


def _write_shard(lines: Iterator[dict[str, Any]], shard: Path, format: str) -> None:
    def write(path: Path) -> None:
        if format == "parquet":
            # Pictures are compressed already, and a dictionary of them would only be a copy.
            with ParquetWriter(path, _SCHEMA, compression="none", use_dictionary=False) as table:
                for group in iter(lambda: list(islice(lines, _ROW_GROUP)), []):
                    table.write_table(pyarrow.Table.from_pylist(group, schema=_SCHEMA))
            return
        with open(path, "wb") as file:
            for row in lines:
                picture = base64.b64encode(row["image"]["bytes"]).decode("ascii")
                file.write(f"{row['idx']}\t{row['text']}\t{picture}\n".encode())

    write_whole(shard, write)


def _shard_rows(rows: datasets.Dataset, options: PrepareOptions, workers: int) -> Iterator[dict[str, Any]]:
    for row in rows if options.size is None else mapped(_Shrink(options.size), rows, workers):
        text = _LINE_BREAK.sub(" ", (options.caption_separator or "").join(row["captions"]))
        yield {"idx": _LINE_BREAK.sub(" ", row["idx"]), "text": text, "image": {"bytes": row["picture"], "path": None}}


class _Shrink:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row, with a smaller picture if its shorter side has more than `size` pixels."""
        picture = open_picture(row["picture"])
        shorter = min(picture.size)
        if shorter <= self.size:
            return row
        width, height = (max(1, round(side * self.size / shorter)) for side in picture.size)
        shrunk, file = picture.resize((width, height), Image.Resampling.BICUBIC), io.BytesIO()
        if picture_format(row["picture"]) in ("JPEG", "WEBP"):
            shrunk.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        else:
            shrunk.save(file, "PNG")
        return {**row, "picture": file.getvalue()}


def _check_captions(rows: datasets.Dataset, separator: str | None) -> int:
    """In how many rows line breaks will be joined; a `ValueError` if captions can't be told apart."""
    joined = 0
    for row in rows.select_columns(["idx", "captions"]):
        if len(row["captions"]) > 1 and separator is None:
            raise ValueError(
                f"The row {row['idx']!r} has {len(row['captions'])} captions: please say what stands between them in "
                "the shards with --caption-separator."
            )
        joined += any(_LINE_BREAK.search(caption) for caption in row["captions"])
    return joined
