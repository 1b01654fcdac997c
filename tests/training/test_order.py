# SPDX-License-Identifier: Apache-2.0
"""Which rows a step sees."""

import pytest

from pai_painter.training.order import seed_of, step_batches


def batches(
    rows: int,
    batch_size: int,
    rank: int = 0,
    processes: int = 1,
    seed: int = 42,
    start: int = 0,
    stop: int = 12,
    accumulation: int = 1,
) -> list[list[tuple[int, int]]]:
    return list(step_batches(rows, batch_size, accumulation, rank, processes, seed, start, stop))


@pytest.mark.parametrize(("rows", "batch_size"), [(12, 4), (13, 4), (5, 7), (1, 3)])
def test_every_row_comes_once_in_every_epoch(rows: int, batch_size: int) -> None:
    steps = batches(rows, batch_size, stop=5 * rows)
    assert all(len(batch) == batch_size for batch in steps)
    seen = [item for batch in steps for item in batch]
    for epoch in range(batch_size * 5 - 1):
        assert sorted(row for found, row in seen if found == epoch) == list(range(rows))
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)


def test_epochs_differ_and_so_do_seeds() -> None:
    first, second = batches(40, 40, stop=2)
    assert [row for _, row in first] != [row for _, row in second]
    assert batches(40, 40, seed=1, stop=1) != batches(40, 40, seed=2, stop=1)
    assert batches(40, 40, seed=1, stop=1) == batches(40, 40, seed=1, stop=1)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_the_batch_of_one(processes: int) -> None:
    alone = batches(13, 6)
    shares = [batches(13, 6 // processes, rank, processes) for rank in range(processes)]
    assert [[item for share in step for item in share] for step in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 6), (2, 3), (3, 2), (3, 1)])
def test_a_steps_rows_are_the_same_however_they_are_divided(processes: int, accumulation: int) -> None:
    size = 6 // (processes * accumulation)
    shares = [batches(13, size, rank, processes, accumulation=accumulation) for rank in range(processes)]
    assert all(len(share) == 12 * accumulation for share in shares)
    for step, rows in enumerate(batches(13, 6)):
        parts = range(step * accumulation, (step + 1) * accumulation)
        assert sorted(item for share in shares for part in parts for item in share[part]) == sorted(rows)
    later = batches(13, size, 0, processes, accumulation=accumulation, start=7)
    assert later == shares[0][7 * accumulation :]


def test_a_start_in_the_middle_is_the_tail_of_the_whole() -> None:
    whole = batches(13, 4, rank=1, processes=2)
    for start in range(12):
        assert batches(13, 4, rank=1, processes=2, start=start) == whole[start:]


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = {seed_of(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 2) != seed_of(2, 1)
    differing = [bin(seed_of(7, n) ^ seed_of(7, n + 1)).count("1") for n in range(64)]
    assert min(differing) > 12
