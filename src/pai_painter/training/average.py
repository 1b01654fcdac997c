# SPDX-License-Identifier: Apache-2.0
"""The moving average of weights, beside the weights themselves."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """
    Exponential moving average of some parameters.

    Only what is given is copied, so that a frozen VQGAN isn't held twice. The average begins with the weights of the
    first update.

    Args:
        parameters: what changes in training, on their final device.
        decay: for each update, in [0, 1).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters, self.decay = list(parameters), decay
        self.weights = [parameter.detach().clone() for parameter in self.parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters' present values in."""
        for weight, parameter in zip(self.weights, self.parameters, strict=True):
            weight.lerp_(parameter, 1 - self.decay if self.updates else 1.0)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the model has the averaged weights; afterwards its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, parameter in zip(self.weights, self.parameters, strict=True):
            own = parameter.clone()
            parameter.copy_(weight)
            weight.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a checkpoint's state back."""
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.copy_(saved)
        self.updates = state["updates"]
