# SPDX-License-Identifier: Apache-2.0
"""The commands that train a painter and merge adapters."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .common import command, echo, load_package, one_sentence_errors

# `train` has a parser of its own, that of train.py, which also answers --help.
PASS_ALL_WORDS_ON: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}


def train(context: typer.Context) -> None:
    """
    Fine-tune a painter on your pictures; takes the options of train.py (--help lists them).

    Example: pai-painter train --model_name_or_path MODEL --train_file train.tsv --output_dir out
    """
    from ..training.arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
    from ..training.command_line import run_from_command_line

    types = (PainterModelArguments, DataArguments, PainterTrainingArguments)
    run_from_command_line(types, _train, context.args, "pai-painter train")


def _train(*arguments: Any) -> None:
    load_package()
    try:
        from ..training.train_painter import train_painter
    except ModuleNotFoundError as error:
        with one_sentence_errors(verbose=False):
            raise error
    train_painter(*arguments)


@command()
def merge(
    adapter: Annotated[str, typer.Argument(help="A LoRA adapter's folder or its name on the Hub.")],
    output: Annotated[Path, typer.Argument(help="A new folder for the whole model.")],
    base: Annotated[str | None, typer.Option(help="The base model; by default the one that the adapter names.")] = None,
    revision: options.Revision = "main",
) -> None:
    """
    Merge a LoRA adapter into its base model: a whole model that loads without peft.

    Example: pai-painter merge out merged --base alibaba-pai/pai-painter-base-zh
    """
    from ..lora import merge_lora

    echo(f"Saved the merged model in {merge_lora(adapter, output, base, revision)}")
