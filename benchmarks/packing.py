# SPDX-License-Identifier: Apache-2.0
"""What oneDNN's private operators gain at `exact`: image tokens drawn with packed weights against plain ones."""

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from reporting import run_script, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table
from steps import CONFIGS, StepSettings, build_painter

from pai_painter.cpu import decoding
from pai_painter.cpu.linear_layers import LinearLayer, packed_linear, plain_linear
from pai_painter.cpu.speed import PaintingSpeed
from pai_painter.model.sampling_pai_painter import GumbelSampler

_TOKENS = 32


def main(
    size: Annotated[str, typer.Option(help=f"With random weights: one of {', '.join(CONFIGS)}.")] = "base",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Pictures at once; may be repeated (4, 8).")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each way takes its turn in each.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here, too.")] = None,
) -> None:
    """Times the drawing of 32 image tokens per picture, preparing the weights included, in turns within each round."""
    if size not in CONFIGS:
        raise typer.BadParameter(f"there is no size {size!r}; it must be one of {', '.join(CONFIGS)}.")
    torch.manual_seed(0)
    model = build_painter(StepSettings(size)).eval()
    config = model.config
    ids = torch.randint(config.image_vocab_size, config.vocab_size, (1, config.text_length))

    def seconds(rows: int, packed: bool) -> float:
        def prepare(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> LinearLayer:
            return packed_linear(weight, bias, rows) if packed else plain_linear(weight, bias)

        decoding.packed_linear = prepare
        last = config.text_length + min(_TOKENS, config.num_image_tokens)
        start = time.perf_counter()
        loop = decoding.DecodingLoop(model, rows, PaintingSpeed())
        sampler = GumbelSampler(list(range(rows)), config.text_length, top_k=100)
        loop.write(ids, rows, sampler, [lambda ids: ids.shape[1] == last])
        return time.perf_counter() - start

    table, results = Table("pictures", "plain", "packed", "plain / packed", title=f"Seconds, {size} size"), []
    for rows in batch or [4, 8]:
        seconds(rows, True), seconds(rows, False)  # warm
        taken = [(seconds(rows, False), seconds(rows, True)) for _ in track(range(rounds), transient=True)]
        ratio = statistics.median(plain / packed for plain, packed in taken)
        plain, packed = (statistics.median(times) for times in zip(*taken, strict=True))
        table.add_row(str(rows), f"{plain:.2f}", f"{packed:.2f}", f"{ratio:.2f}")
        results.append({"pictures": rows, "seconds": taken, "ratio": ratio})
    Console().print(table)
    write_json(json_file, {"size": size, "results": results})


if __name__ == "__main__":
    run_script(main)
