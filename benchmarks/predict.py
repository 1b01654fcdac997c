# SPDX-License-Identifier: Apache-2.0
"""Pictures per second of prediction on the CPU, caption to PNG: our batches against the published loop."""

import os
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from measuring import GB, StepProcess, step_processes
from painters import PainterSettings, build_part_of_painting, prefix_weights
from reporting import run_script, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from steps import CONFIGS

# What ours must reach, as a multiple of the published loop's speed.
TARGET = 15.0


def main(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(CONFIGS)}.")] = "base",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures painted at once.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count: ours paints a batch in each.")] = 3,
    warm_up: Annotated[int, typer.Option(min=0, help="Rounds before them.")] = 1,
    timed_steps: Annotated[
        int, typer.Option(min=2, help="Steps of the published loop timed in each round; the others are interpolated.")
    ] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each; all cores by default.")] = None,
    check: Annotated[bool, typer.Option(help="Exit with 1 if the target is missed.")] = False,
    tiny: Annotated[
        bool, typer.Option(help="Try the script out: a tiny model, two rounds, results mean nothing.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Times the way from captions to PNG files on the CPU.

    Ours paints whole batches. The published loop would need minutes for one, so of it a few steps are timed, at
    lengths of the prefix spread over all, and decoding for one row; the rest of its batch is reckoned from these. Both
    live in a process of their own and take turns; ratios are taken within a round.
    """
    if size not in CONFIGS:
        raise typer.BadParameter(f"there is no size {size!r}; it must be one of {', '.join(CONFIGS)}.")
    if tiny:
        size, batch_size, rounds, warm_up, timed_steps = "tiny", 2, 2, 0, 2
    os.environ["OMP_NUM_THREADS"] = str(threads or os.cpu_count())  # read by the processes that are started
    config = CONFIGS[size]()
    weights = prefix_weights(config.text_length, config.max_position_embeddings - 1, timed_steps)
    settings = [PainterSettings(size, batch_size, published) for published in (True, False)]
    with step_processes(build_part_of_painting, *settings) as (published, ours):
        measured = [
            _take_round(published, ours, weights, batch_size)
            for _ in track(range(warm_up + rounds), description="Rounds", transient=True)
        ][warm_up:]
    figures = _summarize(measured, batch_size)
    _show(figures, f"Captions to PNG, {size} size, {batch_size} at once, float32", weights, config.num_image_tokens)
    write_json(json_file, {"size": size, "batch_size": batch_size, "timed_prefixes": list(weights), **figures})
    if check and figures["speedup"] < TARGET:
        typer.echo(f"Slower than the target: {figures['speedup']:.1f}× instead of {TARGET:g}×.", err=True)
        raise typer.Exit(1)


def _take_round(
    published: StepProcess, ours: StepProcess, weights: dict[int, float], batch_size: int
) -> dict[str, dict[str, float]]:
    """Seconds of a batch, of its tokens and of its decoding, and the peak memory, of both."""
    mine = ours.step()
    steps = {prefix: published.step(prefix) for prefix in weights}
    decoding = published.step(None)
    token_seconds = sum(weight * steps[prefix].seconds for prefix, weight in weights.items())
    decoding_seconds = batch_size * decoding.seconds
    return {
        "published": {
            "seconds": token_seconds + decoding_seconds,
            "token_seconds": token_seconds,
            "decoding_seconds": decoding_seconds,
            "peak_bytes": max(each.peak_bytes for each in (*steps.values(), decoding)),
        },
        "ours": {"seconds": mine.seconds, "peak_bytes": mine.peak_bytes},
    }


def _summarize(rounds: list[dict[str, dict[str, float]]], batch_size: int) -> dict[str, Any]:
    ratios = [each["published"]["seconds"] / each["ours"]["seconds"] for each in rounds]
    variants = {}
    for name in ("published", "ours"):
        seconds = [each[name]["seconds"] for each in rounds]
        variants[name] = {
            "images_per_second": batch_size / statistics.median(seconds),
            "images_per_second_best": batch_size / min(seconds),
            "seconds_per_image": statistics.median(seconds) / batch_size,
            "peak_gb": max(each[name]["peak_bytes"] for each in rounds) / GB,
        }
    for part in ("tokens", "decoding"):
        seconds = [each["published"][f"{part}_seconds"] for each in rounds]
        variants["published"][f"{part}_seconds_per_image"] = statistics.median(seconds) / batch_size
    return {
        "variants": variants,
        "speedup": statistics.median(ratios),
        "speedup_lowest": min(ratios),
        "speedup_highest": max(ratios),
        "target": TARGET,
    }


def _show(figures: dict[str, Any], title: str, weights: dict[int, float], steps: int) -> None:
    published = figures["variants"]["published"]
    table = Table(
        title=title,
        caption="Medians; peak memory above what the libraries take, each in its own process. The published loop is "
        f"extrapolated from {len(weights)} of its {steps} steps (prefixes of {', '.join(map(str, weights))}; "
        f"trapezoid rule) and the decoding for one row: {published['token_seconds_per_image']:.1f} s per picture "
        f"for the image tokens, {published['decoding_seconds_per_image']:.1f} s for decoding.",
    )
    for heading in ("", "images/s", "s/image", "speed-up", "lowest … highest", "target", "peak memory"):
        table.add_column(heading, justify="right" if heading else "left")
    ratios = {
        "published": ("1×", "", ""),
        "ours": (
            f"{figures['speedup']:.1f}×",
            f"{figures['speedup_lowest']:.1f} … {figures['speedup_highest']:.1f}",
            f"{TARGET:g}×",
        ),
    }
    for name, row in figures["variants"].items():
        table.add_row(
            name,
            f"{row['images_per_second']:.4f}",
            f"{row['seconds_per_image']:.2f}",
            *ratios[name],
            f"{row['peak_gb']:.2f} GB",
        )
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
