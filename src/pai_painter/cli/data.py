# SPDX-License-Identifier: Apache-2.0
"""The commands that look at captions and pictures, and that prepare them for training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options
from .common import command, counted, echo, show_table

if TYPE_CHECKING:
    from ..data.inspection import Inspection, Spread

_SHOWN_REASONS = 5

ImageFolder = Annotated[Path | None, typer.Option(help="Base folder of the paths in a CSV or JSONL, if not its own.")]


@command("Stopped; rerun the command to resume after the last complete shard.", options.ROWS)
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A folder of pictures, a TSV, CSV, JSONL, Parquet or .tar file, or a pattern of files."),
    ],
    output: Annotated[Path, typer.Argument(help="A folder for the shards.")],
    format: Annotated[Literal["tsv", "parquet"], typer.Option(help="Format of the shards.")] = "tsv",
    shard_size: Annotated[int, typer.Option(help="Rows per shard.")] = 10_000,
    size: Annotated[int | None, typer.Option(help="Shrink the shorter side to at most this many pixels.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that check pictures.")] = 1,
    max_bad_rows: options.MaxBadRows = 100,
    image_folder: ImageFolder = None,
    force: Annotated[bool, typer.Option("--force", help="Start over; removes the manifest's shards.")] = False,
    **columns: Any,
) -> None:
    """
    Check captions and pictures, and write them as shards to train on.

    The folder is there when all of it is written. Rows that can't be used are listed in its rejected_rows.jsonl.

    Examples:

    pai-painter prepare pictures data

    pai-painter prepare captions.csv data --format parquet --size 256 --workers 4
    """
    from ..data.prepare import PrepareOptions, prepare_rows
    from ..data.sources import find_source

    found = find_source([source], image_folder=image_folder, **columns)
    shards = PrepareOptions(format, shard_size, size, columns["caption_separator"])
    with _progress() as progress:
        done = prepare_rows(
            found, output, shards, workers=workers, max_bad_rows=max_bad_rows, force=force, progress=progress
        )
    echo(f"{output}: {counted(done.rows, 'row')} in {counted(len(done.shards), 'shard')}")
    if done.rejected_file is not None:
        echo(f"{counted(done.rejected, 'row')} can't be used: {done.rejected_file} says why.")
    if done.joined_lines:
        echo(f"{counted(done.joined_lines, 'row')}: line breaks and tabs in the caption became spaces.")


@command("Stopped; nothing was written.", options.ROWS)
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="What `prepare` and `train` read.")],
    max_rows: Annotated[int | None, typer.Option(help="Look only at this many rows from the start.")] = None,
    text_length: Annotated[int | None, typer.Option(help="Word pieces that are read; by default by --model.")] = None,
    image_folder: ImageFolder = None,
    model: options.Model = options.DEMO,
    revision: options.Revision = "main",
    **columns: Any,
) -> None:
    """
    Show what captions and pictures are like, before you train on them.

    Example: pai-painter inspect 'data/*.tsv' --model alibaba-pai/pai-painter-base-zh
    """
    from ..data.inspection import inspect_rows
    from ..data.sources import find_source
    from ..model.processing_pai_painter import PaiPainterProcessor

    source = find_source(files, image_folder=image_folder, **columns)
    processor = PaiPainterProcessor.from_pretrained(model, revision=revision)
    with _progress() as progress:
        found = inspect_rows(source, processor, text_length=text_length, max_rows=max_rows, progress=progress)
    show_table(found.name, _facts(found))


def _facts(found: "Inspection") -> Iterator[tuple[str, str]]:
    yield "rows", f"{found.rows:,}" + ("" if found.complete else " (only the first rows were checked)")
    yield "bad rows", f"{found.bad_rows:,}"
    for kind, count in found.reasons.most_common(_SHOWN_REASONS):
        first = found.examples[kind]
        yield "", f"{count:,} × {first.reason} (first: {first.path}, line {first.line_number})"
    if len(found.reasons) > _SHOWN_REASONS:
        yield "", f"and {len(found.reasons) - _SHOWN_REASONS} other reasons"
    if found.rows:
        yield "repeated ids", f"{found.repeated_ids:,}"
        yield "captions", f"{found.caption_lengths.total():,}"
        yield "their word pieces", _spread(found.caption_lengths)
        yield f"truncated at {found.text_length}", f"{found.cut:,}"
        yield "with unknown words", f"{found.unknown:,}"
        yield "widths in pixels", _spread(found.widths)
        yield "heights in pixels", _spread(found.heights)
        yield f"a side below {found.resolution}", f"{found.small:,}"
        yield "formats", ", ".join(f"{name} {count:,}" for name, count in found.formats.most_common())


def _spread(spread: "Spread") -> str:
    smallest, median, most, largest = (spread.quantile(share) for share in (0, 0.5, 0.95, 1))
    return f"{smallest} to {largest}, median {median}, 95 % up to {most}"


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Rows and rows per second, on a terminal."""
    from tqdm import tqdm

    with tqdm(unit=" rows", disable=None, leave=False) as bar:
        yield lambda done: bar.update(done - bar.n) and None
