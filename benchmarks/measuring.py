# SPDX-License-Identifier: Apache-2.0
"""Measuring in processes of their own: one for each thing that is compared, so that its memory is its own, too."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "GB",
    "Measured",
    "MeasuringFailed",
    "StepProcess",
    "available_memory",
    "step_processes",
]

GB = 10**9
_PROC = Path("/proc/self")


class MeasuringFailed(RuntimeError):
    """What was to be measured didn't run, or this system doesn't tell; the message says which."""


@dataclass(frozen=True)
class Measured:
    """
    One step: its duration, what it returned, and the most memory that was resident while it ran: above the libraries'
    own, and above what was there when it began.
    """

    seconds: float
    result: Any
    peak_bytes: int
    grown_bytes: int


class StepProcess:
    """
    A process that holds what is measured and takes a step of it whenever it is told to.

    Args:
        build: called there with `settings`; returns what takes a step and returns its result (of training: the loss).
        settings: what to build. Must be picklable, like `build`.
    """

    def __init__(self, build: Callable[[Any], Callable[..., Any]], settings: Any):
        spawning = multiprocessing.get_context("spawn")
        self.settings = settings
        self._pipe, other = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(other, build, settings), daemon=True)
        self._process.start()
        other.close()

    def step(self, *which: Any) -> Measured:
        """
        Takes one step.

        Args:
            which: What the step is called with, if there are several kinds of them. Must be picklable.

        Raises:
            MeasuringFailed: if the process has ended, most likely for want of memory.
        """
        try:
            self._pipe.send(which)
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join()
            raise MeasuringFailed(
                f"The process of {self.settings} ended with status {self._process.exitcode} (-9 means that the system "
                f"had no memory left for it)."
            ) from error

    def close(self) -> None:
        """Ends the process and gives its memory back."""
        self._pipe.close()
        self._process.join(timeout=5)
        self._process.kill()
        self._process.join()


@contextmanager
def step_processes(build: Callable[[Any], Callable[..., Any]], *settings: Any) -> Iterator[list[StepProcess]]:
    """Processes for all settings; ended when the block is left."""
    processes = [StepProcess(build, each) for each in settings]
    try:
        yield processes
    finally:
        for process in processes:
            process.close()


def _serve(pipe: Connection, build: Callable[[Any], Callable[..., Any]], settings: Any) -> None:
    libraries = _resident("VmRSS")  # `build` came with its module, so everything is imported
    take_step = build(settings)
    while True:
        try:
            which = pipe.recv()
        except EOFError:  # the parent is done
            return
        _forget_peak()
        before = _resident("VmRSS")
        start = time.perf_counter()
        result = take_step(*which)
        seconds = time.perf_counter() - start
        peak = _resident("VmHWM")
        pipe.send(Measured(seconds, result, peak - libraries, peak - before))


def _resident(name: str) -> int:
    """Bytes of memory of this process: `VmRSS` now, `VmHWM` at most since [`_forget_peak`]."""
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise MeasuringFailed(f"This system doesn't tell a process's {name}; memory is measured on Linux only.")


def _forget_peak() -> None:
    (_PROC / "clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def available_memory() -> int:
    """Bytes that can be taken without pushing other programs out."""
    return psutil.virtual_memory().available
