# SPDX-License-Identifier: Apache-2.0
"""Rows on the disk: a source becomes an Arrow table once, and is read from there without filling memory."""

import hashlib
import json
import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..whole_files import write_whole
from .open_picture import open_picture
from .sources import FEATURES, DataSource, open_row
from .table_files import BadRows

logger = logging.getLogger(__name__)

_LAYOUT = 7  # raised when the table's columns or the checks of a row change, so that old caches are left alone
_BATCH = 32  # rows written at a time: a thousand pictures, the default, are not little memory


def load_rows(
    source: DataSource,
    max_bad_rows: int = 100,
    cache_dir: str | Path | None = None,
    rejects: Path | None = None,
    workers: int = 1,
) -> datasets.Dataset:
    """
    Checked rows: `idx` (str), `captions` (list of str) and `picture` (encoded bytes, which have been opened once).

    Args:
        max_bad_rows: more unusable rows than this are an error, and reading stops there.
        cache_dir: where the Arrow table is kept, by default the datasets library's cache. Its name is a hash of the
            content and the options, so that a changed file is never mistaken for the old one.
        rejects: JSON lines file for unusable rows (`file`, `line`, `idx`, `reason`).
        workers: processes that open pictures.

    Raises:
        ValueError: if a file can't be read, or holds no usable row or too many unusable ones.
    """
    identity = json.dumps([_LAYOUT, source.content_hash(), source.options])
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    path = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_rows" / f"{key}.arrow"
    bad = BadRows(source.name, max_bad_rows, rejects)
    table = cached_table(path, FEATURES, _checked_rows(source, bad, workers))
    is_bad = table.data["reason"].is_valid().to_numpy()
    for row in table.select_columns(["idx", "part", "line", "reason"]).select(np.flatnonzero(is_bad)):
        bad.add(source.bad_row(row))
    if is_bad.all():
        raise ValueError(f"{source.name} has no usable row ({bad}).")
    if bad.found:
        logger.warning("%s has %s.%s", source.name, bad, "" if rejects is None else f" {rejects} lists all of them.")
    rows = table.select_columns(["idx", "captions", "picture"]).select(np.flatnonzero(~is_bad))
    rows._fingerprint = key  # named by its content, so that what is computed from it is found again by content, too
    return rows


class PictureRows(Dataset[torch.Tensor]):
    """The pictures of rows, asked for by row or by (epoch, row): pixels (3, height, width) in [-1, 1]."""

    def __init__(self, rows: datasets.Dataset, processor: PaiPainterImageProcessor):
        self.rows, self.processor = rows, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> torch.Tensor:
        row = item if isinstance(item, int) else item[1]
        picture = open_picture(self.rows[row]["picture"])
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]


def cached_table(path: Path, features: datasets.Features, rows: Iterable[dict[str, Any]]) -> datasets.Dataset:
    """
    An Arrow table, made of the rows if it isn't there or is damaged, be it by a single byte in its first 128 MiB. It is
    whole or not there. A second process that wants the same table waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = path.with_suffix(".sha256")

    def write(partial: Path) -> None:
        with ArrowWriter(features=features, path=str(partial), writer_batch_size=_BATCH) as writer:
            for row in rows:
                writer.write(row)
            writer.finalize()
        checksum.write_text(_checksum(partial))

    with FileLock(path.with_suffix(".lock")):
        if path.exists() and not (checksum.exists() and checksum.read_text() == _checksum(path)):
            logger.warning("The cache %s is damaged (its checksum is wrong) and will be rebuilt.", path)
            path.unlink()
        if not path.exists():
            write_whole(path, write)
    return datasets.Dataset.from_file(str(path))


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(f"{path.stat().st_size} ".encode() + file.read(1 << 27)).hexdigest()


def mapped(function: Callable[[Any], Any], rows: Iterable[Any], workers: int) -> Iterator[Any]:
    """`function` of every row, in order, in several processes if asked. Neither rows nor results fill memory."""
    if workers == 1:
        yield from map(function, rows)
        return
    # Forking this process could copy a lock that another thread holds; Ctrl-C is for this process alone.
    context, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=ignore) as pool:
        begun: deque[Future[Any]] = deque()
        for row in rows:
            begun.append(pool.submit(function, row))
            if len(begun) == 8 * workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _checked_rows(source: DataSource, bad: BadRows, workers: int) -> Iterator[dict[str, Any]]:
    """All rows, the unusable ones without their pictures; one too many of those ends it."""
    rows = mapped(_checked, source.rows(), workers)
    for row in tqdm(rows, desc=f"Checking {source.name}", unit=" rows", mininterval=1, disable=None):
        if row["reason"] is not None:
            bad.add(source.bad_row(row))
        yield row


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    return row if open_row(row) is not None else {**row, "picture": None}
