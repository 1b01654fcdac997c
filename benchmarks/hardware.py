# SPDX-License-Identifier: Apache-2.0
"""What the machine could do at best, and what painting asks of it."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration
from pai_painter.cpu.speed import PaintingSpeed, has_bfloat16

__all__ = ["build_hardware", "count_transformer_parameters", "decoding_dtype", "step_bytes", "vqgan_flops"]

_REPETITIONS = 3
_READ_BYTES, _SIDE = 512 * 2**20, 4096
_TINY_READ_BYTES, _TINY_SIDE = 4 * 2**20, 256


def build_hardware(tiny: bool) -> Callable[[], dict[str, float]]:
    """
    What measures the machine each time it is called: the best of a few tries, since the question is what it can do.

    Returns by name bytes per second (`read`: a sum over memory that no cache holds) and floating-point operations per
    second of a product of square matrices (`torch.float32`, and `torch.bfloat16` where the processor multiplies it).
    """
    numbers = torch.ones((_TINY_READ_BYTES if tiny else _READ_BYTES) // 4)
    side = _TINY_SIDE if tiny else _SIDE
    dtypes = [torch.float32, torch.bfloat16] if has_bfloat16() else [torch.float32]
    squares = {str(dtype): torch.randn(side, side).to(dtype) for dtype in dtypes}

    def measure() -> dict[str, float]:
        rates = {"read": numbers.nbytes / _shortest(numbers.sum)}
        for name, square in squares.items():
            rates[name] = 2 * side**3 / _shortest(partial(torch.matmul, square, square))
        return rates

    return measure


def _shortest(work: Callable[[], object]) -> float:
    durations = []
    for _ in range(_REPETITIONS + 1):  # the first is for warming up, but may count
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


def _without_memory(config: PaiPainterConfig) -> PaiPainterForImageGeneration:
    with torch.device("meta"):
        return PaiPainterForImageGeneration(config)


def count_transformer_parameters(config: PaiPainterConfig) -> int:
    """Parameters of the painter without its VQGAN."""
    painter = _without_memory(config)
    return sum(each.numel() for part in (painter.model, painter.lm_head) for each in part.parameters())


def step_bytes(config: PaiPainterConfig, speed: PaintingSpeed, rows: int) -> int:
    """
    What a step must read from memory: all weights of the blocks and of the head once, in the precision in which they
    are kept, and each picture's keys and values so far, on the mean of the steps. Guesses are checked in the same step.

    Args:
        config ([`PaiPainterConfig`]): The model.
        speed ([`PaintingSpeed`]): What is rounded, as `find_speed` gives it for this machine.
        rows: pictures at once.
    """
    painter = _without_memory(config)
    weights = [
        each for part in (painter.model.layers, painter.model.norm, painter.lm_head) for each in part.parameters()
    ]
    matrices = sum(each.numel() for each in weights if each.ndim == 2)
    vectors = sum(each.numel() for each in weights if each.ndim == 1)
    int8 = rows * (1 + speed.num_draft_tokens if rows == 1 else 1) <= speed.int8_rows
    other_size = torch.float32.itemsize if int8 or speed.dtype is None else speed.dtype.itemsize
    if int8:  # a scale for each output of a product
        vectors += sum(len(each) for each in weights if each.ndim == 2)
    # The first token comes with the caption, so that steps see one position more than the caption's up to all.
    seen = (config.text_length + 1 + config.max_position_embeddings - 1) / 2
    kept = 2 * config.num_hidden_layers * config.hidden_size * rows * seen
    return int(matrices * (1 if int8 else other_size) + (vectors + kept) * other_size)


def decoding_dtype(speed: PaintingSpeed) -> torch.dtype:
    """The VQGAN's precision."""
    return torch.float32 if speed.dtype is None else speed.dtype


def vqgan_flops(config: PaiPainterConfig) -> int:
    """Floating-point operations of decoding one picture, an addition and a multiplication counting as two."""
    tokens = torch.zeros(1, config.num_image_tokens, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _without_memory(config).vqgan.decode(tokens)
    return counter.get_total_flops()
