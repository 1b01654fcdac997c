# SPDX-License-Identifier: Apache-2.0
"""The commands that look at captions and pictures, and that prepare them for training."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..printable import printable
from .common import (
    ModelOption,
    RevisionOption,
    VerboseOption,
    counted,
    echo,
    model_or_demo,
    one_sentence_errors,
    quieten,
)

__all__ = ["inspect", "prepare"]

SchemaOption = Annotated[str, typer.Option(help="Columns of a TSV, which has no header.")]
IdOption = Annotated[str, typer.Option(help="The column of ids.")]
CaptionOption = Annotated[str, typer.Option(help="The column of captions.")]
ImageOption = Annotated[
    str | None, typer.Option(help="The column of pictures; by default the usual one for the file format.")
]
SeparatorOption = Annotated[str | None, typer.Option(help="Separates several captions of one picture.")]
FolderOption = Annotated[
    Path | None, typer.Option(help="Base folder of the paths in a CSV or JSONL; by default the file's folder.")
]
_DEFAULT_SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"


def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A folder of pictures, a TSV, CSV, JSONL, Parquet or .tar file, or a pattern of files."),
    ],
    output: Annotated[Path, typer.Argument(help="A folder for the shards.")],
    format: Annotated[Literal["tsv", "parquet"], typer.Option(help="Format of the shards.")] = "tsv",
    shard_size: Annotated[int, typer.Option(help="Rows per shard.")] = 10_000,
    size: Annotated[
        int | None, typer.Option(help="Shrink pictures so that their shorter side has at most this many pixels.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that check pictures.")] = 1,
    max_bad_rows: Annotated[int, typer.Option(help="Stop if more rows than this can't be used.")] = 100,
    input_schema: SchemaOption = _DEFAULT_SCHEMA,
    id_column: IdOption = "idx",
    caption_column: CaptionOption = "text",
    image_column: ImageOption = None,
    caption_separator: SeparatorOption = None,
    image_folder: FolderOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder that `prepare` has written, if it holds nothing else.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Check captions and pictures, and write them as shards to train on.

    The folder is there when all of it is written. Rows that can't be used are listed in its rejected_rows.jsonl.

    Examples:

    pai-painter prepare pictures data

    pai-painter prepare captions.csv data --format parquet --size 256 --workers 4
    """
    with one_sentence_errors(verbose, "Stopped; nothing was written."):
        quieten(verbose)
        from ..data.prepare import prepare_rows
        from ..data.sources import find_source

        found = find_source(
            [source],
            input_schema=input_schema,
            id_column=id_column,
            caption_column=caption_column,
            image_column=image_column,
            caption_separator=caption_separator,
            image_folder=image_folder,
        )
        done = prepare_rows(
            found,
            output,
            format=format,
            shard_size=shard_size,
            size=size,
            caption_separator=caption_separator,
            workers=workers,
            max_bad_rows=max_bad_rows,
            force=force,
        )
        echo(f"{output}: {counted(done['rows'], 'row')} in {counted(-(-done['rows'] // shard_size), 'shard')}")
        if done["rejected"]:
            echo(f"{counted(done['rejected'], 'row')} can't be used: {output / 'rejected_rows.jsonl'} says why.")
        if done["joined_lines"]:
            echo(f"{counted(done['joined_lines'], 'row')}: line breaks and tabs in the caption became spaces.")


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="What `prepare` and `train` read.")],
    max_rows: Annotated[int | None, typer.Option(help="Look only at this many rows from the start.")] = None,
    text_length: Annotated[
        int | None, typer.Option(help="Word pieces that the model reads; by default those of --model (published: 32).")
    ] = None,
    input_schema: SchemaOption = _DEFAULT_SCHEMA,
    id_column: IdOption = "idx",
    caption_column: CaptionOption = "text",
    image_column: ImageOption = None,
    caption_separator: SeparatorOption = None,
    image_folder: FolderOption = None,
    model: ModelOption = None,
    revision: RevisionOption = "main",
    verbose: VerboseOption = False,
) -> None:
    """
    Show what captions and pictures are like, before you train on them.

    Examples:

    pai-painter inspect train.tsv

    pai-painter inspect 'data/*.tsv' --model alibaba-pai/pai-painter-base-zh
    """
    with one_sentence_errors(verbose, "Stopped; nothing was written."):
        quieten(verbose)
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from ..data.inspection import inspect_rows
        from ..data.sources import find_source
        from ..model.processing_pai_painter import PaiPainterProcessor

        source = find_source(
            files,
            input_schema=input_schema,
            id_column=id_column,
            caption_column=caption_column,
            image_column=image_column,
            caption_separator=caption_separator,
            image_folder=image_folder,
        )
        processor = PaiPainterProcessor.from_pretrained(model_or_demo(model), revision=revision)
        table = Table(show_header=False, title=Text(printable(source.name)))
        for name, fact in inspect_rows(source, processor, text_length=text_length, max_rows=max_rows):
            table.add_row(name, Text(printable(fact)))  # Text: what looks like markup in a file's name is none
        Console().print(table)
