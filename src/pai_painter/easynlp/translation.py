# SPDX-License-Identifier: Apache-2.0
"""A command of EasyNLP → the native command that does the same."""

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.table_files import open_lines
from ..painter_folder import read_painter_folder
from ..training.arguments import PainterTrainingArguments
from .flags import Given, parse_flags
from .names import explaining_missing_models, hub_name
from .sizes import check_sizes, count_of_pictures

__all__ = ["NativeCommand", "translate"]

# What EasyNLP's trainer does where nothing is said; the betas and epsilon of its AdamW can't be chosen.
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "epoch_num": 3.0,
    "micro_batch_size": 2,
    "random_seed": 1234,
    "logging_steps": 100,
    "weight_decay": 1e-4,
    "max_grad_norm": 1.0,
    "warmup_proportion": 0.1,
    "gradient_accumulation_steps": 1,
}
_ADAM_BETA2, _ADAM_EPSILON = 0.999, 1e-6
_ALL_CHECKPOINTS = 1_000_000
_REMOTE = ("odps://", "oss://")
_OUTPUT_COLUMNS = ("idx", "text", "gen_imgbase64")


@dataclass
class NativeCommand:
    """
    Args:
        words: what follows `pai-painter`.
        notes: what the user should know, a sentence each.
    """

    words: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """As it is typed into a shell."""
        return shlex.join(["pai-painter", *self.words])

    def add(self, option: str, value: object) -> None:
        """Adds an option with its value; `None` is left out."""
        if value is not None:
            self.words += [option, str(value)]


def translate(argv: list[str], program: str = "pai-painter easynlp") -> NativeCommand:
    """
    Finds the native command. The model's configuration is read for it, and for training the rows are counted.

    Args:
        argv: the words behind EasyNLP's `easynlp`.
        program: what the help calls the program.

    Raises:
        ValueError: if a flag is unknown, wrong, can't be honoured or contradicts the model.
        OSError: if the model or a file isn't there.
    """
    given = parse_flags(argv, program)
    _check_places(given)
    command = {"train": _train, "evaluate": _evaluate, "predict": _predict}[given.mode](given)
    if given.idle:
        verb = "has" if len(given.idle) == 1 else "have"
        command.notes.append(f"{', '.join(given.idle)} {verb} no effect on --mode={given.mode}.")
    return command


def _train(given: Given) -> NativeCommand:
    flags = {**_DEFAULTS, **given.flags}
    tables = _tables(given, at_most=2)
    model = given.parameters.get("pretrain_model_name_or_path")
    if model is None:
        raise ValueError(
            "--mode=train needs the model to start from: please add pretrain_model_name_or_path=MODEL to "
            "--user_defined_parameters."
        )
    _check_training(flags)
    model = _checked_model(model, given)
    command = NativeCommand(["train", "--model_name_or_path", model])
    processes = _processes_to_stand_for(given, command)
    accumulation = flags["gradient_accumulation_steps"] * processes
    total, each_epoch = _steps(tables[0], flags, accumulation)
    saves = flags.get("save_checkpoint_steps") or each_epoch
    command.add("--train_file", tables[0])
    command.add("--validation_file", tables[-1])
    command.add("--input_schema", flags.get("input_schema"))
    command.add("--caption_column", flags.get("first_sequence"))
    command.add("--image_column", flags.get("second_sequence"))
    command.add("--output_dir", _required(given, "checkpoint_dir", "where the trained model goes"))
    command.add("--learning_rate", flags["learning_rate"])
    command.add("--lr_scheduler_type", "linear")
    command.add("--warmup_steps", int(flags["warmup_proportion"] * total))
    command.add("--weight_decay", flags["weight_decay"])
    command.add("--adam_beta2", _ADAM_BETA2)
    command.add("--adam_epsilon", _ADAM_EPSILON)
    command.add("--max_grad_norm", flags["max_grad_norm"])
    command.add("--num_train_epochs", flags["epoch_num"])
    command.add("--per_device_train_batch_size", flags["micro_batch_size"])
    command.add("--gradient_accumulation_steps", accumulation)
    command.add("--seed", flags["random_seed"])
    command.add("--logging_steps", flags["logging_steps"])
    command.add("--save_steps", saves)
    command.add("--eval_steps", saves)
    command.add("--save_total_limit", _ALL_CHECKPOINTS if "save_all_checkpoints" in flags else None)
    command.add("--load_best_model_at_end", "true")
    command.add("--mixed_precision", "fp16" if "use_amp" in flags else None)
    command.add("--dataloader_num_workers", flags.get("data_threads"))
    command.add("--resume_from_checkpoint", flags.get("resume_from_checkpoint"))
    if _is_true(given.parameters.get("random_crop", "False")):
        command.words += ["--random_crop", "true", "--num_crops", "0"]  # a new one in each step
    return command


