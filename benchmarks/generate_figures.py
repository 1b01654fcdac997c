# SPDX-License-Identifier: Apache-2.0
"""From what was measured in rounds to the figures of benchmarks/generate.py."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batch_painters import GPT2, PUBLISHED, Painted
from hardware import decoding_dtype, step_bytes, vqgan_flops
from measuring import GB, Measured

from pai_painter import PaiPainterConfig
from pai_painter.cpu.speed import SPEEDS, PaintingSpeed, find_speed

__all__ = ["BARS", "Bar", "cell_figures", "lengths", "missed_bars", "reckon_published"]

Round = dict[Any, Measured]


@dataclass(frozen=True)
class Bar:
    """How many times as fast as the published loop and as GPT-2 one of our speeds must be, with `rows` at once."""

    rows: int
    speed: str
    published: float
    gpt2: float


BARS = (Bar(1, "exact", 9, 1.3), Bar(1, "fastest", 20, 2.5), Bar(8, "exact", 20, 1.3), Bar(8, "fastest", 50, 3))


def missed_bars(figures: dict[str, Any]) -> list[str]:
    """A sentence's worth on each bar that a speed missed, whether several captions or several pictures of one."""
    missed = []
    for bar in figures["bars"]:
        for cell in figures["cells"]:
            if cell["rows"] != bar["rows"] or cell["size"] != figures["size"] or bar["speed"] not in cell["ways"]:
                continue
            row = cell["ways"][bar["speed"]]
            for name, whom in (("published", "the published loop"), ("gpt2", "GPT-2")):
                reached = row[f"against_{name}"]["median"]
                if reached < bar[name]:
                    words = f"{bar['speed']}, {cell['captions']} captions × {cell['copies']}"
                    missed.append(f"{words}: {reached:.2f}× instead of {bar[name]:g}× {whom}")
    return missed


def lengths(tokens: int) -> tuple[int, int, int]:
    """For how many tokens the cost is told: a quarter of a picture, half of it, all."""
    return tokens // 4, tokens // 2, tokens


def reckon_published(steps: dict[int, float], first: int, count: int) -> float:
    """
    Seconds of the published loop's first `count` steps. Between the lengths of the prefix that were timed, the duration
    is taken as a straight line.

    Args:
        steps (`dict[int, float]`): Seconds of a step by the length of its prefix.
        first (`int`): The shortest prefix: the caption alone.
        count (`int`): How many steps.
    """
    timed = sorted(steps)
    return float(np.interp(range(first, first + count), timed, [steps[prefix] for prefix in timed]).sum())


def cell_figures(
    config: PaiPainterConfig, size: str, shape: tuple[int, int], rounds: Sequence[Round]
) -> dict[str, Any]:
    """
    The figures of one size, with so many captions and pictures of each at once.

    Args:
        config ([`PaiPainterConfig`]): The model.
        size (`str`): Its name.
        shape (`tuple[int, int]`): Captions, and pictures of each.
        rounds: what was measured, by way and shape, of the published loop by prefix.
    """
    rows = shape[0] * shape[1]
    ways = [way for way in (GPT2, *SPEEDS) if (way, shape) in rounds[0]]
    published = [_published_round(config, taken, rows) for taken in rounds]
    tokens_until = {
        length: [each["until"][length] for each in published] for length in lengths(config.num_image_tokens)
    }
    figures = {
        PUBLISHED: {
            "seconds_a_picture": _spread(each["seconds"] / rows for each in published),
            "against_published": _spread([1.0]),
            "decoding_seconds_a_picture": _median(each["decoding_seconds"] / rows for each in published),
            "seconds_until": {str(length): _median(seconds) for length, seconds in tokens_until.items()},
            "peak_gb": max(each["peak_bytes"] for each in published) / GB,
        }
    }
    for way in ways:
        speed = PaintingSpeed() if way == GPT2 else find_speed(way, torch.device("cpu"))
        figures[way] = _way_figures(config, speed, rows, [taken[way, shape] for taken in rounds], rounds)
        for name, others in (
            ("published", [each["seconds"] for each in published]),
            ("gpt2", [taken[GPT2, shape].seconds for taken in rounds]),
        ):
            mine = [taken[way, shape].seconds for taken in rounds]
            figures[way][f"against_{name}"] = _spread(them / me for them, me in zip(others, mine, strict=True))
    names = rounds[0]["hardware"].result
    return {
        "size": size,
        "rows": rows,
        "captions": shape[0],
        "copies": shape[1],
        "hardware": {name: _median(taken["hardware"].result[name] for taken in rounds) for name in names},
        "vqgan_flops": vqgan_flops(config),
        "ways": figures,
    }


def _published_round(config: PaiPainterConfig, taken: Round, rows: int) -> dict[str, Any]:
    """A batch by the published loop, reckoned from the steps that a round timed."""
    steps = {key[1]: each.seconds for key, each in taken.items() if key[0] == PUBLISHED and key[1] is not None}
    of_published = [each for key, each in taken.items() if key[0] == PUBLISHED]
    until = {length: reckon_published(steps, config.text_length, length) for length in lengths(config.num_image_tokens)}
    decoding = rows * taken[PUBLISHED, None].seconds  # the whole batch for every row
    return {
        "seconds": until[config.num_image_tokens] + decoding,
        "decoding_seconds": decoding,
        "until": until,
        "peak_bytes": max(each.peak_bytes for each in of_published),
    }


def _way_figures(
    config: PaiPainterConfig, speed: PaintingSpeed, rows: int, steps: Sequence[Measured], rounds: Sequence[Round]
) -> dict[str, Any]:
    painted: list[Painted] = [each.result for each in steps]
    rates = [taken["hardware"].result for taken in rounds]
    a_step = [(each.written[-1] - each.written[0]) / each.steps for each in painted]
    read, flops = step_bytes(config, speed, rows), vqgan_flops(config) * rows
    dtype = str(decoding_dtype(speed))
    return {
        "seconds_a_picture": _spread(each.seconds / rows for each in steps),
        "first_code_seconds": _median(each.written[0] for each in painted),
        "step_seconds": _median(a_step),
        "tokens_per_step": _median((len(each.written) - 1) / each.steps for each in painted),
        "step_bytes": read,
        "read_share": _median(read / rate["read"] / seconds for rate, seconds in zip(rates, a_step, strict=True)),
        "seconds_until": {
            str(length): _median(each.written[length - 1] for each in painted)
            for length in lengths(config.num_image_tokens)
        },
        "decoding_seconds_a_picture": _median(each.decoding_seconds / rows for each in painted),
        "decoding_dtype": dtype.removeprefix("torch."),
        "product_share": _median(
            flops / rate[dtype] / each.decoding_seconds for rate, each in zip(rates, painted, strict=True)
        ),
        "png_seconds_a_picture": _median(each.png_seconds / rows for each in painted),
        "peak_gb": max(each.peak_bytes for each in steps) / GB,
    }


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
