# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's command line: its flags and `user_defined_parameters`, parsed and checked."""

import argparse
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from .names import SIZES, TASK, nearest

_ALL = ("train", "evaluate", "predict")
_TRAIN, _PREDICT = ("train",), ("predict",)


class _Flag(NamedTuple):
    native: str  # the option of the native command, or what becomes of it
    type: type = str  # `bool` for flags without a value
    modes: tuple[str, ...] = _ALL  # in which it has an effect
    default: Any = None  # EasyNLP's, in training
    aliases: tuple[str, ...] = ()


_FLAGS = {
    "mode": _Flag("train, evaluate or predict"),
    "app_name": _Flag(f"must be {TASK}"),
    "tables": _Flag("training file,validation file; or the file to evaluate or to paint"),
    "checkpoint_dir": _Flag("the folder of the model", aliases=("checkpoint_path",)),
    "outputs": _Flag("the file for the pictures", str, _PREDICT),
    "input_schema": _Flag("--input_schema"),
    "first_sequence": _Flag("--caption_column"),
    "second_sequence": _Flag("--image_column", str, ("train", "evaluate")),
    "output_schema": _Flag("--output_schema", str, _PREDICT),
    "learning_rate": _Flag("--learning_rate", float, _TRAIN, 5e-5),
    "weight_decay": _Flag("--weight_decay", float, _TRAIN, 1e-4, ("wd",)),
    "max_grad_norm": _Flag("--max_grad_norm", float, _TRAIN, 1.0, ("mn",)),
    "epoch_num": _Flag("--num_train_epochs", float, _TRAIN, 3.0),
    "micro_batch_size": _Flag("rows per batch", int, _ALL, 2, ("train_batch_size",)),
    "gradient_accumulation_steps": _Flag("batches per step", int, _TRAIN, 1),
    "random_seed": _Flag("--seed", int, ("train", "predict"), 1234),
    "logging_steps": _Flag("--logging_steps", int, _TRAIN, 100),
    "save_checkpoint_steps": _Flag("steps between checkpoints (an epoch's)", int, _TRAIN),
    "save_all_checkpoints": _Flag("keeps all checkpoints", bool, _TRAIN),
    "warmup_proportion": _Flag("fraction of steps used for warm-up", float, _TRAIN, 0.1),
    "resume_from_checkpoint": _Flag("--resume_from_checkpoint", str, _TRAIN),
    "use_amp": _Flag("trains in fp16", bool, _TRAIN),
    "data_threads": _Flag("--dataloader_num_workers", int, _TRAIN),
    "sequence_length": _Flag("must be the model's", int),
    "worker_gpu": _Flag("1 (more: by torchrun); without a GPU, the CPU does the work", int),
    "worker_count": _Flag("must be 1", int),
    "user_defined_parameters": _Flag("name=value, separated by spaces or line breaks"),
}
_REFUSED = {
    "export_tf_checkpoint_type master_port predict_queue_size predict_slice_size predict_table_read_thread_num "
    "predict_thread_num restore_works_dir label_name label_enumerate_values do_lower_case": (
        "it has no effect here; please leave it out"
    ),
    "skip_first_line": "please remove the header first: `tail -n +2 FILE > WITHOUT_HEADER.tsv`",
    "buckets odps_config": "please download the files first and give their paths",
    "modelzoo_base_dir": "please give the model's whole path as pretrain_model_name_or_path",
    "user_script user_entry_file": "your own script can import the library (`from pai_painter import …`)",
    "append_cols": "please name all columns (idx, text, gen_imgbase64) in --output_schema",
    "worker_cpu": "please set the environment's OMP_NUM_THREADS to the number of CPU cores",
    "optimizer optimizer_type": "painters are trained by AdamW; please leave it out",
    "use_torchacc": "please use `pai-painter train --torch_compile true`",
    "distributed_backend local_rank ps_hosts chief_hosts job_name task_index task_count is_chief worker_hosts": (
        "processes are started by `accelerate launch` or `torchrun`, which set this themselves"
    ),
    "vqgan_ckpt_path": "a new painter is made by `pai-painter convert VQGAN_CHECKPOINT VQGAN` and then `pai-painter "
    "train --config_name CONFIG --vqgan VQGAN --tokenizer_name FOLDER_WITH_VOCAB`",
    "entity_num entity_emb_path": "entity tables belong to a different kind of model",
}
_CHOICES = {"mode": _ALL, "app_name": (TASK,)}
_PARAMETERS: dict[str, tuple[str, ...]] = dict.fromkeys(SIZES, _ALL)
_PARAMETERS |= {"pretrain_model_name_or_path": _TRAIN, "random_crop": _TRAIN, "max_generated_num": _PREDICT}


