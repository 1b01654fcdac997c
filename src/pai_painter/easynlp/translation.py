# SPDX-License-Identifier: Apache-2.0
"""A command of EasyNLP → the native command that does the same."""

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.table_files import open_lines
from ..training.arguments import TrainingArguments
from .flags import Given, parse_flags
from .names import checked_model, number_of_pictures


@dataclass
class NativeCommand:
    """`words` follow `pai-painter`; `notes` say what the user should know."""

    words: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return shlex.join(["pai-painter", *self.words])


def translate(argv: list[str]) -> NativeCommand:
    """Finds the native command for the words behind `easynlp`, or says what can't be honoured or isn't the model's."""
    given = parse_flags(argv)
    tables = _required(given, "tables", "the file to read").split(",")
    at_most = 1 if given.mode == "predict" else 2
    if len(tables) > at_most or not all(tables):
        raise ValueError(f"--tables must be at most {at_most} files for --mode={given.mode}, got {','.join(tables)!r}.")
    command = NativeCommand([given.mode, *(tables if given.mode == "predict" else [])])
    _check_processes(given, command)
    options = {"train": _train, "evaluate": _evaluate, "predict": _predict}[given.mode](given, tables)
    for option, value in {**options, **given.native_options()}.items():
        command.words += [] if value is None else [option, str(value)]
    if given.idle:
        command.notes.append(f"Without effect on --mode={given.mode}: {', '.join(given.idle)}.")
    return command


def _train(given: Given, tables: list[str]) -> dict[str, Any]:
    if "pretrain_model_name_or_path" not in given.parameters:
        raise ValueError("--mode=train needs pretrain_model_name_or_path=MODEL in --user_defined_parameters.")
    if not 0 <= given["warmup_proportion"] < 1:
        raise ValueError(f"--warmup_proportion must lie in [0, 1), got {given['warmup_proportion']}.")
    if given.parameters.get("random_crop") not in (None, "True", "False"):
        raise ValueError(f"random_crop must be True or False, got {given.parameters['random_crop']!r}.")
    model = checked_model(given.parameters["pretrain_model_name_or_path"], {**given.parameters, **given.flags})
    sizes = {
        "per_device_train_batch_size": given["micro_batch_size"],
        "gradient_accumulation_steps": given["gradient_accumulation_steps"],
    }
    if min(*sizes.values(), given["epoch_num"]) <= 0:
        raise ValueError("--epoch_num, --micro_batch_size and --gradient_accumulation_steps must be above 0.")
    rows, processes = sum(1 for _ in open_lines(Path(tables[0]))), int(os.environ.get("WORLD_SIZE", "1"))

    def steps(epochs: float) -> int:
        return TrainingArguments("", num_train_epochs=epochs, **sizes).total_steps(rows, processes)

    saves = given["save_checkpoint_steps"] or steps(1.0)
    cropped = given.parameters.get("random_crop") == "True"
    return {
        "--model_name_or_path": model,
        "--train_file": tables[0],
        "--validation_file": tables[-1],
        "--output_dir": _required(given, "checkpoint_dir", "where the trained model goes"),
        "--load_best_model_at_end": "true",
        "--lr_scheduler_type": "linear",
        "--adam_beta2": 0.999,
        "--adam_epsilon": 1e-6,
        "--warmup_steps": int(given["warmup_proportion"] * steps(given["epoch_num"])),
        **{f"--{name}": size for name, size in sizes.items()},
        "--save_steps": saves,
        "--eval_steps": saves,
        "--save_total_limit": 1_000_000 if given["save_all_checkpoints"] else None,
        "--mixed_precision": "fp16" if given["use_amp"] else None,
        "--random_crop": "true" if cropped else None,
        "--num_crops": 0 if cropped else None,  # a new one in each step
    }


def _evaluate(given: Given, tables: list[str]) -> dict[str, Any]:
    return {**_trained_model(given), "--file": tables[-1]}


def _predict(given: Given, tables: list[str]) -> dict[str, Any]:
    model, output = _trained_model(given), _required(given, "outputs", "the file for the pictures")
    return {
        **model,
        "--output": output,
        "--input_format": None if tables[0].lower().endswith((".tsv", ".tsv.gz")) else "tsv",
        "--format": None if output.lower().endswith(".tsv") else "tsv",
        "--num_images_per_prompt": number_of_pictures(given.parameters.get("max_generated_num", 1)),
    }


def _required(given: Given, name: str, what: str) -> str:
    if not given[name]:
        raise ValueError(f"--mode={given.mode} needs --{name}, {what}.")
    return str(given[name])


def _trained_model(given: Given) -> dict[str, Any]:
    folder = _required(given, "checkpoint_dir", "the trained model")
    model = checked_model(folder, {**given.parameters, **given.flags})
    return {"--model": model, "--batch_size": given["micro_batch_size"]}


def _check_processes(given: Given, command: NativeCommand) -> None:
    """One process for each GPU is a launcher's business; without a GPU, the CPU does the work."""
    count, wanted = given.flags.get("worker_count", 1), given.flags.get("worker_gpu", -1)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    if count != 1 or wanted > 1:
        where = f"--nnodes {count}" if count != 1 else f"--nproc_per_node {wanted}"
        told = f"--worker_count={count} and --worker_gpu={wanted} need a launcher"
        raise ValueError(f"{told}: please run `torchrun --no-python {where} pai-painter easynlp …` on each machine.")
    if wanted == 0 and torch.accelerator.is_available():
        raise ValueError("--worker_gpu=0 with a GPU at hand: please hide it (CUDA_VISIBLE_DEVICES=) to use the CPU.")
    if wanted == 1 and not torch.accelerator.is_available():
        command.notes.append("--worker_gpu=1: this machine has no GPU, so the CPU does the work.")
