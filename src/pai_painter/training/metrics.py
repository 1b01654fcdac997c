# SPDX-License-Identifier: Apache-2.0
"""The metrics of a run: lines of metrics.jsonl, and accelerate's trackers."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator

__all__ = ["Metrics", "read_metrics"]

logger = logging.getLogger(__name__)


class Metrics:
    """
    Where the first process writes metrics.

    Args:
        accelerator: hands them to its trackers, too.
        output_dir: folder of metrics.jsonl.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | Path):
        self.accelerator, self.path = accelerator, Path(output_dir) / "metrics.jsonl"

    def begin(self, start: int, settings: dict[str, Any]) -> None:
        """Drops what came after step `start`, which is done again, and starts the trackers with the settings."""
        if self.accelerator.is_main_process and self.path.is_file():
            kept = [line for line in read_metrics(self.path) if line["step"] <= start] if start else []
            rewritten = self.path.with_suffix(".rewritten")
            rewritten.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            rewritten.replace(self.path)
        if self.accelerator.log_with:
            plain = {
                name: value if isinstance(value, int | float | str | bool) else json.dumps(value)
                for name, value in settings.items()
            }
            # A resumed run is the run that it was, and its steps don't stand twice.
            options = {
                "tensorboard": {"purge_step": start + 1},
                "trackio": {"name": self.path.parent.name, "resume": "allow", "auto_log_cpu": False},
            }
            self.accelerator.init_trackers("pai-painter", config=plain, init_kwargs=options)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line. A full disk doesn't end the run."""
        self.accelerator.log(metrics, step=step)
        if not self.accelerator.is_main_process:
            return
        line = {"step": step, **metrics}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            logger.warning("The metrics %s could not be written (%s). Training continues.", line, error)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.jsonl with their finite numbers; a line that a kill cut off is left out."""
    lines: list[dict[str, float]] = []
    for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
            lines.append({name: value for name, value in numbers.items() if math.isfinite(value)})
    return lines
