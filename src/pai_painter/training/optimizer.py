# SPDX-License-Identifier: Apache-2.0
"""AdamW with minGPT's groups: matrices and kernels decay; embeddings, norms and biases don't."""

import torch
from torch import nn

from .arguments import TrainingArguments

__all__ = ["build_optimizer"]


def build_optimizer(model: nn.Module, training: TrainingArguments) -> torch.optim.AdamW:
    """An AdamW over the trainable parameters of `model`."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if id(parameter) in matrices]
    others = [parameter for parameter in trained if id(parameter) not in matrices]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
