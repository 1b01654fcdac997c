# SPDX-License-Identifier: Apache-2.0
"""The commands that look at captions and pictures, and that get them ready for training."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .common import (
    ForceOption,
    ModelOption,
    RevisionOption,
    VerboseOption,
    counted,
    model_or_demo,
    one_sentence_errors,
    quieten,
)

if TYPE_CHECKING:
    from ..data.inspection import Inspection, Spread

__all__ = ["inspect", "prepare"]

_SHOWN_REASONS = 5

SchemaOption = Annotated[str, typer.Option(help="Columns of a TSV, which has no header.")]
IdOption = Annotated[str, typer.Option(help="The column of ids.")]
CaptionOption = Annotated[str, typer.Option(help="The column of captions.")]
ImageOption = Annotated[
    str | None, typer.Option(help="The column of pictures; by default the usual one of the kind of file.")
]
SeparatorOption = Annotated[str | None, typer.Option(help="What stands between several captions of one picture.")]
FolderOption = Annotated[
    Path | None, typer.Option(help="Where the paths in a CSV or JSONL start; by default its own folder.")
]
_DEFAULT_SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"


def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A folder of pictures, a TSV, CSV, JSONL, Parquet or .tar file, or a pattern of files."),
    ],
    output: Annotated[Path, typer.Argument(help="A folder for the shards.")],
    format: Annotated[Literal["tsv", "parquet"], typer.Option(help="What the shards are.")] = "tsv",
    shard_size: Annotated[int, typer.Option(help="Rows of a shard.")] = 10_000,
    size: Annotated[
        int | None, typer.Option(help="Shrink pictures so that their shorter side has at most so many pixels.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that check pictures.")] = 1,
    max_bad_rows: Annotated[int, typer.Option(help="Stop at more rows than this that can't be used.")] = 100,
    input_schema: SchemaOption = _DEFAULT_SCHEMA,
    id_column: IdOption = "idx",
    caption_column: CaptionOption = "text",
    image_column: ImageOption = None,
    caption_separator: SeparatorOption = None,
    image_folder: FolderOption = None,
    force: Annotated[bool, typer.Option("--force", help="Begin again, whatever shards the folder holds.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Check captions and pictures, and write them as shards to train on.

    A run that was stopped goes on when the same command is given again. Rows that can't be used are listed in
    rejected_rows.jsonl.

    Examples:

    pai-painter prepare pictures data

    pai-painter prepare captions.csv data --format parquet --size 256 --workers 4
    """
    with one_sentence_errors(verbose, "Stopped; the same command goes on from the last whole shard."):
        quieten(verbose)
        from ..data.prepare import PrepareOptions, prepare_rows
        from ..data.sources import find_source

        options = PrepareOptions(format, shard_size, size, caption_separator)
        found = find_source(
            [source],
            input_schema=input_schema,
            id_column=id_column,
            caption_column=caption_column,
            image_column=image_column,
            caption_separator=caption_separator,
            image_folder=image_folder,
        )
        with _progress() as progress:
            done = prepare_rows(
                found, output, options, workers=workers, max_bad_rows=max_bad_rows, force=force, progress=progress
            )
        typer.echo(
            f"{output}: {counted(done.rows, 'row')} in {counted(len(done.shards), 'shard')}, {done.bytes:,} bytes"
        )
        if done.rejected_file is not None:
            typer.echo(f"{counted(done.rejected, 'row')} can't be used: {done.rejected_file} says why.")
        if done.joined_lines:
            typer.echo(f"{counted(done.joined_lines, 'row')}: line breaks and tabs in the caption became blanks.")
        if done.repeated_ids:
            typer.echo(f"{counted(done.repeated_ids, 'row')} with the id of an earlier row; they were kept.")


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="What `prepare` and `train` read.")],
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Draw some of the pictures with their captions into this .png file.")
    ] = None,
    num_pictures: Annotated[int, typer.Option(min=1, help="Pictures on the contact sheet.")] = 64,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 0,
    max_rows: Annotated[int | None, typer.Option(help="Look at the first so many rows only.")] = None,
    text_length: Annotated[
        int | None, typer.Option(help="Word pieces that the model reads, if not as --model says (published: 32).")
    ] = None,
    input_schema: SchemaOption = _DEFAULT_SCHEMA,
    id_column: IdOption = "idx",
    caption_column: CaptionOption = "text",
    image_column: ImageOption = None,
    caption_separator: SeparatorOption = None,
    image_folder: FolderOption = None,
    model: ModelOption = None,
    revision: RevisionOption = "main",
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Show what captions and pictures are like before training on them.

    Examples:

    pai-painter inspect train.tsv

    pai-painter inspect 'data/*.tsv' --contact-sheet sheet.png --model alibaba-pai/pai-painter-base-zh
    """
    with one_sentence_errors(verbose, "Stopped; nothing was written."):
        quieten(verbose)
        from ..data.inspection import inspect_rows
        from ..data.sources import find_source
        from ..imaging.png_files import save_png
        from ..model.processing_pai_painter import PaiPainterProcessor

        _check_sheet(contact_sheet, force)
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
        with _progress() as progress:
            found = inspect_rows(
                source,
                processor,
                text_length=text_length,
                max_rows=max_rows,
                num_pictures=0 if contact_sheet is None else num_pictures,
                seed=seed,
                progress=lambda done: progress("Looking", done, max_rows),
            )
        _show(found)
        if contact_sheet is not None:
            save_png(found.draw_contact_sheet(), contact_sheet, {}, force)
            typer.echo(f"{contact_sheet}: {counted(len(found.sample), 'picture')} with captions")


def _check_sheet(path: Path | None, force: bool) -> None:
    from ..imaging.png_files import check_new_files

    if path is not None:
        if path.suffix.lower() != ".png":
            raise ValueError(f"The contact sheet is saved as PNG: please let {path} end in .png.")
        check_new_files([path], force)


def _show(found: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=Text(found.name))

    def add(name: str, fact: str) -> None:
        table.add_row(name, Text(fact))  # Text: what looks like markup in a file's name is none

    add("rows", f"{found.rows:,}" + ("" if found.complete else " (of the beginning; the rest was not looked at)"))
    add("bad rows", f"{found.bad_rows:,}")
    for reason in found.reasons[:_SHOWN_REASONS]:
        add(
            "",
            f"{reason.count:,} × {reason.first.reason} (first: {reason.first.path}, line {reason.first.line_number})",
        )
    if len(found.reasons) > _SHOWN_REASONS:
        add("", f"and {len(found.reasons) - _SHOWN_REASONS} other reasons")
    if found.rows:
        add("repeated ids", f"{found.repeated_ids:,}")
        add("captions", f"{found.caption_lengths.total:,}")
        add("their word pieces", _spread(found.caption_lengths))
        add(f"cut at {found.text_length}", f"{found.cut:,}")
        add("with unknown words", f"{found.unknown:,}")
        add("widths in pixels", _spread(found.widths))
        add("heights in pixels", _spread(found.heights))
        add(f"a side below {found.resolution}", f"{found.small:,}")
        add("formats", ", ".join(f"{name} {count:,}" for name, count in found.formats.most_common()))
    Console().print(table)


def _spread(spread: "Spread") -> str:
    smallest, median, most, largest = (spread.quantile(share) for share in (0, 0.5, 0.95, 1))
    return f"{smallest} to {largest}, median {median}, 95 % up to {most}"


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for whoever watches: rows, rows a second, the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RowsPerSecond(ProgressColumn):
        """How fast it goes."""

        def render(self, task: Task) -> Text:
            """Until two rows are done, nothing is known."""
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} rows/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RowsPerSecond(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks = {}

        def show(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.update(tasks[step], completed=done, total=total)

        yield show