def _evaluate(given: Given) -> NativeCommand:
    tables = _tables(given, at_most=2)
    model = _checked_model(_required(given, "checkpoint_dir", "the trained model"), given)
    command = NativeCommand(["evaluate", "--model", model, "--file", tables[-1]])
    _processes_to_stand_for(given, command)
    command.add("--input_schema", given.flags.get("input_schema"))
    command.add("--caption_column", given.flags.get("first_sequence"))
    command.add("--image_column", given.flags.get("second_sequence"))
    command.add("--batch_size", given.flags.get("micro_batch_size", _DEFAULTS["micro_batch_size"]))
    return command


def _predict(given: Given) -> NativeCommand:
    flags = given.flags
    table = _tables(given, at_most=1)[0]
    model = _checked_model(_required(given, "checkpoint_dir", "the trained model"), given)
    output = _required(given, "outputs", "the file for the pictures")
    command = NativeCommand(["predict", table, "--model", model, "--output", output])
    _processes_to_stand_for(given, command)
    command.add("--input_format", None if table.lower().endswith((".tsv", ".tsv.gz")) else "tsv")
    command.add("--input_schema", flags.get("input_schema"))
    command.add("--caption_column", flags.get("first_sequence"))
    command.add("--format", None if output.lower().endswith(".tsv") else "tsv")
    command.add("--output_schema", _output_schema(flags))
    command.add("--batch_size", flags.get("micro_batch_size", _DEFAULTS["micro_batch_size"]))
    command.add("--num_images_per_prompt", count_of_pictures(given.parameters.get("max_generated_num", 1)))
    command.add("--seed", flags.get("random_seed"))
    return command


def _check_places(given: Given) -> None:
    for name in ("tables", "outputs", "checkpoint_dir"):
        if any(scheme in given.flags.get(name, "") for scheme in _REMOTE):
            raise ValueError(f"--{name} names something of Alibaba's cloud: please download it, and give its path.")


def _required(given: Given, name: str, what: str) -> str:
    value = given.flags.get(name)
    if not value:
        raise ValueError(f"--mode={given.mode} needs --{name}, {what}.")
    return str(value)


def _tables(given: Given, at_most: int) -> list[str]:
    tables = _required(given, "tables", "the file to read").split(",")
    if len(tables) > at_most or not all(tables):
        kinds = (
            "one file" if at_most == 1 else "one file, or a training and a validation file with a comma between them"
        )
        raise ValueError(f"--tables must be {kinds} for --mode={given.mode}, got {','.join(tables)!r}.")
    return tables


def _checked_model(name: str, given: Given) -> str:
    """The name that loads the model, if the sizes that were given are its own."""
    name = hub_name(name)
    with explaining_missing_models(name):
        config = read_painter_folder(name).config
    check_sizes(name, config, {**given.parameters, **given.flags})
    return name


