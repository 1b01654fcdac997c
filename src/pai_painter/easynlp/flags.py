# SPDX-License-Identifier: Apache-2.0
"""The words of EasyNLP's command line: which there are, and what was given of them."""

import argparse
import difflib
import shlex
from dataclasses import dataclass
from typing import Any, NoReturn

from .names import TASK
from .sizes import SIZES

__all__ = ["Given", "parse_flags"]

MODES = ("train", "evaluate", "predict")
_TRAINING = ("train",)
_PICTURES_IN = ("train", "evaluate")
_PREDICTING = ("predict",)


@dataclass(frozen=True)
class _Flag:
    """
    Args:
        help: its native name, or what it does.
        type: of its value; `bool` for those that stand alone.
        modes: in which it says something.
        aliases: its other names.
    """

    help: str
    type: type = str
    modes: tuple[str, ...] = MODES
    aliases: tuple[str, ...] = ()


_FLAGS = {
    "mode": _Flag("train, evaluate or predict"),
    "app_name": _Flag(f"only {TASK}"),
    "tables": _Flag("training file,validation file; or the file to evaluate or to paint"),
    "input_schema": _Flag("--input_schema"),
    "first_sequence": _Flag("--caption_column"),
    "second_sequence": _Flag("--image_column", modes=_PICTURES_IN),
    "checkpoint_dir": _Flag("train: --output_dir; else: --model", aliases=("checkpoint_path",)),
    "outputs": _Flag("--output", modes=_PREDICTING),
    "output_schema": _Flag("--output_schema", modes=_PREDICTING),
    "append_cols": _Flag("further columns of --output_schema", modes=_PREDICTING),
    "micro_batch_size": _Flag("--per_device_train_batch_size, --batch_size", int, aliases=("train_batch_size",)),
    "sequence_length": _Flag("must be the model's", int),
    "learning_rate": _Flag("--learning_rate (5e-5)", float, _TRAINING),
    "epoch_num": _Flag("--num_train_epochs (3)", float, _TRAINING),
    "random_seed": _Flag("--seed", int, ("train", "predict")),
    "logging_steps": _Flag("--logging_steps (100)", int, _TRAINING),
    "save_checkpoint_steps": _Flag("--save_steps and --eval_steps (once an epoch)", int, _TRAINING),
    "save_all_checkpoints": _Flag("--save_total_limit", bool, _TRAINING),
    "weight_decay": _Flag("--weight_decay (1e-4)", float, _TRAINING, ("wd",)),
    "max_grad_norm": _Flag("--max_grad_norm (1)", float, _TRAINING, ("mn",)),
    "optimizer_type": _Flag("only AdamW", modes=_TRAINING, aliases=("optimizer",)),
    "warmup_proportion": _Flag("--warmup_steps (0.1 of all steps)", float, _TRAINING),
    "gradient_accumulation_steps": _Flag("--gradient_accumulation_steps (1)", int, _TRAINING),
    "resume_from_checkpoint": _Flag("--resume_from_checkpoint", modes=_TRAINING),
    "use_amp": _Flag("--mixed_precision fp16", bool, _TRAINING),
    "data_threads": _Flag("--dataloader_num_workers", int, _TRAINING),
    "worker_gpu": _Flag("accelerators; without one, the CPU does the work", int),
    "worker_count": _Flag("only 1", int),
    "user_defined_parameters": _Flag("name=value, separated by blanks or line breaks"),
}

# These arrange EasyNLP's own queues, ports and exports, and never changed a picture or a weight.
_WITHOUT_EFFECT = (
    *("export_tf_checkpoint_type", "predict_queue_size", "predict_slice_size", "predict_thread_num"),
    *("predict_table_read_thread_num", "restore_works_dir", "master_port"),
)

_BY_THE_LAUNCHER = "processes are started natively by `accelerate launch` or `torchrun`, which set this themselves"
_NO_LABELS = "pictures have no labels; please leave it out"
_OWN_SCRIPT = "your own script natively calls pai_painter as a library (`from pai_painter import PaiPainterPipeline`)"
_REFUSED_FLAGS = {
    "skip_first_line": "please remove the header first: `tail -n +2 FILE > WITHOUT_HEADER.tsv`",
    "buckets": "please download the files first and name them by their paths",
    "odps_config": "please download the tables first and name them by their paths",
    "modelzoo_base_dir": "please give the model's whole path as pretrain_model_name_or_path",
    "user_script": _OWN_SCRIPT,
    "user_entry_file": _OWN_SCRIPT,
    "label_name": _NO_LABELS,
    "label_enumerate_values": _NO_LABELS,
    "do_lower_case": "the model's own tokenizer decides about upper and lower case; please leave it out",
    "worker_cpu": "please set the environment's OMP_NUM_THREADS to the number of CPU cores",
    "use_torchacc": "please use `pai-painter train --torch_compile true`",
    **dict.fromkeys(("distributed_backend", "local_rank", "ps_hosts", "chief_hosts", "job_name"), _BY_THE_LAUNCHER),
    **dict.fromkeys(("task_index", "task_count", "is_chief", "worker_hosts"), _BY_THE_LAUNCHER),
}

