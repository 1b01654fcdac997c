# SPDX-License-Identifier: Apache-2.0
"""The command that paints a file of captions."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .common import (
    ModelOption,
    RevisionOption,
    SpeedOption,
    VerboseOption,
    counted,
    one_sentence_errors,
    quieten,
    shown_name,
)
from .painting import load_pipeline

if TYPE_CHECKING:
    from ..batch.predict import Summary

__all__ = ["BOTH_SPELLINGS", "predict"]

_SOME_REJECTED = 3

# Options may be written as in Python, too: --batch_size.
BOTH_SPELLINGS: dict[str, Any] = {"context_settings": {"token_normalize_func": lambda word: word.replace("_", "-")}}


def predict(
    captions: Annotated[
        str, typer.Argument(help="A file of captions (.tsv, .csv, .jsonl, .parquet, .txt), or - for standard input.")
    ],
    output: Annotated[
        Path, typer.Option(help="What to make: a .tsv, .parquet or .tar (WebDataset) file, or a folder of pictures.")
    ],
    model: ModelOption = None,
    revision: RevisionOption = "main",
    num_images_per_prompt: Annotated[int, typer.Option(help="Pictures of each caption.")] = 1,
    seed: Annotated[int, typer.Option(help="With another one, all pictures are others.")] = 0,
    best_of: Annotated[
        int | None, typer.Option(help="Candidates for each picture; the most likely one is kept.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw each token from the k most likely ones.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw each token from the most likely ones that add up to this.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 0; below 1 is more careful, above 1 wilder.")] = None,
    batch_size: Annotated[str, typer.Option(help="Pictures painted at once, or auto: what memory allows.")] = "8",
    shard_size: Annotated[
        int | None, typer.Option(help="Rows kept or lost together when a run is stopped; by default 32 to 1024.")
    ] = None,
    input_format: Annotated[
        Literal["tsv", "csv", "jsonl", "parquet", "text"] | None,
        typer.Option(help="What the captions are; by default as their file's name says, from - text."),
    ] = None,
    input_schema: Annotated[
        str, typer.Option(help="Columns of a TSV of captions, which has no header.")
    ] = "idx:str:1,text:str:1",
    id_column: Annotated[str, typer.Option(help="The column of ids.")] = "idx",
    caption_column: Annotated[str, typer.Option(help="The column of captions.")] = "text",
    format: Annotated[
        Literal["tsv", "parquet", "png", "webp", "webdataset"] | None,
        typer.Option(help="What the output is; by default as its name says."),
    ] = None,
    output_schema: Annotated[
        str | None, typer.Option(help="Columns of a TSV of pictures: idx,text,gen_imgbase64, also seed and score.")
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(help="A list of rows that can't be used; by default OUTPUT.rejected_rows.jsonl."),
    ] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Also draw the first 64 pictures with their captions into this .png file.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="The number of this process, from 0, if no launcher tells it.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes share the work.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps …; by default the fastest there is.")
    ] = None,
    speed: SpeedOption = "exact",
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """
    Paint a file of captions, for ten rows or ten million.

    A run that was stopped goes on when the same command is given again. Several processes share the work under
    torchrun or accelerate launch. Exit status: 0 if all rows were painted, 3 if some can't be, 2 for wrong options,
    1 for trouble with the machine, 130 if it was stopped.

    Examples:

    pai-painter predict captions.tsv --output pictures.tsv

    pai-painter predict captions.csv --output pictures --num-images-per-prompt 4 --contact-sheet sheet.png
    """
    again = "captions from standard input can't be read again, so nothing was kept"
    stopped = again if captions == "-" else "the same command goes on after the last whole shard"
    with one_sentence_errors(verbose, f"Stopped; {stopped}."):
        from ..batch.processes import local_rank, this_process

        place, all_processes = this_process(rank, processes)
        quieten(verbose)
        from ..batch.predict import PredictOptions, find_captions, from_stream, predict_file

        options = PredictOptions(
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            best_of=best_of,
            speed=speed,
            batch_size=_batch_size(batch_size),
            shard_size=shard_size,
        )
        columns = {"input_schema": input_schema, "id_column": id_column, "caption_column": caption_column}
        with contextlib.ExitStack() as stack:
            if captions == "-":
                source = stack.enter_context(from_stream(sys.stdin.buffer, input_format, **columns))
            else:
                source = find_captions(captions, kind=input_format, **columns)
            pipe = load_pipeline(model, revision, device or _own_accelerator(local_rank()), verbose)
            done = predict_file(
                pipe,
                source,
                output,
                options,
                format=format,
                output_schema=output_schema,
                overwrite=force,
                rejects=rejects,
                contact_sheet=contact_sheet,
                model_name=shown_name(model, revision),
                rank=place,
                processes=all_processes,
            )
        _report(done, contact_sheet)
        if done.complete and done.rejected:
            raise typer.Exit(_SOME_REJECTED)


def _batch_size(given: str) -> int | Literal["auto"]:
    if given == "auto":
        return "auto"
    if not given.isascii() or not given.isdigit():
        raise ValueError(f"--batch-size must be a whole number or auto, got {given!r}.")
    return int(given)


def _own_accelerator(number: int) -> str | None:
    """Of several processes on a machine, each takes an accelerator of its own."""
    import torch

    if not number or not torch.accelerator.is_available():
        return None
    accelerator = torch.accelerator.current_accelerator()
    return None if accelerator is None else f"{accelerator.type}:{number}"


def _report(done: "Summary", contact_sheet: Path | None) -> None:
    if not done.complete:
        others = f"{counted(done.missing_shards, 'shard')} still with others, the last of which makes {done.output}"
        if not done.missing_shards:
            others = f"another one is making {done.output} of all shards"
        typer.echo(f"This process is done; {others}. If none is at work any more, the same command goes on.")
        return
    typer.echo(f"{done.output}: {counted(done.pictures, 'picture')} of {counted(done.rows, 'caption')}")
    if done.rejects_file is not None:
        typer.echo(f"{counted(done.rejected, 'row')} can't be painted: {done.rejects_file} says why.")
    if done.cut:
        typer.echo(f"{counted(done.cut, 'caption')} longer than the model reads: what was beyond was left out.")
    if done.unknown:
        typer.echo(f"{counted(done.unknown, 'caption')} with words that the model doesn't know.")
    if done.joined_lines:
        typer.echo(f"{counted(done.joined_lines, 'caption')}: line breaks and tabs became blanks.")
    if contact_sheet is not None:
        typer.echo(f"{contact_sheet}: the first pictures with their captions")