def _check_training(flags: dict[str, Any]) -> None:
    if flags.get("optimizer_type", "AdamW") != "AdamW":
        raise ValueError(
            f"--optimizer_type must be AdamW, the only one that trains painters, got {flags['optimizer_type']!r}."
        )
    if not 0 <= flags["warmup_proportion"] < 1:
        raise ValueError(f"--warmup_proportion must lie in [0, 1), got {flags['warmup_proportion']}.")
    for name in ("epoch_num", "micro_batch_size", "gradient_accumulation_steps", "save_checkpoint_steps"):
        if name in flags and not flags[name] > 0:
            raise ValueError(f"--{name} must be above 0, got {flags[name]}.")
    if "use_amp" in flags and not torch.accelerator.is_available():
        raise ValueError(
            "--use_amp (fp16) needs a GPU, and this machine has none: please leave it out, or give the native command "
            "`--mixed_precision bf16`."
        )
    checkpoint = flags.get("resume_from_checkpoint")
    if checkpoint is not None and Path(f"{checkpoint}.bin").exists():
        raise ValueError(
            f"{checkpoint} is a checkpoint of EasyNLP, whose optimizer can't be taken up: please `pai-painter convert "
            f"{checkpoint}.bin FOLDER` and start from that (pretrain_model_name_or_path=FOLDER)."
        )


def _processes_to_stand_for(given: Given, command: NativeCommand) -> int:
    """
    Of several GPUs' processes this one may have to do the work alone.

    Returns:
        how many processes this one stands for.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # a launcher has seen to it
        return 1
    if given.flags.get("worker_count", 1) != 1:
        raise ValueError(
            f"--worker_count={given.flags['worker_count']} machines are started natively: please run on each `torchrun "
            f"--no-python --nnodes {given.flags['worker_count']} … pai-painter easynlp …` without --worker_count."
        )
    wanted = given.flags.get("worker_gpu", -1)
    there = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if wanted == 0 and there:
        raise ValueError("--worker_gpu=0 with a GPU at hand: please hide it (CUDA_VISIBLE_DEVICES=) to use the CPU.")
    if wanted > 1 and there:
        raise ValueError(
            f"--worker_gpu={wanted} processes are started natively: please run `torchrun --no-python --nproc_per_node "
            f"{wanted} pai-painter easynlp …` with the same flags (this machine has {there})."
        )
    if wanted < 1 or there:
        return 1
    also = f"; {wanted} batches make one step, as on {wanted} GPUs" if wanted > 1 and given.mode == "train" else ""
    command.notes.append(f"--worker_gpu={wanted}: this machine has no GPU, so the CPU does the work{also}.")
    return wanted


def _steps(table: str, flags: dict[str, Any], accumulation: int) -> tuple[int, int]:
    """Steps of the whole run, and of one epoch."""
    rows = sum(1 for _ in open_lines(Path(table)))
    counts = PainterTrainingArguments(
        output_dir="",
        num_train_epochs=flags["epoch_num"],
        per_device_train_batch_size=flags["micro_batch_size"],
        gradient_accumulation_steps=accumulation,
    )
    total = counts.total_steps(rows, int(os.environ.get("WORLD_SIZE", "1")))
    return total, max(1, round(total / flags["epoch_num"]))


def _output_schema(flags: dict[str, Any]) -> str | None:
    further = [column for column in flags.get("append_cols", "").split(",") if column]
    schema = flags.get("output_schema") or ",".join(_OUTPUT_COLUMNS)
    if not further:
        return flags.get("output_schema") or None
    known = ("idx", flags.get("first_sequence", "text"))
    other = [column for column in further if column not in known]
    if other:
        raise ValueError(
            f"--append_cols can take {' and '.join(known)}, got {other[0]!r}: please join other columns to "
            f"the output by idx afterwards."
        )
    return ",".join([schema, *(column for column in further if column not in schema.split(","))])


def _is_true(word: str) -> bool:
    if word not in ("True", "False"):
        raise ValueError(f"random_crop must be True or False, got {word!r}.")
    return word == "True"
