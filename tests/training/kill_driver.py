# SPDX-License-Identifier: Apache-2.0
"""Runs train.py's main, and is killed for good at a point of its choice: `kill_driver.py POINT TIMES words…`."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from pai_painter.training.train_painter import main

# The call that kills, by name of the point: in the accumulation window's second batch; when accelerate has written the
# weights, but not the optimizer; when the files are synced, before the rename; when the old checkpoint is half gone.
POINTS = {
    "accumulating": (Accelerator, "backward"),
    "saving": (torch, "save"),
    "renaming": (Path, "rename"),
    "pruning": (shutil, "rmtree"),
    "averaging": (EMAModel, "step"),
}


def kill_at(point: str, times: int) -> None:
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        place = Path(str(arguments[0]))
        if name == "rename" and not place.name.startswith(".checkpoint-"):
            return original(*arguments, **options)
        if name == "rmtree":
            if not place.name.startswith("checkpoint-") or not place.is_dir():
                return original(*arguments, **options)
            next(path for path in place.iterdir() if path.name != "manifest.json").unlink()
        calls += 1
        if calls == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, call)


if __name__ == "__main__":
    kill_at(sys.argv[1], int(sys.argv[2]))
    main(sys.argv[3:])
