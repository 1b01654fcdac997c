# SPDX-License-Identifier: Apache-2.0
"""The accelerator of a run; what accelerate would ignore silently is refused here."""

import os

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType

from ..signals import forget_empty_ranks
from .arguments import TrainingArguments


def build_accelerator(training: TrainingArguments) -> Accelerator:
    """
    Accelerate's handle on processes, devices and precision. `training.mixed_precision` becomes what is used. Raises
    `ValueError` if the launcher was told something else than the arguments, or what this machine can't do.
    """
    forget_empty_ranks()
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    wanted = training.mixed_precision = training.mixed_precision or told  # type: ignore[assignment]
    if wanted not in ("no", "bf16", "fp16") or told not in ("no", wanted):
        raise ValueError(
            f"accelerate was launched with mixed precision {told}, but `mixed_precision` is {wanted}: please set one "
            f"of them only, to no, bf16 or fp16."
        )
    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in training.report_to if name not in available]:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise ValueError(f"The tracker {missing[0]} (`report_to`) isn't installed; accelerate knows {known}.")
    accumulation = training.gradient_accumulation_steps
    accelerator = Accelerator(
        mixed_precision=wanted,
        gradient_accumulation_steps=accumulation,
        log_with=[*training.report_to] or None,
        project_dir=training.output_dir,
    )
    if (told_steps := accelerator.gradient_accumulation_steps) != accumulation:
        raise ValueError(
            f"accelerate was launched with {told_steps} `gradient_accumulation_steps`, but here it is {accumulation}."
        )
    # torchrun on a machine without accelerators gives accelerate no hint.
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != accelerator.num_processes:
        raise ValueError(f"{started} processes would each train alone: on the CPU, set ACCELERATE_USE_CPU=true.")
    device, kind = accelerator.device.type, accelerator.distributed_type
    if device == "cpu" and wanted == "fp16":
        raise ValueError("fp16 needs an accelerator; on the CPU please set `mixed_precision` to bf16 or no.")
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" and kind != DistributedType[name]:
            raise ValueError(f"{name} needs accelerators, and this machine trains on {device}: please launch without.")
    if training.use_ema and is_sharded(accelerator):
        raise ValueError("`use_ema` needs the whole weights in each process; please launch without FSDP or DeepSpeed.")
    if kind == DistributedType.DEEPSPEED:
        # It would take the batch size from a prepared dataloader; ours follows an order of its own.
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = training.per_device_train_batch_size
        settings["gradient_accumulation_steps"] = accumulation
        settings["gradient_clipping"] = training.max_grad_norm
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process holds the whole model."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