@dataclass(frozen=True)
class Given:
    """The flags that were given (`given[name]` or EasyNLP's default), and the parameters as strings."""

    mode: str
    flags: dict[str, Any]
    parameters: dict[str, str]

    def __getitem__(self, flag: str) -> Any:
        return self.flags.get(flag, _FLAGS[flag].default)

    def native_options(self) -> dict[str, Any]:
        """The flags that natively have another name and no other meaning; EasyNLP's defaults count in training only."""
        values = self if self.mode == "train" else {name: self.flags.get(name) for name in _FLAGS}
        same = {name: flag for name, flag in _FLAGS.items() if flag.native[:2] == "--" and self.mode in flag.modes}
        return {flag.native: values[name] for name, flag in same.items()}

    @property
    def idle(self) -> list[str]:
        """The flags and parameters that have no effect in this mode."""
        flags = [f"--{name}" for name in self.flags if self.mode not in _FLAGS[name].modes]
        return flags + [name for name in self.parameters if self.mode not in _PARAMETERS[name]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[0].upper()}{message[1:].rstrip('.')}; --help lists all flags.")


def parse_flags(argv: list[str]) -> Given:
    """Parses the words behind `easynlp`; a `ValueError` if one is unknown, wrong, or can't be honoured."""
    about = "Translates an EasyNLP text2image_generation command into its native equivalent, shows it and runs it."
    parser = _Parser("pai-painter easynlp", description=about, allow_abbrev=False)
    for name, flag in _FLAGS.items():
        words = [f"--{word}" for word in (name, *flag.aliases)]
        text = flag.native if flag.default is None else f"{flag.native} ({flag.default})"
        kind: dict[str, Any] = {"action": "store_true", "default": None}
        if flag.type is not bool:
            kind = {"type": flag.type, "metavar": flag.type.__name__.upper(), "choices": _CHOICES.get(name)}
        parser.add_argument(*words, dest=name, help=text, **kind)
    known = {"help", *_FLAGS, *(alias for flag in _FLAGS.values() for alias in flag.aliases)}
    for word in argv:
        if word.startswith("--"):
            _check_name(word.partition("=")[0], known, "flag")
    found, others = parser.parse_known_args(argv)
    if others:
        raise ValueError(f"{others[0]!r} belongs to no flag: please check quotes, and spaces after backslashes.")
    flags = {name: value for name, value in vars(found).items() if value is not None}
    parameters = _parse_parameters(flags.pop("user_defined_parameters", ""))
    flags.pop("app_name", None)
    return Given(flags.pop("mode", "train"), flags, parameters)


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
            raise ValueError(f"--user_defined_parameters is a list of name=value, got {name + equals + value!r}.")
        _check_name(name, _PARAMETERS, "parameter")
    return {name: value for name, _, value in words}


def _check_name(word: str, known: Collection[str], kind: str) -> None:
    name = word.lstrip("-")
    if name in known:
        return
    refused = {each: reason for names, reason in _REFUSED.items() for each in names.split()}
    if name in refused:
        raise ValueError(f"`{word}` is not supported: {refused[name]}.")
    raise ValueError(f"EasyNLP has no {kind} `{word}` for pictures; {nearest(name, [*known, *refused])}")
