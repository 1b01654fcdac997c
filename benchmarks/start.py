# SPDX-License-Identifier: Apache-2.0
"""Seconds until a fresh process has an answer: help, usage errors, importing the package, the first picture."""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from fresh_process import seconds_of
from reporting import run_script, write_json
from rich.console import Console
from rich.table import Table

_COMMAND = Path(sys.executable).with_name("pai-painter")
_HELP_BAR = 1.0  # seconds


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each thing is started once in each.")] = 5,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if help or a usage error misses its bar.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """Times whole processes: the command's answers, `import pai_painter`, and a picture by the demo model."""
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        paint = ["paint", "红苹果", "--seed=1", "--force", f"--output={folder}/apple.png"]
        asked: dict[str, tuple[list[str], int]] = {
            "pai-painter --help": (["--help"], 0),
            "pai-painter paint --help": (["paint", "--help"], 0),
            "pai-painter train --help": (["train", "--help"], 0),
            "pai-painter paint --top-k many": (["paint", "红", "--top-k", "many"], 2),
            "pai-painter train --lerning_rate 1": (["train", "--lerning_rate", "1"], 2),
            "pai-painter paint 红苹果": (paint, 0),
        }
        commands = {name: ([str(_COMMAND), *words], status) for name, (words, status) in asked.items()}
        commands["import pai_painter"] = ([sys.executable, "-c", "import pai_painter"], 0)
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, (words, status) in commands.items():
                taken[name].append(seconds_of(words, status))
    table = Table("", "median", "lowest", "highest", "bar", title="Seconds of a fresh process")
    missed = False
    for name, seconds in taken.items():
        answers = name.startswith("pai-painter") and "红苹果" not in name
        median = statistics.median(seconds)
        missed |= answers and median > _HELP_BAR
        numbers = [f"{number:.2f}" for number in (median, min(seconds), max(seconds))]
        table.add_row(name, *numbers, f"≤ {_HELP_BAR:g}" if answers else "")
    Console().print(table)
    write_json(json_file, {"rounds": rounds, "seconds": taken})
    if check and missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_script(main)
