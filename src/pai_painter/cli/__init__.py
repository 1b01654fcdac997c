# SPDX-License-Identifier: Apache-2.0
"""`pai-painter`: reads the command line and calls the library, which is imported when a command needs it."""

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from ..signals import forget_empty_ranks, second_signal_ends
from . import convert, data, easynlp, evaluation, hub, painting, predict, training
from .common import home_in_paths

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Usage errors are one sentence, as all other errors are."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        standalone = kwargs.pop("standalone_mode", True)
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except TyperException as error:
            if not standalone:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(error.format_message(), err=True)  # the help itself
                sys.exit(2)
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "pai-painter"
            reason = " ".join(error.format_message().split()).rstrip(".")
            typer.echo(f"Error: {reason}; `{command} --help` shows what is allowed.", err=True)
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(130)
        if not standalone:
            return status
        sys.exit(status or 0)


class _Command(TyperCommand):
    """`~` is the home folder, also where the shell leaves it: in `--output=~/pictures`."""

    def invoke(self, ctx: Any) -> Any:
        ctx.params = home_in_paths(ctx.params)
        return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
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
        app.command(cls=_Command, rich_help_panel=panel)(command)
app.command(cls=_Command, rich_help_panel="Painting", **predict.BOTH_SPELLINGS)(predict.predict)
app.command(rich_help_panel="Training", **training.PASS_ALL_WORDS_ON)(training.train)
app.command(cls=_Command, rich_help_panel="Training", **predict.BOTH_SPELLINGS)(evaluation.evaluate)
app.command(cls=_Command, rich_help_panel="Training")(training.merge)
app.command(cls=_Command, rich_help_panel="Other programs")(convert.convert)
app.command(rich_help_panel="Other programs", **training.PASS_ALL_WORDS_ON)(easynlp.easynlp)


def main() -> None:
    """The command `pai-painter`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that can't show Chinese is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    forget_empty_ranks()
    with second_signal_ends():
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
