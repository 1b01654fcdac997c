# SPDX-License-Identifier: Apache-2.0
"""Seconds from captions to PNG on the CPU: ours at each speed, the published loop, GPT-2, and the hardware."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from batch_painters import GPT2, PUBLISHED, TOP_K, WaySettings, build_way
from fresh_process import first_picture, stored_painter
from generate_figures import BARS, cell_figures, missed_bars
from generate_report import BLOCK, draw_curves, sheets, write_markdown
from hardware import build_hardware
from measuring import Measured, StepProcess, step_processes
from painters import prefix_weights
from reporting import describe_machine, run_script, split_block, write_json
from rich.console import Console
from rich.progress import track
from steps import CONFIGS

from pai_painter.cpu.speed import SPEEDS, SpeedName, find_speed

_WARM_UP_CODES = 8  # and one whole decoding: all that is made ready, is made ready by these
_TABLE_ROWS = (1, 8)
_CURVE_ROWS, _OTHER_SIZE_ROWS = (1, 2, 4, 8, 16), (1, 8)


class Part(StrEnum):
    """What can be measured."""

    TABLE = "table"
    CURVES = "curves"
    COLD = "cold"


@dataclass(frozen=True)
class Cell:
    """One size and one number of pictures at once; `shapes` are the captions and the pictures of each."""

    size: str
    rows: int
    shapes: Sequence[tuple[int, int]]


def main(
    part: Annotated[
        list[Part] | None,
        typer.Option(help="What to measure: the table (by default), the curves or the cold start. May be repeated."),
    ] = None,
    size: Annotated[str, typer.Option(help=f"Of the table: one of {', '.join(CONFIGS)}.")] = "base",
    other_size: Annotated[str, typer.Option(help="The size that the curves compare it with.")] = "large",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; everything is painted once in each.")] = 3,
    timed_steps: Annotated[
        int, typer.Option(min=2, help="Steps of the published loop timed in each round; the others are interpolated.")
    ] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each; all cores by default.")] = None,
    check: Annotated[bool, typer.Option(help="Exit with 1 if a bar of the table is missed.")] = False,
    tiny: Annotated[
        bool, typer.Option(help="Try the script out: a tiny model, two rounds, results mean nothing.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
    shown: Annotated[
        Path | None,
        typer.Option(
            "--show", exists=True, dir_okay=False, help="Measure nothing and show the metrics in this JSON file."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this PNG file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables between the marks for them in this document.")
    ] = None,
) -> None:
    """
    Times the way from captions to PNG files on the CPU, warm, with random weights.

    Every way to paint lives in a process of its own, and they take turns; ratios are taken within a round. Of the
    published loop a few steps are timed, at lengths of the prefix spread over all, and decoding for one row; the rest
    is reckoned from these. The machine's own limits are measured beside them in every round.
    """
    parts, figures = part or [Part.TABLE], None
    if shown is not None:
        figures = json.loads(shown.read_text(encoding="utf-8"))
        parts = [Part(each) for each in figures["parts"]]
    _check_before_the_work(parts, (size, other_size), check, json_file, plot, markdown)
    if figures is None:
        if tiny:
            size, other_size, rounds, timed_steps = "tiny", "tiny", 2, 2
        figures = _measure(parts, size, other_size, rounds, timed_steps, threads or os.cpu_count() or 1, tiny)
    write_json(json_file, figures)
    console = Console()
    for sheet in sheets(figures):
        sheet.show(console)
    if plot is not None:
        draw_curves(figures, plot)
    if markdown is not None:
        write_markdown(figures, plot, markdown)
    missed = missed_bars(figures)
    if check and missed:
        typer.echo(f"Slower than the bar: {'; '.join(missed)}.", err=True)
        raise typer.Exit(1)


def _check_before_the_work(
    parts: list[Part],
    sizes: Sequence[str],
    check: bool,
    json_file: Path | None,
    plot: Path | None,
    markdown: Path | None,
) -> None:
    """
    Raises:
        typer.BadParameter: if an option can't be right or a file couldn't be written in the end.
    """
    for size in sizes:
        if size not in CONFIGS:
            raise typer.BadParameter(f"there is no size {size!r}; it must be one of {', '.join(CONFIGS)}.")
    for option, needed, wanted in (("check", Part.TABLE, check), ("plot", Part.CURVES, plot is not None)):
        if wanted and needed not in parts:
            raise typer.BadParameter(f"`--{option}` needs `--part {needed}`.")
    for path in (json_file, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent} for {path.name}.")
    if markdown is not None:
        try:
            split_block(markdown, BLOCK)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error


def _measure(
    parts: list[Part], size: str, other_size: str, rounds: int, timed_steps: int, threads: int, tiny: bool
) -> dict[str, Any]:
    """All figures of a run, as they stand in its JSON file."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the processes that are started
    load = os.getloadavg()[0]
    config = CONFIGS[size]()
    weights = prefix_weights(config.text_length, config.max_position_embeddings - 1, timed_steps)
    speeds, start = _speeds(), time.monotonic()
    cells = [
        figures
        for cell in _cells(parts, size, other_size)
        for figures in _measure_cell(cell, speeds, rounds, list(weights), tiny)
    ]
    cold = _measure_cold(size, speeds, rounds) if Part.COLD in parts else []
    return {
        "machine": describe_machine(),
        "minutes": (time.monotonic() - start) / 60,
        "load_average_before": load,
        "parts": [str(part) for part in parts],
        "size": size,
        "rounds": rounds,
        "threads": threads,
        "top_k": TOP_K,
        "tokens": config.num_image_tokens,
        "timed_prefixes": list(weights),
        "bars": [vars(bar) for bar in BARS],
        "cells": cells,
        "cold": cold,
    }


