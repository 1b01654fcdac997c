# SPDX-License-Identifier: Apache-2.0
"""What the commands share: `--verbose`, quiet libraries, errors of one sentence, and what they print."""

import contextlib
import errno
import functools
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, cast

import typer

from ..printable import printable
from ..signals import forget_empty_ranks
from .options import DEMO, Group

_MACHINE_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENFILE, errno.EMFILE, errno.ENOMEM)
_LONGEST_ERROR = 700
_TEXTS = ("prompts", "caption_separator", "message")  # options whose `~` is nobody's home
_EXTRAS = ("datasets", "peft", "pyarrow")  # libraries that only the extra `train` installs
_VERBOSE = inspect.Parameter(
    "verbose",
    inspect.Parameter.KEYWORD_ONLY,
    default=typer.Option(False, "--verbose", help="Show the libraries' messages and stack traces."),
    annotation=bool,
)


def command(
    stopped: str = "Stopped; the files listed above are complete.", group: Group | None = None
) -> Callable[[Any], Callable[..., None]]:
    """
    Makes a function a command: gives it the options of a `group` for its `**` parameter, `--verbose`, the home folder
    for `~`, a loaded package with quiet libraries, and [`one_sentence_errors`], which say `stopped` after Ctrl-C.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(verbose: bool, **values: Any) -> None:
            with one_sentence_errors(verbose, stopped):
                quieten(verbose)
                function(**home_in_paths(values))

        own = inspect.signature(function)
        parameters = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        parameters += [*(group or {}).values(), _VERBOSE]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # which typer reads
        return run

    return decorate


def load_package() -> None:
    """What `import pai_painter` does, and the command puts off until it has work: see `pai_painter_command`."""
    package = sys.modules["pai_painter"]
    if not hasattr(package, "__version__"):
        cast(ModuleSpec, package.__spec__).loader.exec_module(package)  # type: ignore[union-attr]


def home_in_paths(values: dict[str, Any]) -> dict[str, Any]:
    """
    Values of options with `~` for the home folder, also where the shell leaves it (`--output=~/pictures`), but for
    those that are text.
    """

    def at_home(value: Any) -> Any:
        if isinstance(value, list):
            return [at_home(each) for each in value]
        if isinstance(value, str | Path):
            return type(value)(os.path.expanduser(value))
        return value

    return {name: value if name in _TEXTS else at_home(value) for name, value in values.items()}


def shown_name(model: str, revision: str) -> str:
    """A model's name for others: a folder's own name says nothing about the machine that it is on."""
    if model == DEMO:
        return "the demo model of pai-painter"
    if Path(model).is_dir():
        return Path(model).resolve().name
    return model if revision == "main" else f"{model} ({revision})"


def echo(text: object, err: bool = False) -> None:
    """Prints a line; what a stranger's caption, file or server put into it is harmless to a terminal."""
    typer.echo(printable(text), err=err)


def show_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and facts as harmlessly as [`echo`]: what looks like rich's markup is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=Text(printable(title)))
    for name, fact in rows:
        table.add_row(name, Text(printable(fact)))
    Console().print(table)


def counted(number: int, thing: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"1 {thing}" if number == 1 else f"{number:,} {thing}s"


def quieten(verbose: bool) -> None:
    """
    Begins a command's work: loads the package, shows our own warnings in one line each, and the libraries' reports and
    loading bars only if asked for.
    """
    load_package()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("Note: %(message)s"))
    logging.getLogger("pai_painter").handlers = [handler]
    logging.getLogger("pai_painter").propagate = False
    if not verbose:
        from huggingface_hub import constants
        from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]  # not in its __all__
        from huggingface_hub.utils import logging as hub_logging
        from transformers.utils import logging as transformers_logging

        hub_logging.set_verbosity_error()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()  # the Hub client's, too, but downloads may take minutes
        if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
            enable_progress_bars()


@contextlib.contextmanager
def one_sentence_errors(verbose: bool, stopped: str = "Stopped.") -> Iterator[None]:
    """
    Turns every error into one sentence on stderr, and with `verbose` a stack trace. Exit codes: 2 for what the user can
    fix, 1 for the rest, 130 for Ctrl-C, after which `stopped` is said.
    """
    forget_empty_ranks()
    try:
        yield
    except KeyboardInterrupt:
        echo(stopped, err=True)
        raise typer.Exit(130) from None
    except (BrokenPipeError, typer.Exit, typer.Abort):  # `| head` has read enough; typer ends quietly
        raise
    except Exception as error:  # noqa: BLE001 - the last net: a person gets a sentence, and the trace if wanted
        if verbose:
            traceback.print_exc()
        text, code = _explained(error)
        echo(f"Error: {text}", err=True)
        raise typer.Exit(code) from None


def _explained(error: Exception) -> tuple[str, int]:
    """A sentence and an exit code."""
    code = 2 if isinstance(error, OSError | ValueError) else 1
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        text, code = f'This command needs {error.name}: please run `pip install "pai-painter[train]"`', 2
    elif isinstance(error, OSError) and error.strerror is not None:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        code = 1 if error.errno in _MACHINE_TROUBLE else 2
    elif code == 2:
        text = str(error)
    else:
        text = f"Unexpected error ({type(error).__name__}: {error}); --verbose shows where"
    text = " ".join(text.split())
    if len(text) > _LONGEST_ERROR:
        text = f"{text[:_LONGEST_ERROR]} … (--verbose shows the rest)"
    return text if text.endswith((".", "!", "?", ")")) else f"{text}.", code
