# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C end a run after the step that is being done, so that nothing of it is lost."""

import signal
import threading
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ..signals import ended_by_signals

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["StopSignals", "Stopped"]


class Stopped(KeyboardInterrupt):
    """
    A run was asked to stop.

    Attributes:
        number (`int`): the signal, such as `signal.SIGTERM`.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignals:
    """
    While it lasts, the first SIGTERM or Ctrl-C is only noted, for the loop to ask about; the second raises
    [`Stopped`] wherever the program is, and ends the process if that is native code which waits, for another process
    say. In threads other than the main one, signals stay as they are.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}
        self._watch = ExitStack()

    def __enter__(self) -> "StopSignals":
        self._watch.enter_context(ended_by_signals(after=2))
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._watch.close()

    def anywhere(self, accelerator: "Accelerator") -> int:
        """The signal that this or another process has got, or 0. All processes ask at the same step."""
        if accelerator.num_processes == 1:
            return self.number
        import torch

        return int(accelerator.gather(torch.tensor([self.number], device=accelerator.device)).max())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise Stopped(number)
        self.number = number
