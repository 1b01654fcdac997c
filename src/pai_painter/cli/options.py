# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have; their defaults are the commands' own."""

from pathlib import Path
from typing import Annotated, Literal

import typer

PICTURE_SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"

Model = Annotated[
    str | None, typer.Option("--model", help="A model's folder or its name on the Hub; by default the demo model.")
]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit on the Hub.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps …; by default the fastest available.")]
Speed = Annotated[
    Literal["exact", "balanced", "fastest"],
    typer.Option(
        help="CPU only: exact, or faster with bfloat16 (balanced) or int8 (fastest), which may change the pictures."
    ),
]
BestOf = Annotated[int | None, typer.Option(help="Candidates per picture; the most likely one is kept.")]
TopK = Annotated[int | None, typer.Option(help="Sample each token from the k most likely.")]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the most likely tokens whose probabilities add up to this.")
]
Temperature = Annotated[float | None, typer.Option(help="Above 0; below 1 is more conservative, above 1 more random.")]
InputSchema = Annotated[str, typer.Option(help="Columns of a TSV, which has no header.")]
IdColumn = Annotated[str, typer.Option(help="The column of ids.")]
CaptionColumn = Annotated[str, typer.Option(help="The column of captions.")]
ImageColumn = Annotated[
    str | None, typer.Option(help="The column of pictures; by default the usual one for the file format.")
]
CaptionSeparator = Annotated[str | None, typer.Option(help="Separates several captions of one picture.")]
ImageFolder = Annotated[
    Path | None, typer.Option(help="Base folder of the paths in a CSV or JSONL; by default the file's folder.")
]
MaxBadRows = Annotated[int, typer.Option(help="Stop if more rows than this can't be used.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show messages of the libraries and stack traces.")]
