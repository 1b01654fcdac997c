# SPDX-License-Identifier: Apache-2.0
"""The metrics of a run: lines of metrics.jsonl, their curve, and accelerate's trackers."""

import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..whole_files import write_whole

logger = logging.getLogger(__name__)


class Metrics:
    """Where the first process writes metrics: metrics.jsonl in `folder`, and the trackers of `accelerator`."""

    def __init__(self, accelerator: Accelerator, folder: Path):
        self.accelerator, self.path = accelerator, folder / "metrics.jsonl"

    def begin(self, start: int, settings: dict[str, Any]) -> None:
        """Drops what came after step `start`, which is done again, and starts the trackers with the settings."""
        if self.accelerator.is_main_process and self.path.is_file():
            kept = [line for line in read_metrics(self.path) if line["step"] <= start] if start else []
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_whole(self.path, lambda partial: partial.write_text(text, encoding="utf-8"))
        if self.accelerator.log_with:
            plain = {name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()}
            # A resumed run is the run that it was, and its steps don't stand twice.
            options = {
                "tensorboard": {"purge_step": start + 1},
                "trackio": {"name": self.path.parent.name, "resume": "allow", "auto_log_cpu": False},
            }
            self.accelerator.init_trackers("pai-painter", config=plain, init_kwargs=options)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line. A full disk doesn't end the run."""
        self.accelerator.log(metrics, step=step)
        if self.accelerator.is_main_process:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **metrics}) + "\n")
            except OSError as error:
                logger.warning("The metrics of step %d can't be written (%s): %s.", step, error, metrics)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics.jsonl with their finite numbers; a line that a kill cut off is left out."""
    lines: list[dict[str, float]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, AttributeError, TypeError):
            line = {name: value for name, value in json.loads(text).items() if math.isfinite(value)}
            lines += [line] if "step" in line else []
    return lines


def draw_loss_curve(metrics: list[dict[str, float]], path: Path) -> None:
    """Draws the training and validation losses as a PNG, if there are any."""
    from matplotlib.figure import Figure  # not needed before the end of a run

    if not any("loss" in line or "validation_loss" in line for line in metrics):
        return
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["step"], line[name]) for line in metrics if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) <= 20 else None, label=label)
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.legend()
    figure.savefig(path, format="png")
