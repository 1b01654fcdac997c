# SPDX-License-Identifier: Apache-2.0
"""Before a conversion is called done: the folder is read again and compared, with the original program if possible."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from .safe_pickle import CheckpointError

__all__ = ["compare_with_reference", "compare_with_reloaded"]

# Float32 in another order of operations, and PaddleNLP's GELU in its tanh form, stay below it.
_TOLERANCE = 1e-3


def compare_with_reloaded(model: PreTrainedModel, reloaded: PreTrainedModel) -> str:
    """
    Compares the model with what its folder gives back, bit for bit.

    Raises:
        CheckpointError: if they differ.
    """
    ours, theirs = model.state_dict(), reloaded.state_dict()
    differing = [
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    ]
    if differing:
        raise CheckpointError(f"The written folder gives other weights back: {', '.join(sorted(differing)[:10])}.")
    numbers = sum(tensor.numel() for tensor in ours.values())
    return f"read again: {len(ours):,} weights, {numbers:,} numbers, bit for bit as they were converted"


@torch.no_grad()
def compare_with_reference(model: PaiPainterForImageGeneration | PaiPainterVQModel, file: Path) -> str:
    """
    Compares what the model computes with what the original program computed.

    Args:
        model: in float32.
        file: safetensors; of its tensors those are used that are there: `text_ids`, `codes` and `all_logits`, or
            `input_ids` and `logits` (the transformer); `image` and `codes` (the encoder); `codes` and
            `reconstruction` (the decoder).

    Raises:
        OSError: if there is no such file.
        CheckpointError: if something differs, if nothing could be compared, or if the file is damaged.
    """
    try:
        reference = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or no file of safetensors ({error}).") from error
    try:
        found = _differences(model, reference)
    except (IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} doesn't fit the model: {str(error).splitlines()[0].rstrip('.')}.") from error
    if not found:
        raise CheckpointError(f"{file} holds nothing that can be compared with the model.")
    report = []
    for name, difference in found.items():
        if not difference <= _TOLERANCE:
            raise CheckpointError(f"The model isn't the one of {file}: its {name} differ by {difference:.2g}.")
        report.append(f"{name} {'equal' if difference == 0 else f'within {difference:.1g}'}")
    return f"compared with {file.name}: {', '.join(report)}"


def _differences(
    model: PaiPainterForImageGeneration | PaiPainterVQModel, reference: dict[str, torch.Tensor]
) -> dict[str, float]:
    found = {}
    if isinstance(model, PaiPainterForImageGeneration):
        if {"text_ids", "codes", "all_logits"} <= reference.keys():
            ids = torch.cat([reference["text_ids"], reference["codes"]], dim=1)[:, :-1]
            found["logits"] = _largest(model(ids).logits, reference["all_logits"])
        elif {"input_ids", "logits"} <= reference.keys():
            found["logits"] = _largest(model(reference["input_ids"]).logits, reference["logits"])
    vqgan = model.vqgan if isinstance(model, PaiPainterForImageGeneration) else model
    if {"image", "codes"} <= reference.keys() and vqgan.config.has_encoder:
        codes = vqgan.encode(reference["image"]).image_tokens
        found["codes"] = _largest(codes, reference["codes"])
    if {"codes", "reconstruction"} <= reference.keys():
        found["pixels"] = _largest(vqgan.decode(reference["codes"]), reference["reconstruction"])
    return found


def _largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    return float((ours.double() - theirs.double()).abs().max())
