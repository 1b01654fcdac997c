# SPDX-License-Identifier: Apache-2.0
"""The figures of a run: lines of metrics.jsonl, and trackers."""

import json
import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator

__all__ = ["Figures"]

logger = logging.getLogger(__name__)


class Figures:
    """
    Where the first process writes figures down.

    Args:
        accelerator: hands them to its trackers, too.
        output_dir: folder of metrics.jsonl.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | Path):
        self.accelerator, self.path = accelerator, Path(output_dir) / "metrics.jsonl"

    def begin(self, start: int, settings: dict[str, Any]) -> None:
        """Forgets what came after step `start` and starts the trackers, which are told the settings."""
        if self.accelerator.is_main_process:
            self._drop_after(start)
        if self.accelerator.log_with:
            plain = {
                name: value if isinstance(value, int | float | str | bool) else json.dumps(value)
                for name, value in settings.items()
            }
            # What is done again after a restart isn't to stand twice, and a run taken up is the run it was.
            options = {
                "tensorboard": {"purge_step": start + 1},
                "trackio": {"name": self.path.parent.name, "resume": "allow", "auto_log_cpu": False},
            }
            self.accelerator.init_trackers("pai-painter", config=plain, init_kwargs=options)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One line. A disk that is full is no reason to lose the run."""
        self.accelerator.log(figures, step=step)
        if not self.accelerator.is_main_process:
            return
        line = {"step": step, **figures}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            logger.warning("The figures %s could not be written (%s). Training goes on.", line, error)

    def _drop_after(self, step: int) -> None:
        """Lines of steps that are done again now would stand twice, and a line may have been cut by a kill."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        rewritten = self.path.with_suffix(".rewritten")
        rewritten.write_text("".join(kept) if step else "", encoding="utf-8")
        rewritten.replace(self.path)
