# SPDX-License-Identifier: Apache-2.0
"""A command of EasyNLP → the native command that does the same."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.tsv import open_lines
from ..painter_folder import read_painter_folder
from .flags import Given, parse_flags
from .names import check_sizes, explaining_missing_models, hub_name, number_of_pictures

__all__ = ["NativeCommand", "translate"]

# EasyNLP's defaults; it doesn't let the betas and epsilon of its AdamW be chosen.
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5, "epoch_num": 3.0, "micro_batch_size": 2, "random_seed": 1234, "logging_steps": 100,
    "weight_decay": 1e-4, "max_grad_norm": 1.0, "warmup_proportion": 0.1, "gradient_accumulation_steps": 1,
}  # fmt: skip
_ADAM = {"--adam_beta2": 0.999, "--adam_epsilon": 1e-6}
_ALL_CHECKPOINTS = 1_000_000


@dataclass
class NativeCommand:
    """`words` follow `pai-painter`; `notes` say what the user should know."""

    words: list[str]
    notes: list[str]

    def __str__(self) -> str:
        """As it is typed into a shell."""
        return shlex.join(["pai-painter", *self.words])


def translate(argv: list[str], program: str = "pai-painter easynlp") -> NativeCommand:
    """
    Finds the native command. The model's configuration is read for it, and for training the rows are counted.

    Raises:
        OSError, ValueError: if a file or the model is missing, or if a flag can't be honoured or contradicts the model.
    """
    given = parse_flags(argv, program)
    for name in ("tables", "outputs", "checkpoint_dir"):
        if any(scheme in given.flags.get(name, "") for scheme in ("odps://", "oss://")):
            raise ValueError(f"--{name} is in Alibaba's cloud: please download it, and give its path.")
    notes: list[str] = []
    words, options = {"train": _train, "evaluate": _evaluate, "predict": _predict}[given.mode](given, notes)
    for option, value in options.items():
        words += [] if value is None else [option, str(value)]
    if given.idle:
        verb = "has" if len(given.idle) == 1 else "have"
        notes.append(f"{', '.join(given.idle)} {verb} no effect on --mode={given.mode}.")
    return NativeCommand(words, notes)


def _train(given: Given, notes: list[str]) -> tuple[list[str], dict[str, Any]]:
    flags = {**_DEFAULTS, **given.flags}
    tables = _tables(given, at_most=2)
    if "pretrain_model_name_or_path" not in given.parameters:
        raise ValueError("--mode=train needs pretrain_model_name_or_path=MODEL in --user_defined_parameters.")
    _check_training(flags)
    model = _checked_model(given.parameters["pretrain_model_name_or_path"], given)
    accumulation = flags["gradient_accumulation_steps"] * _processes_to_stand_for(given, notes)
    total, each_epoch = _steps(tables[0], flags, accumulation)
    saves = flags.get("save_checkpoint_steps") or each_epoch
    random_crop = given.parameters.get("random_crop", "False")
    if random_crop not in ("True", "False"):
        raise ValueError(f"random_crop must be True or False, got {random_crop!r}.")
    return ["train", "--model_name_or_path", model], {
        "--train_file": tables[0],
        "--validation_file": tables[-1],
        **_columns(given),
        "--output_dir": _required(given, "checkpoint_dir", "where the trained model goes"),
        "--learning_rate": flags["learning_rate"],
        "--lr_scheduler_type": "linear",
        "--warmup_steps": int(flags["warmup_proportion"] * total),
        "--weight_decay": flags["weight_decay"],
        **_ADAM,
        "--max_grad_norm": flags["max_grad_norm"],
        "--num_train_epochs": flags["epoch_num"],
        "--per_device_train_batch_size": flags["micro_batch_size"],
        "--gradient_accumulation_steps": accumulation,
        "--seed": flags["random_seed"],
        "--logging_steps": flags["logging_steps"],
        "--save_steps": saves,
        "--eval_steps": saves,
        "--save_total_limit": _ALL_CHECKPOINTS if "save_all_checkpoints" in flags else None,
        "--load_best_model_at_end": "true",
        "--mixed_precision": "fp16" if "use_amp" in flags else None,
        "--dataloader_num_workers": flags.get("data_threads"),
        "--resume_from_checkpoint": flags.get("resume_from_checkpoint"),
        **({"--random_crop": "true", "--num_crops": 0} if random_crop == "True" else {}),  # a new one in each step
    }


def _evaluate(given: Given, notes: list[str]) -> tuple[list[str], dict[str, Any]]:
    tables = _tables(given, at_most=2)
    model = _checked_model(_required(given, "checkpoint_dir", "the trained model"), given)
    _processes_to_stand_for(given, notes)
    batch_size = given.flags.get("micro_batch_size", _DEFAULTS["micro_batch_size"])
    return ["evaluate", "--model", model, "--file", tables[-1]], {**_columns(given), "--batch_size": batch_size}


def _predict(given: Given, notes: list[str]) -> tuple[list[str], dict[str, Any]]:
    flags, table = given.flags, _tables(given, at_most=1)[0]
    model = _checked_model(_required(given, "checkpoint_dir", "the trained model"), given)
    output = _required(given, "outputs", "the file for the pictures")
    _processes_to_stand_for(given, notes)
    return ["predict", table, "--model", model, "--output", output], {
        "--input_format": None if table.lower().endswith((".tsv", ".tsv.gz")) else "tsv",
        **_columns(given),
        "--format": None if output.lower().endswith(".tsv") else "tsv",
        "--output_schema": _output_schema(flags),
        "--batch_size": flags.get("micro_batch_size", _DEFAULTS["micro_batch_size"]),
        "--num_images_per_prompt": number_of_pictures(given.parameters.get("max_generated_num", 1)),
        "--seed": flags.get("random_seed"),
    }


def _required(given: Given, name: str, what: str) -> str:
    if not given.flags.get(name):
        raise ValueError(f"--mode={given.mode} needs --{name}, {what}.")
    return str(given.flags[name])


def _tables(given: Given, at_most: int) -> list[str]:
    tables = _required(given, "tables", "the file to read").split(",")
    if len(tables) > at_most or not all(tables):
        kinds = "one file" if at_most == 1 else "one file, or a training file, a comma and a validation file"
        raise ValueError(f"--tables must be {kinds} for --mode={given.mode}, got {','.join(tables)!r}.")
    return tables


def _columns(given: Given) -> dict[str, Any]:
    names = {"input_schema": "input_schema", "first_sequence": "caption_column", "second_sequence": "image_column"}
    return {f"--{ours}": given.flags.get(theirs) for theirs, ours in names.items() if given.takes(theirs)}


def _checked_model(name: str, given: Given) -> str:
    """The name that loads the model, if the sizes that were given are its own."""
    name = hub_name(name)
    with explaining_missing_models(name):
        config = read_painter_folder(name).config
    check_sizes(name, config, {**given.parameters, **given.flags})
    return name


def _check_training(flags: dict[str, Any]) -> None:
    if flags.get("optimizer_type", "AdamW") != "AdamW":
        raise ValueError(f"--optimizer_type must be AdamW, got {flags['optimizer_type']!r}.")
    if not 0 <= flags["warmup_proportion"] < 1:
        raise ValueError(f"--warmup_proportion must lie in [0, 1), got {flags['warmup_proportion']}.")
    checkpoint = flags.get("resume_from_checkpoint")
    if checkpoint is not None and Path(f"{checkpoint}.bin").exists():
        raise ValueError(
            f"{checkpoint} is a checkpoint of EasyNLP, whose optimizer state isn't saved: please run `pai-painter "
            f"convert {checkpoint}.bin FOLDER` and start from that (pretrain_model_name_or_path=FOLDER)."
        )


def _processes_to_stand_for(given: Given, notes: list[str]) -> int:
    """How many GPUs' processes this one stands for, since there may be only a CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # a launcher has seen to it
        return 1
    count, wanted = given.flags.get("worker_count", 1), given.flags.get("worker_gpu", -1)
    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if count != 1 or (wanted > 1 and gpus):
        where = f"--nnodes {count}" if count != 1 else f"--nproc_per_node {wanted}"
        raise ValueError(
            f"--worker_count={count}, --worker_gpu={wanted}: please run `torchrun --no-python {where} pai-painter easynlp "
            f"…` on each machine with the other flags (this one has {gpus} GPUs)."
        )
    if wanted == 0 and gpus:
        raise ValueError("--worker_gpu=0 with a GPU at hand: please hide it (CUDA_VISIBLE_DEVICES=) to use the CPU.")
    if wanted < 1 or gpus:
        return 1
    also = f"; {wanted} batches make one step, as on {wanted} GPUs" if wanted > 1 and given.mode == "train" else ""
    notes.append(f"--worker_gpu={wanted}: this machine has no GPU, so the CPU does the work{also}.")
    return wanted


def _steps(table: str, flags: dict[str, Any], accumulation: int) -> tuple[int, int]:
    """Steps of the whole run, and of one epoch."""
    rows_per_step = flags["micro_batch_size"] * accumulation * int(os.environ.get("WORLD_SIZE", "1"))
    if rows_per_step < 1 or flags["epoch_num"] <= 0:
        raise ValueError("--epoch_num, --micro_batch_size and --gradient_accumulation_steps must be above 0.")
    epoch = sum(1 for _ in open_lines(Path(table))) / rows_per_step
    return max(1, round(flags["epoch_num"] * epoch)), max(1, round(epoch))


def _output_schema(flags: dict[str, Any]) -> str | None:
    further = [column for column in flags.get("append_cols", "").split(",") if column]
    if not further:
        return flags.get("output_schema") or None
    known = ("idx", flags.get("first_sequence", "text"))
    other = [column for column in further if column not in known]
    if other:
        raise ValueError(
            f"--append_cols can take {' and '.join(known)}, got {other[0]!r}: please join it by idx later."
        )
    schema = (flags.get("output_schema") or "idx,text,gen_imgbase64").split(",")
    return ",".join([*schema, *(column for column in further if column not in schema)])
