# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per image token of one picture on the CPU, with speculative decoding and without."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from reporting import run_script, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from steps import CONFIGS, StepSettings, build_painter, build_processor, made_up_caption

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor
from pai_painter.cpu.decoding import DecodingLoop
from pai_painter.cpu.speculative_decoding import SpeculativeDecodingLoop
from pai_painter.cpu.speed import PaintingSpeed, SpeedName, find_speed
from pai_painter.model.sampling_pai_painter import GumbelSampler

_DEMO_CAPTIONS = ("红苹果", "一只熊猫", "蓝色的汽车", "生日蛋糕", "绿色的树", "猫")


@dataclass(frozen=True)
class Written:
    """How captions were written in one round, one picture of each."""

    milliseconds: float  # per token
    tokens_per_pass: float
    tokens: list[list[int]]


def main(
    size: Annotated[str, typer.Option(help=f"With random weights: one of {', '.join(CONFIGS)}.")] = "base",
    ahead: Annotated[
        list[int] | None, typer.Option(min=1, help="Draft tokens; may be repeated (2, 4, 8 and 16).")
    ] = None,
    speed: Annotated[SpeedName, typer.Option(help="What is rounded, with draft tokens and without.")] = "exact",
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; each way runs once in each.")] = 3,
    tokens: Annotated[int | None, typer.Option(min=1, help="Image tokens per picture; by default all of them.")] = None,
    tiny: Annotated[
        bool, typer.Option(help="Try the script out: a tiny model, two rounds, results mean nothing.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Times the decoding of one picture's image tokens on the CPU, warm, with the demo model and with random weights.

    How many draft tokens are accepted depends on the model: the demo model shows it for trained models, and the size
    with random weights shows what a pass over that many draft tokens costs. All ways take turns; ratios are taken
    within a round.
    """
    if size not in CONFIGS:
        raise typer.BadParameter(f"there is no size {size!r}; it must be one of {', '.join(CONFIGS)}.")
    if tiny:
        size, rounds, tokens = "tiny", 2, 20
    ways = [0, *(ahead or [2, 4, 8, 16])]
    settings = find_speed(speed, torch.device("cpu"))
    figures: dict[str, Any] = {}
    for name, model, captions in _models(size):
        written = _take_turns(model, captions, settings, ways, rounds, tokens)
        figures[name] = [_summarize(way, written[way], written[0]) for way in ways]
        _show(f"One picture, {name}, {speed}", figures[name])
    write_json(json_file, {"size": size, "speed": speed, "models": figures})


def _models(size: str) -> Iterator[tuple[str, PaiPainterForImageGeneration, list[torch.Tensor]]]:
    demo = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    yield "demo model", demo.model, _caption_ids(demo.processor, _DEMO_CAPTIONS)
    torch.manual_seed(0)
    model = build_painter(StepSettings(size)).eval()
    yield f"{size} size, random weights", model, _caption_ids(build_processor(model.config), [made_up_caption(0)])


def _caption_ids(processor: PaiPainterProcessor, captions: Any) -> list[torch.Tensor]:
    return [processor(text=caption, return_tensors="pt")["input_ids"] for caption in captions]


def _take_turns(
    model: PaiPainterForImageGeneration,
    captions: list[torch.Tensor],
    settings: PaintingSpeed,
    ways: list[int],
    rounds: int,
    tokens: int | None,
) -> dict[int, list[Written]]:
    written: dict[int, list[Written]] = {way: [] for way in ways}
    for number in track(range(rounds), description="Rounds", transient=True):
        for way in ways:  # a writer at a time: each may have a copy of the weights
            speed = replace(settings, num_draft_tokens=way)
            writer = SpeculativeDecodingLoop(model, speed) if way else DecodingLoop(model, 1, speed)
            if number == 0:
                _write(writer, captions[:1], model, 4)
            written[way].append(_write(writer, captions, model, tokens))
    return written


def _write(
    writer: DecodingLoop, captions: list[torch.Tensor], model: PaiPainterForImageGeneration, tokens: int | None
) -> Written:
    options = model.generation_config
    last = model.config.text_length + (tokens or model.config.num_image_tokens)
    rows, passes = [], 0
    start = time.perf_counter()
    for seed, caption in enumerate(captions):
        sampler = GumbelSampler([seed], model.config.text_length, options.temperature, options.top_k, options.top_p)
        rows += writer.write(caption, 1, sampler, [lambda ids: ids.shape[1] == last]).tolist()
        passes += writer.passes if isinstance(writer, SpeculativeDecodingLoop) else len(rows[-1])
    count = sum(map(len, rows))
    return Written((time.perf_counter() - start) / count * 1000, count / passes, rows)


def _summarize(way: int, written: list[Written], ordinary: list[Written]) -> dict[str, float]:
    ratios = [theirs.milliseconds / mine.milliseconds for theirs, mine in zip(ordinary, written, strict=True)]
    pairs = [
        mine == theirs
        for one, other in zip(ordinary[0].tokens, written[0].tokens, strict=True)
        for mine, theirs in zip(one, other, strict=True)
    ]
    return {
        "num_draft_tokens": way,
        "tokens_per_pass": written[0].tokens_per_pass,
        "milliseconds": statistics.median(each.milliseconds for each in written),
        "speedup": statistics.median(ratios),
        "speedup_lowest": min(ratios),
        "speedup_highest": max(ratios),
        "same_tokens": statistics.mean(pairs),
    }


def _show(title: str, figures: list[dict[str, float]]) -> None:
    table = Table(title=title, caption="Medians; they include the caption's pass, but not the preparation.")
    for heading in ("draft tokens", "tokens per pass", "ms per token", "speed-up", "lowest … highest", "same tokens"):
        table.add_column(heading, justify="right")
    for row in figures:
        table.add_row(
            str(row["num_draft_tokens"]),
            f"{row['tokens_per_pass']:.2f}",
            f"{row['milliseconds']:.2f}",
            f"{row['speedup']:.2f}×",
            f"{row['speedup_lowest']:.2f} … {row['speedup_highest']:.2f}",
            f"{row['same_tokens']:.1%}",
        )
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
