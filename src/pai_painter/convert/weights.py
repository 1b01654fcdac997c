# SPDX-License-Identifier: Apache-2.0
"""Weights from a checkpoint into a model: every name is accounted for."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from .safe_pickle import CheckpointError, Inert, NumPyArray, StoredTensor, printable
from .torch_files import TorchFile

__all__ = ["Weight", "described", "fill_model", "grouped", "shapes_of", "torch_weights"]

_MAX_LISTED = 12

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Weight:
    """
    A weight that is still in its file.

    Args:
        name (`str`): What the checkpoint calls it.
        shape (`tuple[int, ...]`): As the model has it.
        read (`Callable`): Gives the tensor, in the model's shape.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def torch_weights(file: TorchFile, content: Any) -> dict[str, Weight]:
    """
    The weights of a state dict in a checkpoint of PyTorch.

    Raises:
        CheckpointError: if something in it is no tensor of numbers.
    """
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file.path} holds no weights, which would be a dictionary of tensors.")
    weights = {}
    for name, stored in content.items():
        if not isinstance(name, str) or not isinstance(stored, StoredTensor):
            raise CheckpointError(
                f"{file.path} holds {described(stored)} under {printable(name)!r}, where a tensor must be."
            )
        weights[name] = Weight(printable(name), stored.shape, lambda stored=stored: file.read(stored))  # type: ignore[misc]
    return weights


def described(value: Any) -> str:
    """What stands where something else must be."""
    if isinstance(value, Inert):
        return f"a {value.name}"
    return "an array" if isinstance(value, NumPyArray) else f"a {type(value).__name__}"


def shapes_of(model_class: type[Model], config: Any, source: str) -> Model:
    """
    A model without numbers.

    Raises:
        CheckpointError: if the configuration's sizes are beyond all bounds.
    """
    try:
        with torch.device("meta"):
            return model_class(config)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise CheckpointError(f"The configuration of {source} can't be built: {reason}.") from error


def fill_model(
    model_class: type[Model],
    config: Any,
    weights: Mapping[str, Weight],
    source: str,
    missing_names: Mapping[str, str] | None = None,
) -> Model:
    """
    Builds a model of weights.

    Args:
        model_class: its class.
        config: its configuration.
        weights: by the model's names.
        source: for error messages.
        missing_names: the checkpoint's names by the model's, for error messages.

    Returns:
        The model, in the checkpoint's precision (float32, if it has several), in evaluation mode.

    Raises:
        CheckpointError: if weights are missing, unexpected or ill-shaped, all of which are listed; or if one of them
            holds no finite numbers.
    """
    names = missing_names or {}
    model = shapes_of(model_class, config, source)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"missing: {names.get(name, name)}" for name in wanted if name not in weights]
    problems += [f"unexpected: {weight.name}" for name, weight in weights.items() if name not in wanted]
    problems += [
        f"ill-shaped: {weights[name].name} is {weights[name].shape}, must be {shape}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    if problems:
        raise CheckpointError(
            f"The weights of {source} don't fit the configuration; {len(problems)} don't: {'; '.join(problems)}."
        )
    tensors = {name: weights[name].read() for name in wanted}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"The weight {weights[name].name} of {source} has whole numbers ({tensor.dtype}).")
        if not tensor.isfinite().all():
            raise CheckpointError(f"The weight {weights[name].name} of {source} has numbers that aren't finite.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    model.config.dtype = model.dtype
    return model.eval()


def grouped(names: Iterable[str]) -> list[str]:
    """Names for people: `blocks.0.attn.mask` and `blocks.1.attn.mask` become `blocks.N.attn.mask (2)`."""
    names = [printable(name) for name in names]
    found = Counter(re.sub(r"(?<![^.])\d+(?![^.])", "N", name) for name in names)
    if len(found) > _MAX_LISTED:
        found = Counter(".".join([*name.split(".")[:2], "*"]) if name.count(".") > 1 else name for name in names)
    return [name if count == 1 else f"{name} ({count})" for name, count in found.items()]