def _cells(parts: Sequence[Part], size: str, other_size: str) -> Iterator[Cell]:
    """Each that some part needs, once; several pictures of one caption are for the table alone."""
    rows = set()
    if Part.TABLE in parts:
        rows |= set(_TABLE_ROWS)
    if Part.CURVES in parts:
        rows |= set(_CURVE_ROWS if size != other_size else _OTHER_SIZE_ROWS)
    for number in sorted(rows):
        several = Part.TABLE in parts and number in _TABLE_ROWS and number > 1
        yield Cell(size, number, [(number, 1), (1, number)] if several else [(number, 1)])
    if Part.CURVES in parts and other_size != size:
        for number in _OTHER_SIZE_ROWS:
            yield Cell(other_size, number, [(number, 1)])


def _measure_cell(
    cell: Cell, speeds: list[SpeedName], rounds: int, prefixes: list[int], tiny: bool
) -> list[dict[str, Any]]:
    """The figures of a cell, one for each of its shapes."""
    ways = [GPT2, *speeds]
    settings = [WaySettings(way, cell.size, cell.rows) for way in (PUBLISHED, *ways)]
    with step_processes(build_hardware, tiny) as (hardware,), step_processes(build_way, *settings) as processes:
        published, *ours = processes
        by_way = dict(zip(ways, ours, strict=True))
        published.step(prefixes[0])
        for process in by_way.values():
            for shape in cell.shapes:
                process.step(*shape, _WARM_UP_CODES)
        taken = [
            _take_round(hardware, published, by_way, cell, prefixes)
            for _ in track(range(rounds), description=f"{cell.size} size, {cell.rows} at once", transient=True)
        ]
    return [cell_figures(CONFIGS[cell.size](), cell.size, shape, taken) for shape in cell.shapes]


def _speeds() -> list[SpeedName]:
    """Ours that this machine has; of the others it is said why not."""
    found: list[SpeedName] = []
    for speed in SPEEDS:
        try:
            find_speed(speed, torch.device("cpu"))
        except ValueError as error:
            typer.echo(f"Not measured: {error}", err=True)
        else:
            found.append(speed)
    return found


def _take_round(
    hardware: StepProcess, published: StepProcess, by_way: dict[str, StepProcess], cell: Cell, prefixes: list[int]
) -> dict[Any, Any]:
    """What was measured: of the published loop by prefix, of all others by way and shape."""
    taken: dict[Any, Measured] = {"hardware": hardware.step(), (PUBLISHED, None): published.step(None)}
    for prefix in prefixes:
        taken[PUBLISHED, prefix] = published.step(prefix)
    for shape in cell.shapes:
        for way, process in by_way.items():
            taken[way, shape] = process.step(*shape)
    return taken


def _measure_cold(size: str, speeds: list[SpeedName], rounds: int) -> list[dict[str, Any]]:
    """Seconds of the phases up to the first picture in a fresh process, for each speed and round."""
    with stored_painter(size) as folder:
        return [
            {"speed": speed, **first_picture(folder, speed)}
            for _ in track(range(rounds), description="First pictures", transient=True)
            for speed in speeds
        ]


if __name__ == "__main__":
    run_script(main)
