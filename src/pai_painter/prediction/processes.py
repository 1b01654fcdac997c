# SPDX-License-Identifier: Apache-2.0
"""Which of several processes this one is."""

import os

__all__ = ["local_rank", "this_process"]


def this_process(rank: int | None = None, processes: int | None = None) -> tuple[int, int]:
    """
    The number of this process and of all, as given, or else as `torchrun` and `accelerate launch` say in the
    environment (`RANK`, `WORLD_SIZE`).

    Raises:
        ValueError: if only one of them is given, or if they don't go together.
    """
    if (rank is None) != (processes is None):
        raise ValueError("Please give both `rank` and `processes`, or neither.")
    if rank is None or processes is None:
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < processes:
        raise ValueError(f"With {processes} processes `rank` goes from 0 to {processes - 1}, got {rank}.")
    return rank, processes


def local_rank() -> int:
    """The number of this process on its machine: which of the accelerators it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))
