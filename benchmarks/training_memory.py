# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one optimizer step by batch size: base and large, the whole transformer and LoRA."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import GB, StepProcess, available_memory, step_processes
from reporting import run_script, write_json
from rich.console import Console
from rich.table import Table
from steps import CONFIGS, StepSettings, build_painter, build_step

from pai_painter import PaiPainterConfig

_FLOAT32 = 4
_STEPS = 2  # the first builds AdamW's state, the second has it beside all activations


def main(
    sizes: Annotated[str, typer.Option(help=f"Some of {', '.join(CONFIGS)}, with commas.")] = "base,large",
    batch_sizes: Annotated[str, typer.Option(help="Rows of a step, with commas.")] = "1,4,8,16",
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    memory_limit: Annotated[
        float | None,
        typer.Option(help="GB; what may need more isn't tried. 80 % of what is free if unset."),
    ] = None,
    tiny: Annotated[
        bool, typer.Option(help="Try the script out: a tiny model, one batch size, results mean nothing.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Measures the peak memory of training on the CPU, in a fresh process for each figure.

    Beside it stands what weights, gradients and AdamW's state alone come to, which is the same on every device. A GPU
    keeps other temporaries and other kernels' workspaces, so its peaks differ from these.
    """
    if tiny:
        sizes, batch_sizes = "tiny", "2"
    wanted, batches = sizes.split(","), _numbers(batch_sizes)
    for size in wanted:
        if size not in CONFIGS:
            raise typer.BadParameter(f"there is no size {size!r}; it must be one of {', '.join(CONFIGS)}.")
    limit = 0.8 * available_memory() if memory_limit is None else memory_limit * GB
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    ways: dict[str, dict[str, Any]] = {
        "full, float32": {},
        "full, bf16": {"mixed_precision": "bf16"},
        "full, bf16, gradient checkpointing": {"mixed_precision": "bf16", "gradient_checkpointing": True},
        f"LoRA (rank {lora_rank}), bf16": {"mixed_precision": "bf16", "lora_rank": lora_rank},
    }
    if tiny:
        ways = {name: ways[name] for name in ("full, float32", f"LoRA (rank {lora_rank}), bf16")}
    table = Table(
        title="Peak memory of an optimizer step, GB above the libraries' own (CPU)",
        caption="Fixed: weights (with the frozen VQGAN), gradients and AdamW's state, computed. In brackets: not "
        "measured, but expected from the smaller batches. A GPU's peaks differ.",
    )
    for heading in ("size", "trained", "parameters", "fixed", *(f"{batch} rows" for batch in batches)):
        table.add_column(heading, justify="left" if heading in ("size", "trained") else "right")
    figures = []
    for size in wanted:
        for name, options in ways.items():
            row = _measure(size, options, batches, limit)
            figures.append({"size": size, "trained": name, **row})
            cells = [
                f"{each['peak_gb']:.1f}" if each["measured"] else f"({each['peak_gb']:.0f})" for each in row["peaks"]
            ]
            table.add_row(size, name, f"{row['trainable_parameters']:,}", f"{row['fixed_gb']:.2f}", *cells)
            Console(stderr=True).print(f"{size}, {name}: {', '.join(cells)} GB")
    Console().print(table)
    write_json(json_file, {"rows": figures})


def _numbers(words: str) -> list[int]:
    try:
        numbers = sorted({int(word) for word in words.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"`batch_sizes` must be whole numbers with commas, got {words!r}.") from error
    if numbers[0] < 1:
        raise typer.BadParameter(f"`batch_sizes` must be 1 or more, got {words!r}.")
    return numbers


def _measure(size: str, options: dict[str, Any], batches: Sequence[int], limit: float) -> dict[str, Any]:
    """Peaks of one way to train, by batch size, and what doesn't depend on it."""
    weights, trainable = _count_parameters(StepSettings(size, **options))
    fixed = (weights + 3 * trainable) * _FLOAT32  # a gradient and two moments for each weight that is trained
    per_row = activations_per_row(CONFIGS[size]())
    peaks: list[dict[str, Any]] = []
    for batch in batches:
        expected = fixed + per_row * batch
        measured = expected <= limit
        if measured:
            with step_processes(build_step, StepSettings(size, batch, **options)) as (process,):
                peak = _peak_of(process)
            per_row = max(0.0, (peak - fixed) / batch)
        peaks.append({"batch_size": batch, "peak_gb": (peak if measured else expected) / GB, "measured": measured})
    return {
        "parameters": weights,
        "trainable_parameters": trainable,
        "fixed_gb": fixed / GB,
        "peaks": peaks,
    }


def _peak_of(process: StepProcess) -> int:
    return max(process.step().peak_bytes for _ in range(_STEPS))


def _count_parameters(settings: StepSettings) -> tuple[int, int]:
    """All parameters, and those that are trained."""
    with torch.device("meta"):  # shapes without memory
        painter = build_painter(settings)
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in painter.parameters()]
    return sum(count for count, _ in parameters), sum(count for count, trained in parameters if trained)


def activations_per_row(config: PaiPainterConfig) -> float:
    """
    Bytes that a row's activations are expected to take in float32, with some to spare.

    Per position and layer about 16 vectors (two norms, query, key, value, attention, residuals, and eight of the MLP,
    which is four times as wide) and, at the head, four times the logits (and log-softmax and gradients).
    """
    layers = 16 * config.num_hidden_layers * config.max_position_embeddings * config.hidden_size
    head = 4 * (config.num_image_tokens + 1) * config.image_vocab_size
    return 1.2 * _FLOAT32 * (layers + head)


if __name__ == "__main__":
    run_script(main)
