# SPDX-License-Identifier: Apache-2.0
"""From the words of a command line to a training run, and from its errors to one sentence."""

import difflib
import itertools
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any, NoReturn

import yaml
from safetensors import SafetensorError

from ..printable import printable
from ..signals import Stopped, StopSignals, forget_empty_ranks
from .output_folder import all_checkpoints

_HEAD_START = 5.0  # seconds that the first process has to say what is wrong, and its launcher to end the others
_ABOUT = (
    "The settings may be in a YAML or JSON file, given first; flags after it override its lines. For example: "
    "%(prog)s settings.yaml --learning_rate 2e-5"
)


class _Texts(yaml.BaseLoader):
    """Values as they are written, for the parser to check like flags (to YAML, 2e-5 is a text and `no` is false)."""


_Texts.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|)$"), ["~", "n", ""])
_Texts.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def parse_arguments(
    types: tuple[type, ...], argv: list[str] | None = None, program: str | None = None
) -> tuple[Any, ...]:
    """
    Fills the dataclasses `types` from flags (`sys.argv[1:]` by default), or from a YAML or JSON file of them and flags
    behind it. Raises `ValueError` if a setting is unknown, missing or wrong, or if the file can't be read.
    """
    # Abbreviations are off: `--learning 1` would otherwise quietly be the learning rate.
    parser = _load_parser_class()(types, prog=program, description=_ABOUT, allow_abbrev=False)
    parser.error = _refuse
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv[:1] = _flags_of_file(os.path.expanduser(argv[0]))
    known = [option.lstrip("-").replace("-", "_") for option in parser._option_string_actions]
    for word in argv:  # before argparse complains that a required setting, perhaps this one misspelt, is missing
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        if word.startswith("--") and name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean `{similar[0]}`?" if similar else "--help lists all settings."
            raise ValueError(f"Unknown setting `{name}`; {hint}")
    *arguments, unknown = parser.parse_args_into_dataclasses(argv, True, look_for_args_file=False)
    if unknown:
        raise ValueError(f"{unknown[0]!r} belongs to no setting; a settings file must be the first word.")
    return tuple(arguments)


def _load_parser_class() -> Any:
    """`HfArgumentParser` from its own file, which needs nothing else of transformers: all of it takes seconds."""
    folder = find_spec("transformers").submodule_search_locations[0]  # type: ignore[union-attr, index]
    return run_path(f"{folder}/hf_argparser.py")["HfArgumentParser"]


def _refuse(message: str) -> NoReturn:
    """Argparse's errors as exceptions, without the list of all flags in front."""
    raise ValueError(f"{message[0].upper()}{message[1:].rstrip('.')}; --help lists all settings.")


def _flags_of_file(path: str) -> list[str]:
    """A settings file as flags, so that files and flags are checked alike and can be mixed."""
    if not os.path.isfile(path):
        raise ValueError(f"There is no settings file {path}.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            settings = yaml.load(file, _Texts)  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML or JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings such as `output_dir: out`, one per line.")
    flags: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values if value is not None):
            raise ValueError(f"`{name}` in {path} must be one value or a list of values.")
        if isinstance(value, str):
            flags.append(f"--{name}={value}")
        elif value:
            flags += [f"--{name}", *value]
    return flags


def run_from_command_line(
    types: tuple[type, ...], train: Callable[..., Any], argv: list[str] | None, program: str | None = None
) -> None:
    """
    Calls `train` with what [`parse_arguments`] makes of the rest. What is wrong with the input is said in one sentence
    on stderr, with exit status 2. A stopped run names its newest checkpoint, with 130 or 143 (SIGTERM).
    """
    program, output_dir = program or os.path.basename(sys.argv[0]), None
    try:
        forget_empty_ranks()
        _set_up_logging()
        arguments = parse_arguments(types, argv, program)
        output_dir = arguments[-1].output_dir
        # Up to the loop there is nothing to be saved: the first signal ends the run. The loop itself waits for two.
        with StopSignals(after=1):
            train(*arguments)
    except (ValueError, OSError, ImportError, SafetensorError) as error:  # imports: of what only some settings need
        sentence = str(error)
        if "in DataLoader worker" in sentence:  # torch has put the worker's stack in front of its error
            sentence = sentence.rstrip().rpartition("\n")[2].partition(": ")[2]
        _leave(program, sentence, 2, perhaps_alone=output_dir is not None)
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which isn't imported for the help
            sentence = "The device is out of memory; a smaller `per_device_train_batch_size` needs less."
        elif "by peer" in str(error):  # gloo's words: connection closed, or reset, by peer
            sentence = "Another process of this run has ended, so this one can't continue."
        else:
            raise
        _leave(program, sentence, 2, perhaps_alone=True)
    except KeyboardInterrupt as stop:
        found = [] if output_dir is None else all_checkpoints(Path(output_dir))
        advice = f"resume from {found[-1]} with --resume_from_checkpoint latest" if found else "there is no checkpoint"
        terminated = isinstance(stop, Stopped) and stop.number == signal.SIGTERM
        _leave(program, f"Stopped; {advice}.", 143 if terminated else 130)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun and by accelerate launch


def _leave(program: str, sentence: str, status: int, perhaps_alone: bool = False) -> NoReturn:
    """Ends this process; `perhaps_alone` if it may be the only one that has something to say."""
    if not _is_first_process():
        if not perhaps_alone:
            sys.exit(status)
        # All processes meet most errors, and the first one's end makes the launcher end this one.
        time.sleep(_HEAD_START)
        program = f"{program}: process {os.environ['RANK']}"
    sys.stderr.write(f"{program}: {printable(' '.join(sentence.split()))}\n")
    sys.exit(status)


def _set_up_logging() -> None:
    """Our own news of the first process and everybody's warnings; accelerate tells about every file it writes."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pai_painter").setLevel(logging.INFO if _is_first_process() else logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    # Captions that are too long are met again in every epoch: one warning is enough.
    said = itertools.count()
    logging.getLogger("pai_painter.model.processing_pai_painter").addFilter(lambda record: next(said) == 0)
