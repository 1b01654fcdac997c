# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's command line: its flags and `user_defined_parameters`, parsed and checked."""

import argparse
import difflib
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from .names import SIZES, TASK

__all__ = ["Given", "parse_flags"]

_ALL = ("train", "evaluate", "predict")
_TRAIN, _WITH_PICTURES, _PREDICT = ("train",), ("train", "evaluate"), ("predict",)


class _Flag(NamedTuple):
    help: str  # the native name, or what it does
    type: type = str  # `bool` for flags without a value
    modes: tuple[str, ...] = _ALL  # in which it has an effect
    aliases: tuple[str, ...] = ()


# EasyNLP's own queues, ports and exports, which never changed a picture or a weight.
_WITHOUT_EFFECT = (
    "export_tf_checkpoint_type master_port predict_queue_size predict_slice_size predict_table_read_thread_num "
    "predict_thread_num restore_works_dir"
)
_FLAGS = {
    "mode": _Flag("train, evaluate or predict"),
    "app_name": _Flag(f"only {TASK}"),
    "tables": _Flag("training file,validation file; or the file to evaluate or to paint"),
    "input_schema": _Flag("--input_schema"),
    "first_sequence": _Flag("--caption_column"),
    "second_sequence": _Flag("--image_column", modes=_WITH_PICTURES),
    "checkpoint_dir": _Flag("train: --output_dir; else: --model", aliases=("checkpoint_path",)),
    "outputs": _Flag("--output", modes=_PREDICT),
    "output_schema": _Flag("--output_schema", modes=_PREDICT),
    "append_cols": _Flag("further columns of --output_schema", modes=_PREDICT),
    "micro_batch_size": _Flag("--per_device_train_batch_size, --batch_size", int, aliases=("train_batch_size",)),
    "sequence_length": _Flag("must be the model's", int),
    "learning_rate": _Flag("--learning_rate (5e-5)", float, _TRAIN),
    "epoch_num": _Flag("--num_train_epochs (3)", float, _TRAIN),
    "random_seed": _Flag("--seed", int, ("train", "predict")),
    "logging_steps": _Flag("--logging_steps (100)", int, _TRAIN),
    "save_checkpoint_steps": _Flag("--save_steps and --eval_steps (once per epoch)", int, _TRAIN),
    "save_all_checkpoints": _Flag("--save_total_limit", bool, _TRAIN),
    "weight_decay": _Flag("--weight_decay (1e-4)", float, _TRAIN, ("wd",)),
    "max_grad_norm": _Flag("--max_grad_norm (1)", float, _TRAIN, ("mn",)),
    "optimizer_type": _Flag("only AdamW", str, _TRAIN, ("optimizer",)),
    "warmup_proportion": _Flag("--warmup_steps (0.1 of all steps)", float, _TRAIN),
    "gradient_accumulation_steps": _Flag("--gradient_accumulation_steps (1)", int, _TRAIN),
    "resume_from_checkpoint": _Flag("--resume_from_checkpoint", modes=_TRAIN),
    "use_amp": _Flag("--mixed_precision fp16", bool, _TRAIN),
    "data_threads": _Flag("--dataloader_num_workers", int, _TRAIN),
    "worker_gpu": _Flag("number of GPUs; without one, the CPU does the work", int),
    "worker_count": _Flag("only 1", int),
    "user_defined_parameters": _Flag("name=value, separated by blanks or line breaks"),
    **dict.fromkeys(_WITHOUT_EFFECT.split(), _Flag("has no effect", modes=())),
}
_LAUNCHER = "processes are started by `accelerate launch` or `torchrun`, which set this themselves"
_OWN_SCRIPT = "your own script can import the library (`from pai_painter import PaiPainterPipeline`)"
_REFUSED  # EasyNLP's own queues, ports and exports, which never changed a picture or a weight.
_WITHOUT_EFFECT = (
    "export_tf_checkpoint_type master_port predict_queue_size predict_slice_size predict_table_read_thread_num "
    "predict_thread_num restore_works_dir"
)
_FLAGS = {
    "skip_first_line": "please remove the header first: `tail -n +2 FILE > WITHOUT_HEADER.tsv`",
    "modelzoo_base_dir": "please give the model's whole path as pretrain_model_name_or_path",
    "do_lower_case": "the model's own tokenizer decides about upper and lower case; please leave it out",
    "worker_cpu": "please set the environment's OMP_NUM_THREADS to the number of CPU cores",
    "use_torchacc": "please use `pai-painter train --torch_compile true`",
    **dict.fromkeys(("buckets", "odps_config"), "please download the files first and give their paths"),
    **dict.fromkeys(("user_script", "user_entry_file"), _OWN_SCRIPT),
    **dict.fromkeys(("label_name", "label_enumerate_values"), "pictures have no labels; please leave it out"),
    **dict.fromkeys(("distributed_backend", "local_rank", "ps_hosts", "chief_hosts", "job_name"), _LAUNCHER),
    **dict.fromkeys(("task_index", "task_count", "is_chief", "worker_hosts"), _LAUNCHER),
}
_PARAMETERS = {
    "pretrain_model_name_or_path": _TRAIN,
    "random_crop": _TRAIN,
    "max_generated_num": _PREDICT,
    **dict.fromkeys(SIZES, _ALL),
}
_REFUSED_PARAMETERS = {
    "vqgan_ckpt_path": "a new painter is made by `pai-painter convert VQGAN_CHECKPOINT VQGAN` and then `pai-painter "
    "train --config_name CONFIG --vqgan VQGAN --tokenizer_name FOLDER_WITH_VOCAB`, where CONFIG is a config.json with "
    "text_vocab_size, num_hidden_layers (n_layer), num_attention_heads (n_head) and hidden_size (n_embd)",
    **dict.fromkeys(("entity_num", "entity_emb_path"), "painters with an entity table are other models"),
}


