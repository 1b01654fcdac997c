# SPDX-License-Identifier: Apache-2.0
"""Which rows belong together: shards, repeated ids and seeds follow from the captions alone."""

import array
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .caption_files import CaptionFile, CaptionRow

__all__ = ["Survey", "default_shard_size", "read_shards", "row_seed", "survey_captions"]

_SMALLEST_SHARD, _LARGEST_SHARD, _USUAL_SHARDS = 32, 1024, 1000


def row_seed(seed: int, idx: str) -> int:
    """The seed of a row's first picture: 63 bits of SHA-256 of the run's seed, a zero byte and the id."""
    digest = hashlib.sha256(f"{seed}\x00{idx}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


def default_shard_size(rows: int, batch_size: int) -> int:
    """Rows of a shard: whole batches, 32 to 1024 rows, and not many more than a thousand shards."""
    unit = math.ceil(_SMALLEST_SHARD / batch_size) * batch_size
    wished = math.ceil(rows / _USUAL_SHARDS / unit) * unit
    return max(min(wished, _LARGEST_SHARD // unit * unit), unit)


@dataclass(frozen=True)
class Survey:
    """What one look at all captions has shown: their number, the file's hash and stamp, hashes of repeated ids."""

    rows: int
    sha256: str
    stamp: tuple[int, int]
    repeated: frozenset[int]


def survey_captions(source: CaptionFile) -> Survey:
    """Reads all captions once, in nine bytes per row for the ids; a `ValueError` if none of them can be used."""
    stamp, ids = source.stamp(), array.array("Q")
    rows, bad = 0, None
    for row in source.rows():
        rows += 1
        if row.reason is None:
            ids.append(_hash_of(row))
        else:
            bad = bad or row
    if not ids:
        example = f" For example row {bad.line}: {bad.reason}" if bad else ""
        raise ValueError(f"{source.name} has no caption that can be used.{example}")
    hashes = np.frombuffer(ids, dtype=np.uint64)
    hashes.sort()  # in place: a copy would double the memory
    repeated = frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    with open(source.path, "rb") as file:
        return Survey(rows, hashlib.file_digest(file, "sha256").hexdigest(), stamp, repeated)


def read_shards(
    source: CaptionFile, survey: Survey, shard_size: int, is_wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[CaptionRow]]]:
    """
    The wanted shards in order, each with its rows; a row with an earlier row's id comes as a bad one. A `ValueError` if
    the file was changed since it was surveyed.
    """
    seen: set[int] = set()
    rows: list[CaptionRow] = []
    for number, row in enumerate(source.rows(), 1):
        if survey.repeated and row.reason is None and (hashed := _hash_of(row)) in survey.repeated:
            if hashed in seen:
                row = replace(row, reason="An earlier row has the same id.")
            seen.add(hashed)
        shard = (number - 1) // shard_size
        if is_wanted(shard):
            rows.append(row)
        if number % shard_size == 0 or number == survey.rows:
            if source.stamp() != survey.stamp:
                break
            if rows:
                yield shard, rows
            rows = []
    if source.stamp() != survey.stamp:
        raise ValueError(f"{source.name} was changed while it was being read: please run the command again.")


def _hash_of(row: CaptionRow) -> int:
    return int.from_bytes(hashlib.blake2b(str(row.idx).encode(), digest_size=8).digest(), "big")
