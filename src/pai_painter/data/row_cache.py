# SPDX-License-Identifier: Apache-2.0
"""Rows on the disk: a source becomes an Arrow table once, and is read from there without filling memory."""

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..whole_files import write_whole
from .open_picture import BadPicture, open_picture
from .sources import FEATURES, DataSource
from .table_files import BadRow, hash_of_file

__all__ = ["PictureRows", "cached_table", "load_rows", "mapped"]

logger = logging.getLogger(__name__)

# Raised whenever the table's columns, the checks of a row or the reading of pictures change, so that old caches are
# left alone.
_LAYOUT = 6
_BATCH = 32  # rows written at a time: a thousand pictures, the default, are not little memory
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def load_rows(
    source: DataSource,
    max_bad_rows: int = 100,
    cache_dir: str | Path | None = None,
    rejects: str | Path | None = None,
    workers: int = 1,
) -> datasets.Dataset:
    """
    Checked rows of a source of captions and pictures, every picture having been opened once.

    Args:
        source: from [`~pai_painter.data.sources.find_source`].
        max_bad_rows: more unusable rows than this are an error, and reading stops there.
        cache_dir: where the Arrow table is kept; the datasets library's cache by default. Its name is a hash of the
            files' content and of the options, so that a changed file is never mistaken for the old one.
        rejects: JSON lines file for unusable rows (`file`, `line`, `idx`, `reason`).
        workers: processes that open pictures.

    Returns:
        `datasets.Dataset` with the columns `idx` (str), `captions` (list of str), `picture` (encoded bytes).

    Raises:
        ValueError: if a file can't be used, holds no usable row or too many unusable ones.
    """
    identity = json.dumps([_LAYOUT, source.content_hash(), source.options])
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    path = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_rows" / f"{key}.arrow"
    table = cached_table(path, lambda partial: _write_table(source, partial, max_bad_rows, rejects, workers))
    is_bad = table.data["reason"].is_valid().to_numpy()
    listed = table.select_columns(["idx", "part", "line", "reason"]).select(np.flatnonzero(is_bad))
    bad = [source.bad_row(row) for row in listed]
    _check_count(source, bad, len(table) - len(bad), max_bad_rows, rejects)
    if bad:
        where = "" if rejects is None else f" All are listed in {rejects}."
        count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
        logger.warning("%s of %s can't be used; %s%s", count, source.name, bad[0], where)
    rows = table.select_columns(["idx", "captions", "picture"])
    rows = rows.select(np.flatnonzero(~is_bad)) if bad else rows
    rows._fingerprint = key  # named by its content, so that what is computed from it is found again by content, too
    return rows


class PictureRows(Dataset[torch.Tensor]):
    """
    The pictures of rows, decoded when they are asked for.

    Items are asked for by row or by (epoch, row) and are pixels (3, height, width) in [-1, 1].
    """

    def __init__(self, rows: datasets.Dataset, processor: PaiPainterImageProcessor):
        self.rows, self.processor = rows, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> torch.Tensor:
        row = item if isinstance(item, int) else item[1]
        picture = open_picture(self.rows[row]["picture"])
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]


def cached_table(path: Path, write: Callable[[Path], None], checksum: bool = False) -> datasets.Dataset:
    """
    An Arrow table that is written if it isn't there, and written anew if it is damaged. It is whole or not there:
    `write` gets another name, which is renamed at the end. A second process that wants the same table waits. With
    `checksum`, the whole table is read to notice every changed byte.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = path.with_suffix(".sha256")
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                if checksum and digest.read_text() != hash_of_file(path):
                    raise ValueError("its checksum is wrong")
                return _open_table(path)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                logger.warning("The cache %s is damaged (%s) and is made anew.", path, error)

        def write_with_checksum(partial: Path) -> None:
            write(partial)
            if checksum:
                digest.write_text(hash_of_file(partial))

        write_whole(path, write_with_checksum)
    return _open_table(path)


def _open_table(path: Path) -> datasets.Dataset:
    with open(path, "rb") as file:
        file.seek(-len(_END_OF_STREAM), os.SEEK_END)
        if file.read() != _END_OF_STREAM:
            raise ValueError("it is truncated")
    return datasets.Dataset.from_file(str(path))


def mapped(function: Callable[[Any], Any], rows: Iterable[Any], workers: int) -> Iterator[Any]:
    """
    `function` of every row, in order, in several processes if asked. Neither the rows nor the results fill memory.

    Raises:
        ChildProcessError: if a process was killed.
    """
    options: dict[str, Any] = {"generator": torch.Generator()}  # a loader's draw would change torch's global state
    if workers > 1:
        # Forking this process could copy a lock that another thread holds; a fork server has no other thread.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        options |= {"num_workers": workers, "prefetch_factor": 8, "multiprocessing_context": method}
    # The rows themselves are what the sampler draws, so that they are read here and in their order.
    loader = DataLoader(_Results(function), batch_size=None, sampler=rows, collate_fn=_as_it_is, **options)
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            "A worker process was killed, perhaps because memory was full: please rerun with fewer workers."
        ) from error


class _Results(Dataset[Any]):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, row: Any) -> Any:
        return self.function(row)


def _as_it_is(result: Any) -> Any:
    return result


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `FEATURES` with its picture opened; an unusable one loses it."""
    if row["reason"] is None:
        try:
            open_picture(row["picture"])
        except BadPicture as error:
            row["reason"] = str(error)
    return row if row["reason"] is None else {**row, "picture": None}


def _write_table(source: DataSource, path: Path, max_bad_rows: int, rejects: str | Path | None, workers: int) -> None:
    """All rows, the unusable ones without their pictures; one too many of those ends it."""
    bad: list[BadRow] = []
    rows = mapped(_checked, source.rows(), workers)
    with (
        datasets.arrow_writer.ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=_BATCH) as writer,
        tqdm(rows, desc=f"Checking {source.name}", unit=" rows", mininterval=1, disable=None) as bar,
    ):
        for count, row in enumerate(bar, 1):
            if row["reason"] is not None:
                bad.append(source.bad_row(row))
                if len(bad) > max_bad_rows:
                    _check_count(source, bad, count - len(bad), max_bad_rows, rejects, ", and reading stopped there")
            writer.write(row)
        writer.finalize()


def _check_count(
    source: DataSource, bad: list[BadRow], usable: int, limit: int, rejects: str | Path | None, end: str = ""
) -> None:
    if rejects is not None and bad:
        Path(rejects).parent.mkdir(parents=True, exist_ok=True)
        # Names that aren't Unicode can be the very reason.
        lines = "".join(row.as_json() + "\n" for row in bad)
        Path(rejects).write_text(lines, encoding="utf-8", errors="backslashreplace")
    elif rejects is not None:
        Path(rejects).unlink(missing_ok=True)  # of an earlier run
    if not usable and not bad:
        raise ValueError(f"{source.name} has no rows.")
    if not usable and len(bad) <= limit:
        raise ValueError(f"{source.name} has no usable row; the first of {len(bad)} bad ones: {bad[0]}{source.advice}")
    if len(bad) > limit:
        raise ValueError(
            f"{source.name} has {len(bad)} unusable and {usable} usable rows, but at most {limit} unusable ones are "
            f"allowed (`max_bad_rows`){end}. The first: {bad[0]}{source.advice}"
        )
