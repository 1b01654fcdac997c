# SPDX-License-Identifier: Apache-2.0
"""What is asked at every step: whether a signal ends the run, and whether the model is the best so far."""

import math
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..signals import ended_by_signals

__all__ = ["BestModel", "StopSignals", "Stopped"]


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, by the signal `number`."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignals(ExitStack):
    """
    While it lasts, the first SIGTERM or Ctrl-C is only noted as `number`, for the loop to look at; the second raises
    [`Stopped`], or ends the process if native code is waiting, for another process for example. In threads other than
    the main one, signals stay as they are.
    """

    number = 0

    def __enter__(self) -> "StopSignals":
        self.enter_context(ended_by_signals(after=2))
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.number:
            raise Stopped(number)
        self.number = number


class BestModel:
    """
    Remembers the lowest validation loss and its step, and keeps its model in `output_dir/best`. `worse` counts the
    validations since then that weren't lower.
    """

    def __init__(self, output_dir: Path, patience: int | None):
        self.folder, self.patience = output_dir / "best", patience
        self.loss, self.step, self.worse = math.inf, 0, 0

    def take(self, loss: float, step: int, kept: bool) -> None:
        """Takes a validation into account; `kept` says that its model is now in the folder."""
        self.worse = 0 if loss < self.loss else self.worse + 1
        if kept:
            self.loss, self.step = loss, step

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations in a row weren't lower."""
        return self.patience is not None and self.worse >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints. The kept model isn't in them: a resumed run keeps it again."""
        return {"loss": self.loss, "step": self.step, "worse": self.worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a checkpoint's state."""
        self.loss, self.step, self.worse = state["loss"], state["step"], state["worse"]