_PARAMETERS = {
    "pretrain_model_name_or_path": _TRAINING,
    "random_crop": _TRAINING,
    "max_generated_num": _PREDICTING,
    **dict.fromkeys(SIZES, MODES),
}
_NEW_PAINTER = (
    "a new painter is made natively by `pai-painter convert VQGAN_CHECKPOINT VQGAN` and then `pai-painter train "
    "--config_name CONFIG --vqgan VQGAN --tokenizer_name FOLDER_WITH_VOCAB`, where CONFIG is a config.json with "
    "text_vocab_size, num_hidden_layers (n_layer), num_attention_heads (n_head) and hidden_size (n_embd)"
)
_KNOWLEDGE = "painters with an entity table are other models; please take a PAI-Painter and leave it out"
_REFUSED_PARAMETERS = {
    "vqgan_ckpt_path": _NEW_PAINTER,
    "entity_num": _KNOWLEDGE,
    "entity_emb_path": _KNOWLEDGE,
}


@dataclass(frozen=True)
class Given:
    """
    What stands in a command.

    Args:
        mode: `"train"`, `"evaluate"` or `"predict"`.
        flags: by their names, without those that weren't given.
        parameters: those of `user_defined_parameters`, as they are written.
    """

    mode: str
    flags: dict[str, Any]
    parameters: dict[str, str]

    @property
    def idle(self) -> list[str]:
        """The flags and parameters that say nothing in this mode."""
        flags = [f"--{name}" for name in self.flags if name in _WITHOUT_EFFECT or self.mode not in _FLAGS[name].modes]
        return flags + [name for name in self.parameters if self.mode not in _PARAMETERS[name]]


class _Parser(argparse.ArgumentParser):
    """Argparse's errors as exceptions."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[0].upper()}{message[1:].rstrip('.')}; --help lists all flags.")


def parse_flags(argv: list[str], program: str) -> Given:
    """
    Args:
        argv: the words of the command line.
        program: what the help calls the program.

    Raises:
        ValueError: if a flag or parameter is unknown, has no value or a wrong one, or can't be honoured.
    """
    parser = _parser(program)
    known = {"help", *_WITHOUT_EFFECT, *(word for name, flag in _FLAGS.items() for word in (name, *flag.aliases))}
    for word in argv:
        if word.startswith("--"):
            _check_name(word.partition("=")[0], known, _REFUSED_FLAGS, "flag")
    found, others = parser.parse_known_args(argv)
    if others:
        raise ValueError(
            f"{others[0]!r} belongs to no flag: please look at the quotes of --user_defined_parameters and, where a "
            f"line ends in a backslash, for blanks behind it."
        )
    flags = {name: value for name, value in vars(found).items() if value is not None}
    parameters = _parse_parameters(flags.pop("user_defined_parameters", ""))
    mode = flags.pop("mode", "train")
    if mode not in MODES:
        raise ValueError(f"--mode must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}.")
    if flags.pop("app_name", TASK) != TASK:
        raise ValueError(f"--app_name must be {TASK}: pai-painter paints pictures from captions, and nothing else.")
    return Given(mode, flags, parameters)


def _parser(program: str) -> _Parser:
    about = "Takes EasyNLP's commands for text2image_generation, shows what they are natively, and runs that."
    parser = _Parser(program, description=about, allow_abbrev=False)
    for name, flag in _FLAGS.items():
        words = [f"--{word}" for word in (name, *flag.aliases)]
        if flag.type is bool:
            parser.add_argument(*words, dest=name, action="store_true", default=None, help=flag.help)
        else:
            parser.add_argument(*words, dest=name, type=flag.type, metavar=flag.type.__name__.upper(), help=flag.help)
    for name in _WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", metavar="ANY", help="has no effect")
    return parser


def _parse_parameters(text: str) -> dict[str, str]:
    """`a=1 b=2` over any number of lines, perhaps in quotes; the last of equals counts, as in EasyNLP."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""  # backslashes are Windows' paths
    try:
        words = list(lexer)
    except ValueError as error:
        raise ValueError("A quote in --user_defined_parameters is not closed.") from error
    parameters: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise ValueError(
                f"--user_defined_parameters is a list of name=value, got {word!r}; a value with blanks needs quotes of "
                f"its own."
            )
        _check_name(name, set(_PARAMETERS), _REFUSED_PARAMETERS, "parameter")
        parameters[name] = value
    return parameters


def _check_name(word: str, known: set[str], refused: dict[str, str], what: str) -> None:
    name = word.lstrip("-")
    if name in known:
        return
    if name in refused:
        raise ValueError(f"`{word}` is not taken over: {refused[name]}.")
    similar = difflib.get_close_matches(name, [*known, *refused], 1)
    dashes = word[: len(word) - len(name)]
    hint = f"did you mean `{dashes}{similar[0]}`?" if similar else "`pai-painter easynlp --help` lists all flags."
    raise ValueError(f"EasyNLP has no {what} `{word}` for pictures; {hint}")
