# SPDX-License-Identifier: Apache-2.0
"""The command that paints a file of captions."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import options
from .common import command, counted, echo, shown_name
from .paint import load_pipeline

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..batch.prediction import Summary

_SOME_REJECTED = 3


@command("Stopped; rerun the command to resume after the last complete shard.", options.SAMPLING | options.CAPTIONS)
def predict(
    captions: Annotated[
        str, typer.Argument(help="A .tsv, .csv, .jsonl, .parquet or .txt file, or - for standard input.")
    ],
    output: Annotated[Path, typer.Option(help="A .tsv or .parquet file, or a folder of PNG files.")],
    model: options.Model = options.DEMO,
    revision: options.Revision = "main",
    num_images_per_prompt: Annotated[int, typer.Option(help="Pictures per caption.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the run; each row's is derived from it and the row's id.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pictures painted at once.")] = 8,
    shard_size: Annotated[
        int | None, typer.Option(help="Rows lost at most when stopped; by default 32 to 1024.")
    ] = None,
    input_format: Annotated[
        Literal["tsv", "csv", "jsonl", "parquet", "text"] | None,
        typer.Option(help="Format of the captions; by default from the name, and text for -."),
    ] = None,
    format: Annotated[
        Literal["tsv", "parquet", "png"] | None, typer.Option(help="Format of the output; by default from its name.")
    ] = None,
    output_schema: Annotated[
        str | None, typer.Option(help="Columns of a TSV of pictures: idx,text,gen_imgbase64, also seed and score.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Which share of the work this command does, from 0.")] = 0,
    processes: Annotated[int, typer.Option(help="Number of shares; run one command for each.")] = 1,
    device: options.Device = None,
    speed: options.Speed = "exact",
    force: Annotated[bool, typer.Option("--force", help="Start over, and remove what an earlier run wrote.")] = False,
    **group: Any,
) -> None:
    """
    Paint every caption in a file.

    Rerun the command to resume. Several processes share the work under torchrun or accelerate launch.

    Exit status: 0 if all rows were painted, 3 if some can't be, 2 for invalid options, 1 for machine errors, 130 if
    stopped.

    Example: pai-painter predict captions.csv --output pictures --num-images-per-prompt 4
    """
    from ..batch.prediction import PredictOptions, find_captions, from_stream, predict_file

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sampling = {name: group[name] for name in options.SAMPLING}
    painting = PredictOptions(num_images_per_prompt, seed, speed=speed, batch_size=batch_size, **sampling)
    launch = _launch(device)
    if launch is not None:
        device = device or str(launch.device)
        rank, processes = rank * launch.num_processes + launch.process_index, processes * launch.num_processes
    columns = {name: group[name] for name in options.CAPTIONS}
    if captions != "-":
        source = find_captions(captions, kind=input_format, **columns)
    elif processes == 1:
        source = from_stream(sys.stdin.buffer, input_format, **columns)
    else:
        raise ValueError("Several processes can't share standard input: please give a file of captions.")
    done = predict_file(
        load_pipeline(model, revision, device),
        source,
        output,
        painting,
        format=format,
        output_schema=output_schema,
        overwrite=force,
        shard_size=shard_size,
        model_name=shown_name(model, revision),
        rank=rank,
        processes=processes,
    )
    if launch is not None:
        launch.destroy_process_group()
    _report(done)
    if done.rejected and not done.missing_shards:
        raise typer.Exit(_SOME_REJECTED)


def _launch(device: str | None) -> "PartialState | None":
    """What accelerate knows of the processes that torchrun or `accelerate launch` has started, if several."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    import torch
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())


def _report(done: "Summary") -> None:
    if done.missing_shards:
        missing = counted(done.missing_shards, "shard")
        echo(f"This process is done; others still have {missing} to paint, and the last one writes {done.output}.")
        return
    echo(f"{done.output}: {counted(done.pictures, 'picture')} of {counted(done.rows, 'caption')}")
    if done.rejects_file is not None:
        echo(f"{counted(done.rejected, 'row')} can't be painted: {done.rejects_file} says why.")
    if done.cut:
        echo(f"{counted(done.cut, 'caption')} longer than the model reads: truncated.")
    if done.unknown:
        echo(f"{counted(done.unknown, 'caption')} with words that the model doesn't know.")
