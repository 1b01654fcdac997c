# SPDX-License-Identifier: Apache-2.0
"""Painting beside other work: how torch's threads wait for each other, on a quiet machine and beside a busy core."""

import multiprocessing
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from fresh_process import first_picture, stored_painter
from reporting import run_script, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from steps import CONFIGS

from pai_painter import DEMO_MODEL
from pai_painter.cpu.speed import SPEEDS
from pai_painter_command import SPINS

_BUSY_BAR, _QUIET_BAR = 1.6, 1.03
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def main(
    size: Annotated[str, typer.Option(help=f"demo, or with random weights one of {', '.join(CONFIGS)}.")] = "base",
    speed: Annotated[list[str] | None, typer.Option(help="Speeds; may be repeated (exact and fastest).")] = None,
    spins: Annotated[
        list[str] | None, typer.Option(help="GOMP_SPINCOUNT to try beside the libraries' own; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each way paints once in each.")] = 3,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a bar is missed.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Paints in fresh processes, quiet and beside a process that keeps one core busy, with the libraries' own way of
    waiting and with the command's.

    Ratios are taken within a round. The command's busy picture must take at most 1.6 times its quiet one, and its quiet
    one at most 1.03 times that with the libraries' own way.
    """
    speeds = speed or ["exact", "fastest"]
    if size not in (*CONFIGS, "demo") or set(speeds) - set(SPEEDS):
        raise typer.BadParameter(f"sizes are demo, {', '.join(CONFIGS)}; speeds are {', '.join(SPEEDS)}.")
    for name in _VARIABLES:
        os.environ.pop(name, None)
    ways: dict[str, dict[str, str]] = {"the libraries' own": {}}
    ways |= {f"GOMP_SPINCOUNT={number}": {"GOMP_SPINCOUNT": number} for number in spins or [SPINS]}
    taken: dict[tuple[str, str, bool], list[float]] = {key: [] for key in product(speeds, ways, (False, True))}
    with _folder(size) as folder:
        for _ in track(range(rounds), description="Painting", transient=True):
            for (name, way, busy), seconds in taken.items():
                with _busy_core() if busy else _nothing():
                    seconds.append(first_picture(folder, name, ways[way])["paint"])
    missed = _show(taken, f"Seconds of a picture, {size} size")
    figures = [{"speed": key[0], "way": key[1], "busy": key[2], "seconds": each} for key, each in taken.items()]
    write_json(json_file, {"size": size, "rounds": rounds, "figures": figures})
    if check and missed:
        raise typer.Exit(1)


def _show(taken: dict[tuple[str, str, bool], list[float]], title: str) -> bool:
    table = Table("speed", "waiting", "quiet", "busy", "busy / quiet", "quiet / the libraries' own", title=title)
    missed = False
    for speed, way in dict.fromkeys(key[:2] for key in taken):
        quiet, busy = taken[speed, way, False], taken[speed, way, True]
        own = taken[speed, next(iter(taken))[1], False]
        slowed, lost = _ratio(busy, quiet), _ratio(quiet, own)
        missed |= "GOMP" in way and (slowed > _BUSY_BAR or lost > _QUIET_BAR)
        numbers = (statistics.median(quiet), statistics.median(busy), slowed, lost)
        table.add_row(speed, way, *(f"{number:.2f}" for number in numbers))
    Console().print(table)
    return missed


def _ratio(ones: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


@contextmanager
def _folder(size: str) -> Iterator[str]:
    if size == "demo":
        yield DEMO_MODEL
    else:
        with stored_painter(size) as folder:
            yield folder


@contextmanager
def _nothing() -> Iterator[Any]:
    yield


@contextmanager
def _busy_core() -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    parent = os.getppid()
    while os.getppid() == parent:  # not after the script was killed
        pass


if __name__ == "__main__":
    run_script(main)
