# SPDX-License-Identifier: Apache-2.0
"""Which rows a step sees: a function of (seed, step, process) alone, so that a resumed run continues exactly."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

__all__ = ["StepBatches", "read_batches", "seed_of"]


def seed_of(*numbers: int) -> int:
    """One 63-bit seed out of several integers; neighbours give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class StepBatches(Sampler[list[tuple[int, int]]]):
    """
    This process's batches of the steps from `start` to `stop` - 1, as (epoch, row) pairs.

    The epochs' permutations are joined and cut into batches, so every batch is full and every row comes once per epoch.
    A step sees the same rows however they are divided among processes and accumulated batches.

    Args:
        rows: number of training rows.
        batch_size, accumulation: rows per process and batch, and batches per step.
        rank, processes: this process and how many there are.
        seed: fixes the permutations.
        start, stop: first step, and the step before which to end.
    """

    def __init__(
        self, rows: int, batch_size: int, accumulation: int, rank: int, processes: int, seed: int, start: int, stop: int
    ):
        self.rows, self.batch_size, self.accumulation = rows, batch_size, accumulation
        self.rank, self.processes = rank, processes
        self.seed, self.start, self.stop = seed, start, stop
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.start * self.accumulation, self.stop * self.accumulation):
            first = (batch * self.processes + self.rank) * self.batch_size
            yield [self._row_at(position) for position in range(first, first + self.batch_size)]

    def _row_at(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.rows)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self.rows, generator=generator)
        return epoch, int(self._order[offset])


def read_batches(loader: DataLoader) -> Iterator[Any]:
    """
    The batches of a loader.

    Raises:
        ValueError, OSError: what is wrong with the data. torch puts a worker's stack into the message; it is cut off.
    """
    try:
        yield from loader
    except (ValueError, OSError) as error:
        if not str(error).startswith(f"Caught {type(error).__name__} in DataLoader worker"):
            raise
        raise ValueError(str(error).rstrip().rpartition("\n")[2].partition(": ")[2]) from error
