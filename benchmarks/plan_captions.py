# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of prediction without the painting: planning, shards and joining for a million captions."""

import io
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import Measured, MeasuringFailed, step_processes
from PIL import Image
from reporting import run_script, write_json
from rich.console import Console
from rich.table import Table
from steps import StepSettings, build_painter, build_processor, made_up_caption

from pai_painter import PaiPainterPipeline
from pai_painter.batch import prediction
from pai_painter.batch.caption_files import find_captions, survey_captions
from pai_painter.batch.paint_captions import PaintCaptions, Picture, row_seed
from pai_painter.batch.prediction import default_shard_size

PHASES = ("survey", "shards", "joining")
# What finding repeated ids may take.
BYTES_A_ROW = 16
_BATCH_SIZE, _WARM_UP_ROWS = 8, 2000
_REPEATED_EVERY, _EMPTY_EVERY = 1000, 1001
_MB = 10**6


def main(
    rows: Annotated[str, typer.Option(help="Numbers of captions, with commas.")] = "10000,100000,1000000",
    folder: Annotated[Path | None, typer.Option(help="For all files; removed in the end. The system's /tmp.")] = None,
    check: Annotated[
        bool, typer.Option(help=f"Exit with 1 if memory grows by more than {BYTES_A_ROW} bytes per row.")
    ] = False,
    tiny: Annotated[bool, typer.Option(help="Try the script out: few captions, results mean nothing.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Runs `pai-painter predict` on made-up captions with every picture the same white dot, which is there already.

    Everything else is done as always: captions are read twice, checked and cut into word pieces, repeated ids found,
    shards written, noted, and joined to one TSV. Each number of captions has a process of its own. The run is stopped
    before its last shard and goes on from there, so that joining is seen by itself. Each of these
    two phases looks at all captions again, as the first one does.
    """
    counts = _numbers("100,1000" if tiny else rows)
    os.environ["OMP_NUM_THREADS"] = "1"  # nothing is computed
    figures = []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="plan-captions-", dir=folder) as scratch:
            captions = Path(scratch) / "captions.tsv"
            _write_captions(captions, count)
            with step_processes(PlannedRun, captions) as (process,):
                figures.append({"rows": count, **_figures({phase: process.step(phase) for phase in PHASES})})
    smallest, largest = figures[0], figures[-1]
    more_rows = largest["rows"] - smallest["rows"]
    growth = (largest["peak_mb"] - smallest["peak_mb"]) * _MB / more_rows if more_rows else None
    _show(figures, growth)
    write_json(json_file, {"runs": figures, "bytes_a_row": growth, "limit": BYTES_A_ROW})
    if check and growth is not None and growth > BYTES_A_ROW:
        typer.echo(f"Memory grew by {growth:.1f} bytes a row; {BYTES_A_ROW} are allowed.", err=True)
        raise typer.Exit(1)


def _numbers(words: str) -> list[int]:
    try:
        numbers = sorted({int(word) for word in words.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"`rows` must be whole numbers with commas, got {words!r}.") from error
    if numbers[0] < 1:
        raise typer.BadParameter(f"`rows` must be 1 or more, got {words!r}.")
    return numbers


def _write_captions(path: Path, count: int) -> None:
    """Ids as long as those of a web crawl; some rows repeat an id, some have no caption."""
    with open(path, "w", encoding="utf-8") as file:
        for row in range(count):
            number = row - 1 if row % _REPEATED_EVERY == _REPEATED_EVERY - 1 else row
            caption = "" if row % _EMPTY_EVERY == _EMPTY_EVERY - 1 else f"{made_up_caption(row)},第{row}张图"
            file.write(f"https://example.org/pictures/{number:012d}.jpg\t{caption}\n")


class _Stopped(Exception):
    """Stands for Ctrl-C."""


class _WhiteDots(PaintCaptions):
    """Paints nothing: every picture is there already."""

    shards_left: int | None = None

    def paint(self, rows: Sequence[tuple[str, str] | None]) -> Iterator[list[Picture]]:
        if _WhiteDots.shards_left is not None:
            if not _WhiteDots.shards_left:
                raise _Stopped
            _WhiteDots.shards_left -= 1
        file = io.BytesIO()
        Image.new("RGB", (1, 1), "white").save(file, "PNG")
        for row in rows:
            yield [] if row is None else [Picture(file.getvalue(), row_seed(self.options.seed, row[0]), 0.0)]


class PlannedRun:
    """
    The phases of one run, to be called in order. A small run goes before, so that what libraries load when they are
    first used isn't counted.
    """

    def __init__(self, captions: Path):
        torch.manual_seed(0)
        model = build_painter(StepSettings("tiny")).eval()
        self.pipe = PaiPainterPipeline(model, build_processor(model.config))
        prediction.PaintCaptions = _WhiteDots
        small = captions.with_name("small.tsv")
        _write_captions(small, _WARM_UP_ROWS)
        self._begin(small)
        for phase in PHASES:
            self(phase)
        self._begin(captions)

    def _begin(self, captions: Path) -> None:
        self.captions, self.output = find_captions(captions), captions.with_suffix(".pictures.tsv")
        self.rows = 0

    def __call__(self, phase: str) -> dict[str, int]:
        if phase == "survey":
            self.rows = survey_captions(self.captions).rows
            return {"rows": self.rows}
        if not self.rows:
            raise MeasuringFailed("The survey comes first.")
        shards = math.ceil(self.rows / default_shard_size(self.rows, _BATCH_SIZE))
        _WhiteDots.shards_left = None if phase == "joining" else shards - 1
        options = prediction.PredictOptions(batch_size=_BATCH_SIZE)
        with suppress(_Stopped):
            done = prediction.predict_file(self.pipe, self.captions, self.output, options, progress=False)
            return {"pictures": done.pictures, "rejected": done.rejected}
        return {"shards": shards}


def _figures(phases: dict[str, Measured]) -> dict[str, Any]:
    """Of one run. Memory is what it took more than was there before its first phase."""
    first = phases[PHASES[0]]
    before = first.peak_bytes - first.grown_bytes
    grown = {phase: (measured.peak_bytes - before) / _MB for phase, measured in phases.items()}
    found: dict[str, int] = {}
    for measured in phases.values():
        found |= measured.result
    return {
        **found,
        "seconds": {phase: measured.seconds for phase, measured in phases.items()},
        "grown_mb": grown,
        "peak_mb": max(grown.values()),
    }


def _show(figures: list[dict[str, Any]], growth: float | None) -> None:
    table = Table(
        title="Prediction without the painting",
        caption="Seconds and, in brackets, MB more than before, at most. "
        + ("" if growth is None else f"From the first to the last line {growth:.1f} bytes a row; ")
        + f"allowed: {BYTES_A_ROW}.",
    )
    for heading in ("captions", "shards", *PHASES, "captions/s", "peak"):
        table.add_column(heading, justify="right")
    for run in figures:
        table.add_row(
            f"{run['rows']:,}",
            f"{run['shards']:,}",
            *(f"{run['seconds'][phase]:.1f} ({run['grown_mb'][phase]:.1f})" for phase in PHASES),
            f"{run['rows'] / sum(run['seconds'].values()):,.0f}",
            f"{run['peak_mb']:.1f} MB",
        )
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
