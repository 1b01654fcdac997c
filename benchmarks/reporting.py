# SPDX-License-Identifier: Apache-2.0
"""What the scripts do with their figures and their errors."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
import typer
from measuring import GB, MeasuringFailed
from rich.console import Console
from rich.table import Table

__all__ = ["Sheet", "describe_machine", "replace_block", "run_script", "split_block", "write_json"]

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Sheet:
    """
    A table for the terminal and for a document, the same words in both.

    Args:
        title (`str`): Above it.
        headings (`Sequence[str]`): One for each column.
        rows (`Sequence[Sequence[str]]`): Its cells.
        caption (`str`): Below it.
        names (`int`): How many columns hold names; they stand left, the figures behind them right.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    names: int = 1

    def show(self, console: Console) -> None:
        """Prints it."""
        table = Table(title=self.title, caption=self.caption)
        for number, heading in enumerate(self.headings):
            is_name = number < self.names
            table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """It as Markdown."""
        rule = ["---"] * self.names + ["--:"] * (len(self.headings) - self.names)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headings, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.caption] if self.caption else [])])


def replace_block(path: Path, name: str, text: str) -> None:
    """Writes `text` between the marks of a document; see [`split_block`]. What is outside stays."""
    before, _, after = split_block(path, name)
    path.write_text(f"{before}\n\n{text.strip()}\n\n{after}", encoding="utf-8")


def split_block(path: Path, name: str) -> tuple[str, str, str]:
    """
    A document up to the mark `<!-- name -->`, what is between it and `<!-- end of name -->`, and the rest.

    Raises:
        ValueError: if the document doesn't have both marks, once each and in this order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    document = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found_begin, rest = document.partition(begin)
    between, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in rest or end in before + after:
        raise ValueError(f"{path} must have the lines {begin} and {end}, once each, for what goes between them.")
    return before + begin, between, end + after


def describe_machine() -> dict[str, Any]:
    """What results depend on besides the code."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / GB, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Figures and the machine they are from, if a file is asked for."""
    if path is not None:
        whole = {"machine": describe_machine(), **figures}
        path.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def run_script(main: Callable[..., None]) -> None:
    """Runs a script's `main` with the words of the command line; what can't be measured is said without a traceback."""
    try:
        typer.run(main)
    except MeasuringFailed as error:
        sys.exit(str(error))
