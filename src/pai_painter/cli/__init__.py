# SPDX-License-Identifier: Apache-2.0
"""`pai-painter`: reads the command line and calls the library, which is imported when a command needs it."""

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from ..signals import ended_by_signals
from . import convert, data, easynlp, evaluate, paint, predict, push_pull, training
from .common import echo

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Usage errors are one sentence, as all other errors are."""

    def main(self, args: Sequence[str] | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Runs a command and exits."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            status = super().main(words or ["--help"], **{**kwargs, "standalone_mode": False})
        except TyperException as error:
            echo(f"Error: {self._sentence(error, words)}", err=True)
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(130)
        sys.exit(status or (0 if words else 2))

    def _sentence(self, error: TyperException, words: list[str]) -> str:
        from pydantic import ValidationError  # with which typer checks values

        reason = " ".join(error.format_message().split()).rstrip(".").replace(": Value error, ", ": ")
        reason = reason.replace(". Did you mean ", "; did you mean ").rstrip("?")
        if isinstance(error.__cause__, ValidationError) and "is not one of" not in reason:
            reason += f", got {error.__cause__.errors()[0]['input']!r}"
        command = f"pai-painter {words[0]}" if words[0] in self.commands else "pai-painter"
        return f"{reason}; `{command} --help` shows what is allowed."


app = typer.Typer(
    cls=_Group,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),  # options may be written as in Python
    },
)
for panel, functions in (
    ("Painting", (paint.paint, predict.predict, paint.encode, paint.decode, paint.info)),
    ("Data", (data.inspect, data.prepare)),
    ("Hub", (push_pull.push, push_pull.pull)),
    ("Training", (evaluate.evaluate, training.merge)),
    ("Other programs", (convert.convert,)),
):
    for function in functions:
        app.command(rich_help_panel=panel)(function)
app.command(rich_help_panel="Training", **training.PASS_ALL_WORDS_ON)(training.train)
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
