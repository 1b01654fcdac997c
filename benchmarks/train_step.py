# SPDX-License-Identifier: Apache-2.0
"""Rows per second and memory of one optimizer step on the CPU: ours with cached tokens against the published way."""

import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from measuring import GB, Measured, StepProcess, step_processes
from reporting import run_script, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from steps import CONFIGS, StepSettings, build_step

# What ours must reach, as multiples of the published way's speed.
TARGETS = {"ours, float32": 1.6, "ours, fastest": 3.0}


def main(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(CONFIGS)}.")] = "base",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each variant that count, taken in turn.")] = 7,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps of each before them; the first builds AdamW's state.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a step; all cores by default.")] = None,
    compiled: Annotated[bool, typer.Option(help="Measure a variant with torch.compile, too.")] = False,
    check: Annotated[bool, typer.Option(help="Exit with 1 if a target is missed.")] = False,
    tiny: Annotated[
        bool, typer.Option(help="Try the script out: a tiny model, two rounds, results mean nothing.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Times one optimizer step of the painter on the CPU.

    Each variant lives in a process of its own. They take their steps in turn, so that whatever else the machine does
    meets all of them alike; ratios are taken within a round.
    """
    if size not in CONFIGS:
        raise typer.BadParameter(f"there is no size {size!r}; it must be one of {', '.join(CONFIGS)}.")
    if tiny:
        size, batch_size, rounds, warm_up = "tiny", 2, 2, 1
    os.environ["OMP_NUM_THREADS"] = str(threads or os.cpu_count())  # read by the processes that are started
    fastest = StepSettings(size, batch_size, mixed_precision="bf16")
    variants = {
        "published": StepSettings(size, batch_size, published=True, attn_implementation="eager"),
        "ours, float32": StepSettings(size, batch_size),
        "ours, fastest": fastest,
    }
    if compiled:
        variants["ours, compiled"] = replace(fastest, torch_compile=True)
    with step_processes(build_step, *variants.values()) as processes:
        steps = _take_turns(dict(zip(variants, processes, strict=True)), warm_up, rounds)
    figures = {name: _summarize(steps[name], steps["published"], batch_size) for name in variants}
    _show(figures, f"One optimizer step, {size} size, {batch_size} rows, float32 weights")
    write_json(json_file, {"size": size, "batch_size": batch_size, "variants": figures})
    missed = [name for name, target in TARGETS.items() if figures[name]["speedup"] < target]
    if check and missed:
        typer.echo(f"Slower than the target: {'; '.join(missed)}.", err=True)
        raise typer.Exit(1)


def _take_turns(processes: dict[str, StepProcess], warm_up: int, rounds: int) -> dict[str, list[Measured]]:
    steps: dict[str, list[Measured]] = {name: [] for name in processes}
    for number in track(range(warm_up + rounds), description="Rounds", transient=True):
        for name, process in processes.items():
            measured = process.step()
            if number >= warm_up:
                steps[name].append(measured)
    return steps


def _summarize(steps: list[Measured], published: list[Measured], batch_size: int) -> dict[str, float]:
    seconds = [step.seconds for step in steps]
    ratios = [theirs.seconds / mine.seconds for theirs, mine in zip(published, steps, strict=True)]
    return {
        "rows_per_second": batch_size / statistics.median(seconds),
        "rows_per_second_best": batch_size / min(seconds),
        "speedup": statistics.median(ratios),
        "speedup_lowest": min(ratios),
        "speedup_highest": max(ratios),
        "peak_gb": max(step.peak_bytes for step in steps) / GB,
    }


def _show(figures: dict[str, dict[str, float]], title: str) -> None:
    table = Table(title=title, caption="Medians; peak memory above what the libraries take, each in its own process.")
    for heading in ("", "rows/s", "best", "speed-up", "lowest … highest", "target", "peak memory"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['rows_per_second']:.2f}",
            f"{row['rows_per_second_best']:.2f}",
            f"{row['speedup']:.2f}×",
            f"{row['speedup_lowest']:.2f} … {row['speedup_highest']:.2f}",
            f"{TARGETS[name]}×" if name in TARGETS else "",
            f"{row['peak_gb']:.2f} GB",
        )
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
