# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have: types for their signatures, and groups that [`~common.command`] adds to them."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

DEMO = str(Path(__file__).parents[1] / "demo_model")  # as in the package, which isn't loaded yet
_MODEL: dict[str, Any] = {"help": "A model's folder or its name on the Hub.", "show_default": "the demo model"}
Model = Annotated[str, typer.Option("--model", **_MODEL)]
ModelArgument = Annotated[str, typer.Argument(metavar="[MODEL]", **_MODEL)]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit on the Hub.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps …; by default the fastest available.")]
Speed = Annotated[
    Literal["exact", "balanced", "fastest"],
    typer.Option(help="On the CPU: faster with bfloat16 (balanced) or int8 (fastest), which may change the pictures."),
]
MaxBadRows = Annotated[int, typer.Option(help="Stop if more rows than this can't be used.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]

Group = dict[str, inspect.Parameter]


def _group(**options: tuple[Any, Any, str]) -> Group:
    """Options by name, from their types, defaults and help."""
    return {
        name: inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=typer.Option(default, help=text), annotation=type
        )
        for name, (type, default, text) in options.items()
    }


SAMPLING = _group(
    best_of=(int | None, None, "Candidates per picture; the most likely one is kept."),
    top_k=(int | None, None, "Sample each token from the k most likely."),
    top_p=(float | None, None, "Sample from the most likely tokens whose probabilities add up to this."),
    temperature=(float | None, None, "Above 0; below 1 is more conservative, above 1 more random."),
)
_SCHEMA = "Columns of a TSV, which has no header."
CAPTIONS = _group(
    input_schema=(str, "idx:str:1,text:str:1", _SCHEMA),
    id_column=(str, "idx", "The column of ids."),
    caption_column=(str, "text", "The column of captions."),
)
ROWS = CAPTIONS | _group(
    input_schema=(str, "idx:str:1,text:str:1,imgbase64:str:1", _SCHEMA),
    image_column=(str | None, None, "The column of pictures; by default the usual one for the file format."),
    caption_separator=(str | None, None, "Separates several captions of one picture."),
)
