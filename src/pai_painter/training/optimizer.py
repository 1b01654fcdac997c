# SPDX-License-Identifier: Apache-2.0
"""AdamW with minGPT's groups: matrices and kernels decay; embeddings, norms and biases don't."""

import torch
from torch import nn

from .arguments import TrainingArguments

__all__ = ["build_optimizer"]


def build_optimizer(model: nn.Module, training: TrainingArguments) -> torch.optim.AdamW:
    """An AdamW over the trainable parameters of `model`."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                decays = name == "weight" and isinstance(module, nn.Linear | nn.Conv2d)
                (decayed if decays else others).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
