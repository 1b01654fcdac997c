# SPDX-License-Identifier: Apache-2.0
"""The command that measures a painter."""

import json
from typing import Annotated, Any

import typer

from . import options
from .common import command, show_table, shown_name


@command("Stopped; image tokens cached so far are kept.", options.ROWS)
def evaluate(
    file: Annotated[
        list[str], typer.Option(help="Pictures with captions: files or globs of one kind, or a folder; repeatable.")
    ],
    model: options.Model = options.DEMO,
    revision: options.Revision = "main",
    batch_size: Annotated[int, typer.Option(help="Rows per batch.")] = 16,
    max_bad_rows: options.MaxBadRows = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    **columns: Any,
) -> None:
    """
    Evaluate a painter: loss and perplexity of the pictures' image tokens, given their captions.

    Of several captions of a picture, the first is used.

    Example: pai-painter evaluate --model MODEL --file valid.tsv
    """
    from accelerate import Accelerator

    from ..evaluation.likelihood import evaluate_painter
    from ..training.arguments import DataArguments

    data = DataArguments(train_file=file, max_bad_rows=max_bad_rows, **columns)
    accelerator = Accelerator()
    found = evaluate_painter(model, data, batch_size, revision, accelerator)
    if not accelerator.is_main_process:
        return
    name = shown_name(model, revision)
    if as_json:
        typer.echo(json.dumps({"model": name, **vars(found)}, ensure_ascii=False))
        return
    facts = {
        "Rows": f"{found.rows:,}",
        "Loss": f"{found.loss:.4f} nats per token",
        "Perplexity": f"{found.perplexity:,.1f} of {found.chance:,} image tokens",
    }
    show_table(name, facts.items())