@dataclass(frozen=True)
class Given:
    """The flags of a command that were given, by their names, and its parameters as strings."""

    mode: str
    flags: dict[str, Any]
    parameters: dict[str, str]

    def takes(self, flag: str) -> bool:
        """Whether a flag has an effect in this mode."""
        return self.mode in _FLAGS[flag].modes

    @property
    def idle(self) -> list[str]:
        """The flags and parameters that have no effect in this mode."""
        flags = [f"--{name}" for name in self.flags if not self.takes(name)]
        return flags + [name for name in self.parameters if self.mode not in _PARAMETERS[name]]


class _Parser(argparse.ArgumentParser):
    """Argparse's errors as exceptions."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[0].upper()}{message[1:].rstrip('.')}; --help lists all flags.")


def parse_flags(argv: list[str], program: str) -> Given:
    """
    Parses the words behind `easynlp`; `program` is what the help calls the command.

    Raises:
        ValueError: if a flag or parameter is unknown, has no value or a wrong one, or can't be honoured.
    """
    about = "Takes EasyNLP's commands for text2image_generation, shows what they are natively, and runs that."
    parser = _Parser(program, description=about, allow_abbrev=False)
    for name, flag in _FLAGS.items():
        words = [f"--{word}" for word in (name, *flag.aliases)]
        if flag.type is bool:
            parser.add_argument(*words, dest=name, action="store_true", default=None, help=flag.help)
        else:
            parser.add_argument(*words, dest=name, type=flag.type, metavar=flag.type.__name__.upper(), help=flag.help)
    known = {"help", *_FLAGS, *(alias for flag in _FLAGS.values() for alias in flag.aliases)}
    for word in argv:
        if word.startswith("--"):
            _check_name(word.partition("=")[0], known, _REFUSED_FLAGS, "flag")
    found, others = parser.parse_known_args(argv)
    if others:
        raise ValueError(
            f"{others[0]!r} belongs to no flag: please check the quotes of --user_defined_parameters, and that no "
            f"blanks follow a backslash at the end of a line."
        )
    flags = {name: value for name, value in vars(found).items() if value is not None}
    parameters = _parse_parameters(flags.pop("user_defined_parameters", ""))
    mode = flags.pop("mode", "train")
    if mode not in _ALL:
        raise ValueError(f"--mode must be train, evaluate or predict, got {mode!r}.")
    if flags.pop("app_name", TASK) != TASK:
        raise ValueError(f"--app_name must be {TASK}: pai-painter does nothing else.")
    return Given(mode, flags, parameters)


def _parse_parameters(text: str) -> dict[str, str]:
    """`a=1 b=2` over any number of lines, perhaps in quotes; of two equal names the last counts, as in EasyNLP."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""  # backslashes are in Windows' paths
    try:
        words = [word.partition("=") for word in lexer]
    except ValueError as error:
        raise ValueError("A quote in --user_defined_parameters is not closed.") from error
    for name, equals, value in words:
        if not equals or not name or not value:
            raise ValueError(
                f"--user_defined_parameters is a list of name=value, got {name + equals + value!r}; a value with "
                f"blanks needs quotes of its own."
            )
        _check_name(name, _PARAMETERS, _REFUSED_PARAMETERS, "parameter")
    return {name: value for name, _, value in words}


def _check_name(word: str, known: Collection[str], refused: dict[str, str], kind: str) -> None:
    name = word.lstrip("-")
    if name in known:
        return
    if name in refused:
        raise ValueError(f"`{word}` is not supported: {refused[name]}.")
    similar = difflib.get_close_matches(name, [*known, *refused], 1)
    hint = f"did you mean `{word.replace(name, similar[0])}`?" if similar else "--help lists all flags."
    raise ValueError(f"EasyNLP has no {kind} `{word}` for pictures; {hint}")
