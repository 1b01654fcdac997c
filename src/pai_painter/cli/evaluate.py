# SPDX-License-Identifier: Apache-2.0
"""The command that measures a painter."""

import json
from typing import Annotated

import typer

from .common import ModelOption, RevisionOption, VerboseOption, model_or_demo, one_sentence_errors, quieten, shown_name

__all__ = ["evaluate"]


def evaluate(
    file: Annotated[
        list[str],
        typer.Option(help="Pictures with captions: files or globs of one kind, or a folder; may be repeated."),
    ],
    model: ModelOption = None,
    revision: RevisionOption = "main",
    batch_size: Annotated[int, typer.Option(help="Rows computed at once.")] = 16,
    input_schema: Annotated[
        str, typer.Option(help="Columns of a TSV, which has no header.")
    ] = "idx:str:1,text:str:1,imgbase64:str:1",
    caption_column: Annotated[str, typer.Option(help="The column of captions.")] = "text",
    image_column: Annotated[
        str | None, typer.Option(help="The column of pictures; by default imgbase64 in a TSV, else image.")
    ] = None,
    caption_separator: Annotated[
        str | None, typer.Option(help="Splits a cell with several captions; the first is used.")
    ] = None,
    max_bad_rows: Annotated[int, typer.Option(help="Stop if more rows than this can't be used.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Evaluate a painter: loss and perplexity of the pictures' image tokens, given their captions.

    Example: pai-painter evaluate --model MODEL --file valid.tsv
    """
    with one_sentence_errors(verbose, "Stopped; image tokens cached so far are kept."):
        quieten(verbose)
        from accelerate import Accelerator

        from ..evaluation.likelihood import evaluate_painter
        from ..training.arguments import DataArguments

        data = DataArguments(
            train_file=file,
            input_schema=input_schema,
            caption_column=caption_column,
            image_column=image_column,
            caption_separator=caption_separator,
            max_bad_rows=max_bad_rows,
        )
        accelerator = Accelerator()
        found = evaluate_painter(model_or_demo(model), data, batch_size, revision, accelerator)
        if not accelerator.is_main_process:
            return
        facts = {"model": shown_name(model, revision), **vars(found)}
        if as_json:
            typer.echo(json.dumps(facts, ensure_ascii=False))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False, title=Text(str(facts["model"])))
        table.add_row("Rows", f"{found.rows:,}")
        table.add_row("Loss", f"{found.loss:.4f} nats per token")
        table.add_row("Perplexity", f"{found.perplexity:,.1f} of {found.chance:,} image tokens")
        Console().print(table)
