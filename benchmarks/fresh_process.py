# SPDX-License-Identifier: Apache-2.0
"""What a fresh process takes: a painter's folder, and the first pictures from it by `first_picture.py`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from batch_painters import TOP_K
from measuring import MeasuringFailed
from steps import StepSettings, build_painter, build_processor, made_up_caption
from transformers.utils import logging

from pai_painter import PaiPainterPipeline

__all__ = ["first_picture", "seconds_of", "stored_painter"]

_SCRIPT = Path(__file__).with_name("first_picture.py")


@contextmanager
def stored_painter(size: str) -> Iterator[str]:
    """A folder with a painter of random weights, for as long as it lasts."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="first-picture-") as folder:
        painter = build_painter(StepSettings(size)).eval()
        PaiPainterPipeline(painter, build_processor(painter.config)).save_pretrained(folder)
        del painter
        yield folder


def first_picture(folder: str, speed: str, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Seconds of each phase up to the first picture, and of the second; see `first_picture.py`."""
    words = [sys.executable, str(_SCRIPT), folder, speed, made_up_caption(0), str(TOP_K), str(time.monotonic())]
    return json.loads(_run(words, environment).splitlines()[-1])


def seconds_of(words: list[str], status: int = 0) -> float:
    """How long a command takes as a whole process."""
    start = time.monotonic()
    _run(words, None, status)
    return time.monotonic() - start


def _run(words: list[str], environment: Mapping[str, str] | None, status: int = 0) -> str:
    given = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    done = subprocess.run(words, env=given, capture_output=True, text=True, check=False)
    if done.returncode != status:
        raise MeasuringFailed(f"{Path(words[1]).name} ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout
