# SPDX-License-Identifier: Apache-2.0
"""From the words of a command line to a training run, and from its errors to one sentence."""

import difflib
import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from safetensors import SafetensorError

from ..signals import ended_by_signals, forget_empty_ranks
from .stopping import Stopped

__all__ = ["parse_arguments", "run_from_command_line"]

_FILES = (".yaml", ".yml", ".json")
_HEAD_START = 5.0  # seconds that the first process has to say what is wrong, and its launcher to end the others
_ABOUT = (
    "The settings may stand in a YAML or JSON file, given first; flags behind it win over the file's lines. "
    "For example: %(prog)s settings.yaml --learning_rate 2e-5"
)


def _load_parser_class() -> Any:
    """`HfArgumentParser` from its own file, which needs nothing else of transformers: all of it takes a second."""
    package = importlib.util.find_spec("transformers")
    (folder,) = package.submodule_search_locations  # type: ignore[union-attr, misc]  # a package, on which we depend
    spec = importlib.util.spec_from_file_location("hf_argparser", Path(folder) / "hf_argparser.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module.HfArgumentParser


if TYPE_CHECKING:
    from transformers import HfArgumentParser
else:
    HfArgumentParser = _load_parser_class()


class _Parser(HfArgumentParser):
    """Argparse's errors as exceptions, without the list of all flags in front."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[0].upper()}{message[1:].rstrip('.')}; --help lists all settings.")


class _OnlyFirst(logging.Filter):
    """Lets one message through: captions that are too long are met again in every epoch."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Adds to the first that it stands for the others."""
        first, self.said = not self.said, True
        record.msg = f"{record.msg} (Said once; it may be so for other captions.)"
        return first


def parse_arguments(
    types: tuple[type, ...], argv: list[str] | None = None, program: str | None = None
) -> tuple[Any, ...]:
    """
    Reads flags, or one YAML or JSON file that holds them (flags behind the file win).

    Args:
        types: the dataclasses to fill.
        argv: the words of the command line; `sys.argv[1:]` if not given.
        program: what the help calls the program; the script's name if not given.

    Raises:
        ValueError: if a setting is unknown, missing or not allowed, or if the file can't be read.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Abbreviations are off: `--learning 1` would otherwise quietly be the learning rate.
    parser = _Parser(types, prog=program, description=_ABOUT, allow_abbrev=False)
    known = {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions}
    if argv and argv[0].endswith(_FILES):
        several = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
        argv = _flags_of_file(os.path.expanduser(argv[0]), known, several) + argv[1:]
    for word in argv:  # before argparse complains that a required setting, perhaps this one misspelt, is missing
        if word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            _refuse_unknown(word, known, "on the command line")
    *arguments, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        if unknown[0].endswith(_FILES):
            raise ValueError(f"The settings file {unknown[0]} must be the first word, and the only file.")
        _refuse_unknown(unknown[0], known, "on the command line")
    return tuple(arguments)


def _flags_of_file(path: str, known: set[str], several: set[str]) -> list[str]:
    """A settings file as flags, so that files and flags are checked alike and can be mixed."""
    if not os.path.isfile(path):
        raise ValueError(f"There is no settings file {path}.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            root = yaml.compose(file, yaml.SafeLoader)  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML or JSON: {error}.") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path} must hold names and values, such as `output_dir: out`, one a line.")
    flags: dict[str, list[str]] = {}
    for key, value in root.value:
        if key.value not in known:
            _refuse_unknown(str(key.value), known, f"in {path}, line {key.start_mark.line + 1}")
        if key.value in flags:
            raise ValueError(f"{path} sets `{key.value}` twice, again in line {key.start_mark.line + 1}.")
        is_list = isinstance(value, yaml.SequenceNode)
        values = value.value if is_list and key.value in several else [value]
        if not all(isinstance(each, yaml.ScalarNode) for each in values):
            form = "one value or a list of values" if key.value in several else "one value"
            raise ValueError(f"`{key.value}` in {path}, line {key.start_mark.line + 1}, must be {form}.")
        if values and value.tag != "tag:yaml.org,2002:null":
            flags[key.value] = _flag(key.value, [each.value for each in values], is_list)
    return [word for words in flags.values() for word in words]


def _flag(name: str, values: list[str], is_list: bool) -> list[str]:
    """The texts as they are written: to YAML, 1.2e-3 is a string and `no` is a boolean."""
    if not is_list:
        return [f"--{name}={values[0]}"]
    if any(value.startswith("-") for value in values):
        raise ValueError(f"The values of `{name}` must not begin with a dash, got {', '.join(values)}.")
    return [f"--{name}", *values]


def _refuse_unknown(word: str, known: set[str], where: str) -> NoReturn:
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    similar = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean `{similar[0]}`?" if similar else "--help lists all settings."
    raise ValueError(f"There is no setting `{name}` ({where}); {hint}")


def run_from_command_line(
    types: tuple[type, ...], train: Callable[..., Any], argv: list[str] | None, program: str | None = None
) -> None:
    """
    Parses and trains.

    What is wrong with the input is said in one sentence on stderr, with exit status 2. A run that is stopped names its
    newest checkpoint, with exit status 130 (Ctrl-C) or 143 (SIGTERM).

    Args:
        types: the dataclasses to fill.
        train: is called with them.
        argv: the words of the command line; `sys.argv[1:]` if not given.
        program: what was called, for the help and in front of errors; the script's name if not given.
    """
    forget_empty_ranks()
    _set_up_logging()
    program = program or os.path.basename(sys.argv[0])
    output_dir = None
    try:
        arguments = parse_arguments(types, argv, program)
        output_dir = arguments[-1].output_dir
        # Up to the loop there is nothing to be saved: the first signal ends the run. The loop itself waits for two.
        with ended_by_signals(after=1), _sigterm_interrupts():
            train(*arguments)
    except (ValueError, OSError, ImportError, SafetensorError) as error:  # imports: of what only some settings need
        _leave(program, str(error), 2, perhaps_alone=output_dir is not None)
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which isn't imported for the help
            advice = "a smaller `per_device_train_batch_size` needs less"
            _leave(program, f"The device's memory is full, {advice} ({str(error).partition('. ')[0]}).", 2, True)
        if "by peer" not in str(error):  # gloo's words: connection closed, or reset, by peer
            raise
        _leave(program, "Another process of this run has ended, so this one can't go on.", 2, True)
    except KeyboardInterrupt as stop:
        from .checkpoints import find_checkpoint

        newest = None if output_dir is None else find_checkpoint(output_dir, "latest")
        advice = f"go on from {newest} with --resume_from_checkpoint latest." if newest else "there is no checkpoint."
        terminated = isinstance(stop, Stopped) and stop.number == signal.SIGTERM
        _leave(program, f"Stopped; {advice}", 143 if terminated else 130)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun and by accelerate launch


def _leave(program: str, sentence: str, status: int, perhaps_alone: bool = False) -> NoReturn:
    """
    Args:
        perhaps_alone: whether this process may be the only one that has something to say.
    """
    if not _is_first_process():
        if not perhaps_alone:
            sys.exit(status)
        # Most errors are met by all processes; the first one's end then is this one's, too, by the launcher's hand.
        time.sleep(_HEAD_START)
        program = f"{program}: process {os.environ['RANK']}"
    sys.stderr.write(f"{program}: {' '.join(sentence.split())}\n")
    sys.exit(status)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """While it lasts, SIGTERM stops the run at once, the way Ctrl-C does. In the loop, both wait for a checkpoint."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _set_up_logging() -> None:
    """Our own news of the first process and everybody's warnings; accelerate tells about every file it writes."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pai_painter").setLevel(logging.INFO if _is_first_process() else logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    logging.getLogger("pai_painter.model.processing_pai_painter").addFilter(_OnlyFirst())
