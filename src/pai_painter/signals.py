# SPDX-License-Identifier: Apache-2.0
"""What a process finds around it when a command starts: signals, launchers' variables, the home folder."""

import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

_GRACE = 2.0  # seconds that Python has to end by itself
_OVER = b"\0"  # no signal has this number


@contextmanager
def ended_by_signals(after: int = 2) -> Iterator[None]:
    """
    While it lasts, SIGTERM and Ctrl-C end the process, whatever it is doing.

    Python's own handlers run between two instructions of Python: while native code waits, for another process say,
    they don't, and no number of signals would end the wait. If this context isn't left soon after so many signals, the
    process is ended here, with the status that a shell gives to the signal. In threads other than the main one, nothing
    changes.

    Args:
        after: the number of signals that end it. Fewer are left to the handlers that Python has.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _keep_children_apart()
    watch = threading.Thread(target=_watch, args=(reading, after), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, _OVER)  # closing it isn't enough: forked processes may hold it, too
        watch.join()
        os.close(writing)
        os.close(reading)


@cache
def _keep_children_apart() -> None:
    """Signals of forked processes, such as data loaders' workers, are none of this one's."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _watch(reading: int, after: int) -> None:
    asked, number = 0, 0
    while True:
        ready, _, _ = select.select([reading], [], [], _GRACE if asked >= after else None)
        if not ready:
            sys.stderr.write("Stopped while it waited; what was saved before is complete.\n")
            sys.stderr.flush()
            os._exit(128 + number)
        (byte,) = os.read(reading, 1)
        if byte == _OVER[0]:
            return
        if byte in (signal.SIGTERM, signal.SIGINT):
            asked, number = asked + 1, byte


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, by the signal `number`."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignals(ExitStack):
    """
    While it lasts, SIGTERM and Ctrl-C are only noted as `number`, for the loop to look at, but for the one that is
    number `after`: that raises [`Stopped`], or ends the process if native code is waiting, for another process for
    example. In threads other than the main one, signals stay as they are.
    """

    number = 0

    def __init__(self, after: int = 2):
        super().__init__()
        self.left = after

    def __enter__(self) -> "StopSignals":
        self.enter_context(ended_by_signals(self.left))
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Stopped(number)
        self.number = number


def forget_empty_ranks() -> None:
    """Some launchers leave the variables of distributed runs empty: the libraries, too, must take that for unset."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "unset").strip():
            del os.environ[name]


def words_at_home(words: Sequence[str]) -> list[str]:
    """Words of a command line with `~` for the home folder, also behind `=`, commas and blanks, as no shell has it."""
    home = os.path.expanduser("~")
    return [re.sub(r"(?<![^=,\s])~(?=/|$)", lambda _: home, word) for word in words]
