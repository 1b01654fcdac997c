# SPDX-License-Identifier: Apache-2.0
"""`pai-painter`: reads the command line and calls the library, which is imported when a command needs it."""

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from ..signals import ended_by_signals
from . import convert, data, easynlp, evaluate, paint, predict, push_pull, training
from .common import echo, home_in_paths

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Usage errors are one sentence, as all other errors are."""

    def main(  # type: ignore[override]  # typer's other arguments are among the keywords
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **kwargs: Any
    ) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        try:
            status = super().main(words or ["--help"], standalone_mode=False, **kwargs)
        except TyperException as error:
            if not standalone_mode:
                raise
            echo(f"Error: {self._sentence(error, words)}", err=True)
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(130)
        if not standalone_mode:
            return status
        sys.exit(status or (0 if words else 2))

    def _sentence(self, error: TyperException, words: list[str]) -> str:
        from pydantic import ValidationError  # with which typer checks values

        reason = " ".join(error.format_message().split()).rstrip(".").replace(": Value error, ", ": ")
        reason = reason.replace(". Did you mean ", "; did you mean ").rstrip("?")
        if isinstance(error.__cause__, ValidationError) and "is not one of" not in reason:
            reason += f", got {error.__cause__.errors()[0]['input']!r}"
        command = f"pai-painter {words[0]}" if words[0] in self.commands else "pai-painter"
        return f"{reason}; `{command} --help` shows what is allowed."


class _Command(TyperCommand):
    """`~` is the home folder, also where the shell leaves it: in `--output=~/pictures`."""

    def invoke(self, ctx: Any) -> Any:
        ctx.params = home_in_paths(ctx.params)
        return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    help="Paints pictures from Chinese captions with PAI-Painter models.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in (
    ("Painting", (paint.paint, paint.encode, paint.decode, paint.info)),
    ("Data", (data.inspect, data.prepare)),
    ("Hub", (push_pull.push, push_pull.pull)),
):
    for command in commands:
        app.command(cls=_Command, rich_help_panel=panel)(command)
app.command(cls=_Command, rich_help_panel="Painting", **predict.BOTH_SPELLINGS)(predict.predict)
app.command(rich_help_panel="Training", **training.PASS_ALL_WORDS_ON)(training.train)
app.command(cls=_Command, rich_help_panel="Training", **predict.BOTH_SPELLINGS)(evaluate.evaluate)
app.command(cls=_Command, rich_help_panel="Training")(training.merge)
app.command(cls=_Command, rich_help_panel="Other programs")(convert.convert)
app.command(rich_help_panel="Other programs", **training.PASS_ALL_WORDS_ON)(easynlp.easynlp)


def main() -> None:
    """The command `pai-painter`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that can't show Chinese is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    with ended_by_signals():
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
