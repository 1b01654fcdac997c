# SPDX-License-Identifier: Apache-2.0
"""What a process finds around it when a command starts: signals, launchers' variables, the home folder."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["forget_empty_ranks", "second_signal_ends", "words_at_home"]

_GRACE = 2.0  # seconds that Python has to end by itself after the second signal


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """
    While it lasts, the second SIGTERM or Ctrl-C ends the process, whatever it is doing.

    Python's own handlers run between two instructions of Python: while native code waits, for another process say,
    they don't, and no number of signals would end the wait. What is not over soon after the second signal is ended
    here, with the status that a shell gives to the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # Processes that are forked, such as data loaders' workers, have signals of their own.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread


def _watch(reading: int) -> None:
    asked = 0
    while number := os.read(reading, 1):
        asked += number[0] in (signal.SIGTERM, signal.SIGINT)
        if asked == 2:
            over = threading.Timer(_GRACE, _end, (number[0],))
            over.daemon = True
            over.start()
    os.close(reading)


def _end(number: int) -> None:
    sys.stderr.write("Stopped while it waited; what was saved before is complete.\n")
    sys.stderr.flush()
    os._exit(128 + number)


def forget_empty_ranks() -> None:
    """Some launchers leave the variables of distributed runs empty: the libraries, too, must take that for unset."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "unset"):
            del os.environ[name]


def words_at_home(words: Sequence[str]) -> list[str]:
    """Words of a command line with `~` for the home folder, also behind `=`, commas and blanks, as no shell has it."""
    home = os.path.expanduser("~")
    return [re.sub(r"(?<![^=,\s])~(?=/|$)", lambda _: home, word) for word in words]
