# SPDX-License-Identifier: Apache-2.0
"""
The first picture of a fresh process, by the clock. benchmarks/generate.py starts this script: it imports as little as a
user's own would.

    python benchmarks/first_picture.py FOLDER SPEED CAPTION TOP_K STARTED

`STARTED` is the `time.monotonic()` of the program that starts it. Prints one line of JSON: seconds of each phase.
"""

import io
import json
import sys
import time
from itertools import pairwise


def main(folder: str, speed: str, caption: str, top_k: str, started: str) -> None:
    from pai_painter import PaiPainterPipeline

    marks = [float(started), time.monotonic()]
    pipe = PaiPainterPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    marks.append(time.monotonic())
    for _ in range(2):
        file = io.BytesIO()
        pipe(caption, top_k=int(top_k), seed=0, speed=speed).images[0].save(file, "PNG")
        marks.append(time.monotonic())
    importing, loading, first, second = (after - before for before, after in pairwise(marks))
    # What the first picture took longer than the second: weights put in order or rounded, kernels chosen, memory taken.
    seconds = {"import": importing, "load": loading, "prepare": first - second, "paint": second}
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
