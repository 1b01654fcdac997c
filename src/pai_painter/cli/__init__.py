# SPDX-License-Identifier: Apache-2.0
"""`pai-painter`: reads the command line and calls the library, which is imported when a command needs it."""

import io
import sys
from typing import Annotated

import typer

from . import convert, data, easynlp, evaluation, hub, painting, predict, training

__all__ = ["app", "main"]

app = typer.Typer(
    help="Paints pictures from Chinese captions with PAI-Painter models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in (
    ("Painting", (painting.paint, painting.encode, painting.decode, painting.info)),
    ("Data", (data.inspect, data.prepare)),
    ("Hub", (hub.push, hub.pull)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.command(rich_help_panel="Painting", **predict.BOTH_SPELLINGS)(predict.predict)
app.command(rich_help_panel="Training", **training.PASS_ALL_WORDS_ON)(training.train)
app.command(rich_help_panel="Training", **predict.BOTH_SPELLINGS)(evaluation.evaluate)
app.command(rich_help_panel="Training")(training.merge)
app.command(rich_help_panel="Other programs")(convert.convert)
app.command(rich_help_panel="Other programs", **training.PASS_ALL_WORDS_ON)(easynlp.easynlp)


def main() -> None:
    """The command `pai-painter`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that can't show Chinese is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"pai-painter {version('pai-painter')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Paints pictures from Chinese captions with PAI-Painter models."""
