# SPDX-License-Identifier: Apache-2.0
"""The commands that look at captions and pictures, and that prepare them for training."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import options
from .common import command, counted, echo, show_table

ImageFolder = Annotated[Path | None, typer.Option(help="Base folder of the paths in a CSV or JSONL, if not its own.")]


@command("Stopped; nothing was written.", options.ROWS)
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A folder of pictures, a TSV, CSV, JSONL, Parquet or .tar file, or a pattern of files."),
    ],
    output: Annotated[Path, typer.Argument(help="A folder for the shards.")],
    format: Annotated[Literal["tsv", "parquet"], typer.Option(help="Format of the shards.")] = "tsv",
    shard_size: Annotated[int, typer.Option(help="Rows per shard.")] = 10_000,
    size: Annotated[int | None, typer.Option(help="Shrink the shorter side to at most this many pixels.")] = None,
    workers: Annotated[int, typer.Option(help="Number of processes that check pictures.")] = 1,
    max_bad_rows: options.MaxBadRows = 100,
    image_folder: ImageFolder = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder that `prepare` has written, if it holds nothing else.")
    ] = False,
    **columns: Any,
) -> None:
    """
    Check captions and pictures, and write them as shards to train on.

    The folder is there when all of it is written. Rows that can't be used are listed in its rejected_rows.jsonl.

    Examples:

    pai-painter prepare pictures data

    pai-painter prepare captions.csv data --format parquet --size 256 --workers 4
    """
    from ..data.prepare import prepare_rows
    from ..data.sources import find_source

    done = prepare_rows(
        find_source([source], image_folder=image_folder, **columns),
        output,
        format=format,
        shard_size=shard_size,
        size=size,
        caption_separator=columns["caption_separator"],
        workers=workers,
        max_bad_rows=max_bad_rows,
        force=force,
    )
    echo(f"{output}: {counted(done['rows'], 'row')} in {counted(-(-done['rows'] // shard_size), 'shard')}")
    if done["rejected"]:
        echo(f"{counted(done['rejected'], 'row')} can't be used: {output / 'rejected_rows.jsonl'} says why.")
    if done["joined_lines"]:
        echo(f"{counted(done['joined_lines'], 'row')}: line breaks and tabs in the caption became spaces.")


@command("Stopped; nothing was written.", options.ROWS)
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Files or a folder that `train` can read.")],
    max_rows: Annotated[int | None, typer.Option(help="Read only the first N rows.")] = None,
    text_length: Annotated[int | None, typer.Option(help="Word pieces that are read; by default by --model.")] = None,
    image_folder: ImageFolder = None,
    model: options.Model = options.DEMO,
    revision: options.Revision = "main",
    **columns: Any,
) -> None:
    """
    Show statistics of captions and pictures before training on them.

    Example: pai-painter inspect 'data/*.tsv' --model alibaba-pai/pai-painter-base-zh
    """
    from ..data.inspection import inspect_rows
    from ..data.sources import find_source
    from ..model.processing_pai_painter import PaiPainterProcessor

    source = find_source(files, image_folder=image_folder, **columns)
    processor = PaiPainterProcessor.from_pretrained(model, revision=revision)
    show_table(source.name, inspect_rows(source, processor, text_length=text_length, max_rows=max_rows))
