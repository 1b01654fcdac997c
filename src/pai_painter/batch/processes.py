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
        rank, processes = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < processes:
        raise ValueError(f"With {processes} processes `rank` goes from 0 to {processes - 1}, got {rank}.")
    return rank, processes


def local_rank() -> int:
    """The number of this process on its machine: which of the accelerators it takes."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    """What a launcher says in the environment; an empty variable says nothing."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"The environment's {name} must be a whole number, got {text!r}: please set or unset it.")
    return int(text)
