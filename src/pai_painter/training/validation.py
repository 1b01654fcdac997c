# SPDX-License-Identifier: Apache-2.0
"""How well a painter predicts the image tokens of pictures that it isn't trained on."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .painter_rows import CaptionedTokens, collate_rows, sequences

__all__ = ["validation_loss"]


@torch.no_grad()
def validation_loss(
    objective: nn.Module, rows: CaptionedTokens, accelerator: Accelerator, batch_size: int = 32
) -> dict[str, float]:
    """
    Mean cross-entropy in nats per token over all rows, each with its first caption. All processes call it.

    Args:
        objective: from ids and labels to the loss, in evaluation mode, perhaps wrapped by accelerate.
        rows: the same on all processes; each computes its share.
    """
    processes, total = accelerator.num_processes, torch.zeros((), device=accelerator.device)
    # All processes take the same number of batches, the last perhaps without rows of their own: with sharded weights
    # they wait for each other in every forward.
    for number in range(math.ceil(len(rows) / (batch_size * processes))):
        first = (number * processes + accelerator.process_index) * batch_size
        own = range(first, min(first + batch_size, len(rows)))
        items: list[dict[str, Any]] = [rows[row] for row in own or range(1)]
        total += objective(*sequences(collate_rows(items), accelerator.device)) * len(own)
    loss = accelerator.reduce(total, "sum").item() / len(rows)
    return {"validation_loss": loss, "validation_perplexity": torch.tensor(loss).double().exp().item()}
