# SPDX-License-Identifier: Apache-2.0
"""The accelerator of a run; what accelerate would ignore silently is refused here."""

import os
import shutil
import sys

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, is_deepspeed_available

from ..signals import forget_empty_ranks
from .arguments import TrainingArguments

__all__ = ["build_accelerator", "is_sharded"]


def build_accelerator(training: TrainingArguments) -> Accelerator:
    """
    Accelerate's handle on processes, devices and precision. `training.mixed_precision` becomes what is used.

    Raises:
        ValueError: if the launcher was told something else than the arguments, or what this machine can't do.
    """
    forget_empty_ranks()
    training.mixed_precision = _agreed_precision(training.mixed_precision)
    if _asked_for("MEGATRON_LM"):
        raise ValueError("MEGATRON_LM is not supported; please launch with DDP, FSDP or DeepSpeed.")
    if _asked_for("DEEPSPEED") and not is_deepspeed_available():
        raise ValueError("DeepSpeed isn't installed here; please `pip install deepspeed` or launch without it.")
    for name in training.report_to:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"There is no tracker {name!r} (`report_to`); accelerate knows {known}.")
        if name not in {str(tracker) for tracker in get_available_trackers()}:
            raise ValueError(f"The tracker {name} (`report_to`) isn't installed: please `pip install {name}`.")
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=[*training.report_to] or None,
        project_dir=training.output_dir,
    )
    _check_launch(accelerator, training)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # It would take the batch size from a prepared dataloader; ours follows an order of its own.
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = training.per_device_train_batch_size
        settings["gradient_accumulation_steps"] = training.gradient_accumulation_steps
        settings["gradient_clipping"] = training.max_grad_norm
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds the whole model."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def _asked_for(name: str) -> bool:
    """What `accelerate launch` was told arrives in the environment."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def _agreed_precision(wanted: str | None) -> str:
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", "bf16", "fp16"):
        raise ValueError(f"accelerate was launched with mixed precision {told}; please choose no, bf16 or fp16.")
    if wanted is not None and told not in ("no", wanted):
        raise ValueError(
            f"accelerate was launched with mixed precision {told}, but `mixed_precision` is {wanted}: please set one "
            f"of them only."
        )
    return told if wanted is None else wanted


def _check_launch(accelerator: Accelerator, training: TrainingArguments) -> None:
    steps, device = accelerator.gradient_accumulation_steps, accelerator.device.type
    if steps != training.gradient_accumulation_steps:
        raise ValueError(
            f"accelerate was launched with gradient_accumulation_steps {steps}, but `gradient_accumulation_steps` is "
            f"{training.gradient_accumulation_steps}: please give both the same."
        )
    # torchrun on a machine without accelerators gives accelerate no hint.
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but accelerate runs each alone; on the CPU please set "
            f"ACCELERATE_USE_CPU=true."
        )
    if device == "cpu" and training.mixed_precision == "fp16":
        raise ValueError("fp16 needs an accelerator; on the CPU please set `mixed_precision` to bf16 or no.")
    # Where torch.compile looks for it, at the first step, minutes from now.
    compiler = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if device == "cpu" and training.torch_compile and shutil.which(compiler) is None:
        raise ValueError(
            f"`torch_compile` needs a C++ compiler, and there is no {compiler} here: please install it, name another "
            f"one by the variable CXX, or leave `torch_compile` out."
        )
    for name, kind in {"FSDP": DistributedType.FSDP, "DEEPSPEED": DistributedType.DEEPSPEED}.items():
        if _asked_for(name) and accelerator.distributed_type != kind:
            raise ValueError(
                f"{name} needs accelerators, and this machine trains on {device}; please launch without it (several "
                f"processes then use DDP)."
            )
    if training.use_ema and is_sharded(accelerator):
        raise ValueError("`use_ema` needs the whole weights in each process; please launch without FSDP or DeepSpeed.")
