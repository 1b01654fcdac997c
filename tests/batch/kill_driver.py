# SPDX-License-Identifier: Apache-2.0
"""
Runs `predict_file` in forks of a process that has imported everything, and kills them for good: `kill_driver.py MODEL
CAPTIONS OUTPUT WAY…`.

`at N…`: before the N-th call that changes names on the disk, each time in a new place; prints N, how the run ended, and
how the next one did, which is left alone. `after S…`: at these seconds, one run after the other in one place; then a
last one that is left alone. Prints how each ended, before the last one's end the seconds it took.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pai_painter import PaiPainterPipeline
from pai_painter.batch.prediction import PredictOptions, find_captions, predict_file

CALLS = [(os, "replace"), (os, "link"), (os, "fsync"), (shutil, "rmtree"), (os, "unlink"), (os, "rmdir")]


def kill_at(number: int) -> None:
    calls = [0]

    def counted(original: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for owner, name in CALLS:
        setattr(owner, name, counted(getattr(owner, name)))


def run(model: str, captions: str, output: str, prepare: Callable[[], object], say_seconds: bool = False) -> int:
    """The exit status of a run, negative if it was killed."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)
        pipe = PaiPainterPipeline.from_pretrained(model)
        prepare()
        start = time.perf_counter()
        options = PredictOptions(num_images_per_prompt=2, batch_size=3)
        predict_file(pipe, find_captions(captions), Path(output), options, shard_size=4, progress=False)
        if say_seconds:
            print(time.perf_counter() - start, flush=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    model, captions, output, way, *numbers = sys.argv[1:]
    if way == "at":
        for number in numbers:
            place = f"{output}/{number}/{Path(output).name}"
            Path(place).parent.mkdir(parents=True)
            first = run(model, captions, place, lambda number=number: kill_at(int(number)))
            second = run(model, captions, place, lambda: None)
            print(number, first, second, flush=True)
            if first == 0:  # it makes no more calls than that
                break
    else:
        for seconds in numbers:
            print(run(model, captions, output, lambda seconds=seconds: kill_after(float(seconds))), flush=True)
        print(run(model, captions, output, lambda: None, say_seconds=True), flush=True)
