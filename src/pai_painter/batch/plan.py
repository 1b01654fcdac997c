# SPDX-License-Identifier: Apache-2.0
"""What is painted where: shards, places in batches and seeds follow from the captions alone."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..data.repeated_ids import RepeatedIds
from ..data.tsv import BadRow
from .captions import CaptionFile, CaptionRow

__all__ = ["Plan", "RepeatWatch", "Survey", "default_shard_size", "row_seed", "rows_of_shards", "survey_captions"]

_SMALLEST_SHARD, _LARGEST_SHARD, _USUAL_SHARDS = 32, 1024, 1000
# What `memory` finds is a power of two up to this.
_LARGEST_FOUND = 128


def row_seed(seed: int, idx: str) -> int:
    """
    The seed of a row's first picture: 63 bits of SHA-256 of `seed`, a zero byte and the id. It never changes.

    Args:
        seed (`int`): The seed of the whole run.
        idx (`str`): The row's id.
    """
    digest = hashlib.sha256(f"{seed}\x00{idx}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def default_shard_size(rows: int, batch_size: int | None) -> int:
    """
    Rows of a shard: little work is lost with one, there is enough for several processes, and not too many files. Whole
    batches, so that only the file's last one has free places.

    Args:
        rows (`int`): Of the file.
        batch_size (`int`, *optional*): Pictures painted at once; `None` if that is still to be found out.
    """
    at_once = _LARGEST_FOUND if batch_size is None else batch_size
    unit = math.ceil(_SMALLEST_SHARD / at_once) * at_once
    wished = math.ceil(rows / _USUAL_SHARDS / unit) * unit
    return max(min(wished, _LARGEST_SHARD // unit * unit), unit)


@dataclass(frozen=True)
class Survey:
    """
    What one look at all captions has shown.

    Args:
        rows (`int`): All rows.
        bad (`int`): Those that can't be read; repeated ids are not counted.
        first_bad (`BadRow` or `None`): The first of those.
        sha256 (`str`): Of the file.
        stamp (`tuple[int, int]`): Of the file, see [`CaptionFile.stamp`].
        repeated (`np.ndarray`): Hashes of the ids that occur more than once, sorted; uint64.
    """

    rows: int
    bad: int
    first_bad: BadRow | None
    sha256: str
    stamp: tuple[int, int]
    repeated: np.ndarray


def survey_captions(source: CaptionFile) -> Survey:
    """
    Reads all captions once. Memory: nine bytes a row, for the ids.

    Raises:
        ValueError: if none of them can be used, or if the file is damaged.
    """
    stamp, ids = source.stamp(), RepeatedIds()
    rows, bad, first_bad = 0, 0, None
    for row in source.rows():
        rows += 1
        if isinstance(row, BadRow):
            bad += 1
            first_bad = first_bad or row
        else:
            ids.add(row.idx)
    if rows == bad:
        example = f" For example line {first_bad.line_number}: {first_bad.reason}" if first_bad else ""
        raise ValueError(f"{source.name} has no caption that can be used.{example}")
    hashes = np.frombuffer(ids.hashes, dtype=np.uint64)
    hashes.sort()  # in place: a copy would double the memory
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    return Survey(rows, bad, first_bad, source.content_hash(), stamp, repeated)


@dataclass(frozen=True)
class Plan:
    """
    Args:
        rows (`int`): Rows of the file, good and bad.
        shard_size (`int`): Rows of a shard.
        num_images (`int`): Pictures of a row.
    """

    rows: int
    shard_size: int
    num_images: int

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return math.ceil(self.rows / self.shard_size)

    def shards_of(self, rank: int, processes: int) -> range:
        """The shards of one process."""
        return range(rank, self.num_shards, processes)

    def first_row(self, shard: int) -> int:
        """The number of a shard's first row, from 0."""
        return shard * self.shard_size

    def pictures_of(self, shard: int) -> int:
        """Pictures of a shard, if no row of it is bad."""
        return min(self.shard_size, self.rows - self.first_row(shard)) * self.num_images

    def batches(self, shard: int, batch_size: int) -> Iterator[range]:
        """
        The places of a shard's pictures, counted row by row, in batches of one size: in the last one, places may stay
        free. A bad row keeps its places, so that no other row's place depends on it.
        """
        for start in range(0, self.pictures_of(shard), batch_size):
            yield range(start, start + batch_size)


def rows_of_shards(
    source: CaptionFile, survey: Survey, plan: Plan, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[CaptionRow | BadRow]]]:
    """
    The wanted shards in order, each with its rows; a row with an earlier row's id comes as a bad one.

    Raises:
        ValueError: if the file was changed since it was surveyed.
    """
    watch = RepeatWatch(survey.repeated)
    rows: list[CaptionRow | BadRow] = []
    shard, is_wanted = 0, wanted(0)
    for number, row in enumerate(source.rows(), 1):
        if not isinstance(row, BadRow) and watch.comes_again(row.idx):
            row = BadRow(source.name, row.line, "An earlier row has the same id.", row.idx)
        if is_wanted:
            rows.append(row)
        if number in (plan.first_row(shard + 1), plan.rows):
            if source.stamp() != survey.stamp:
                break
            if is_wanted:
                yield shard, rows
            shard, rows = shard + 1, []
            is_wanted = wanted(shard)
    if source.stamp() != survey.stamp:
        raise ValueError(
            f"{source.name} was changed while it was being read: please leave it as it was, or start over."
        )


class RepeatWatch:
    """
    Finds the rows with an id of an earlier row.

    The survey's 64 bits are enough to pass over nearly all ids; for the few others there are 64 more, so that no row is
    refused for another's id.

    Args:
        repeated (`np.ndarray`): See [`Survey`].
    """

    def __init__(self, repeated: np.ndarray) -> None:
        self.repeated, self.ids = repeated, RepeatedIds()
        self.seen = np.zeros(len(repeated), dtype=np.bool_)
        self.second = np.zeros(len(repeated), dtype=np.uint64)

    def comes_again(self, idx: str) -> bool:
        """Whether this id has been asked for before."""
        if not len(self.repeated):
            return False
        self.ids.add(idx)
        first = np.uint64(self.ids.hashes.pop())
        place = min(int(np.searchsorted(self.repeated, first)), len(self.repeated) - 1)
        if self.repeated[place] != first:
            return False
        second = np.uint64(int.from_bytes(hashlib.sha256(idx.encode()).digest()[:8], "big"))
        if self.seen[place]:
            return bool(self.second[place] == second)
        self.seen[place], self.second[place] = True, second
        return False
