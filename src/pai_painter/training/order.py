# SPDX-License-Identifier: Apache-2.0
"""Which rows a step sees: a function of (seed, step, process) alone, so that a resumed run continues exactly."""

from collections.abc import Iterator

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """One 63-bit seed out of several integers; neighbours give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def step_batches(
    rows: int, batch_size: int, accumulation: int, rank: int, processes: int, seed: int, start: int, stop: int
) -> Iterator[list[tuple[int, int]]]:
    """
    This process's batches of the steps from `start` to `stop` - 1, as (epoch, row) pairs.

    The epochs' permutations are joined and cut into batches, so every batch is full and every row comes once per epoch.
    A step sees the same rows however they are divided among `processes` and `accumulation` batches of `batch_size`.
    """
    epoch, order = -1, torch.empty(0)
    for number in range(start * accumulation, stop * accumulation):
        first, batch = (number * processes + rank) * batch_size, []
        for now, offset in (divmod(position, rows) for position in range(first, first + batch_size)):
            if now != epoch:
                epoch = now
                order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed_of(seed, epoch)))
            batch.append((epoch, int(order[offset])))
        yield batch
