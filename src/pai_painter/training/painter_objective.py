# SPDX-License-Identifier: Apache-2.0
"""What the painter learns, and how well: each image token, from the caption and the image tokens before it."""

import math

import torch
from accelerate import Accelerator
from torch.utils.data import default_collate

from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from .painter_rows import CaptionedRows, sequences


class PainterObjective(torch.nn.Module):
    """
    Mean cross-entropy of the image tokens; a module so that DDP sees the forward. In training, each input image token
    is replaced by a random one with probability 1 - `pkeep`.
    """

    def __init__(self, painter: PaiPainterForImageGeneration, pkeep: float = 1.0):
        super().__init__()
        self.painter, self.pkeep = painter, pkeep

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Both (batch, text_length + num_image_tokens), the labels -100 on the caption → a scalar, nats per token."""
        config = self.painter.config
        if self.training and self.pkeep < 1:
            # minGPT draws the noise from all ids, caption pieces included. Only image tokens make sense here.
            noise = torch.randint_like(input_ids, config.image_vocab_size)
            is_image_token = torch.arange(input_ids.shape[1], device=input_ids.device) >= config.text_length
            replaced = is_image_token & (torch.rand(input_ids.shape, device=input_ids.device) >= self.pkeep)
            input_ids = torch.where(replaced, noise, input_ids)
        # Of the caption's logits only the last is trained: it predicts the first image token.
        keep = config.num_image_tokens + 1
        return self.painter(input_ids, labels=labels, logits_to_keep=keep, use_cache=False).loss


@torch.no_grad()
def validation_loss(
    objective: torch.nn.Module, rows: CaptionedRows, accelerator: Accelerator, batch_size: int = 32
) -> dict[str, float]:
    """
    Mean cross-entropy in nats per token over all rows, each with its first caption. All processes call it with the same
    rows and an `objective` in evaluation mode, perhaps wrapped by accelerate; each computes its share.
    """
    processes, total = accelerator.num_processes, torch.zeros((), device=accelerator.device)
    # All processes take the same number of batches, the last perhaps without rows of their own: with sharded weights
    # they wait for each other in every forward.
    for number in range(math.ceil(len(rows) / (batch_size * processes))):
        first = (number * processes + accelerator.process_index) * batch_size
        own = range(first, min(first + batch_size, len(rows)))
        batch = default_collate([rows[row] for row in own or range(1)])
        total += objective(*sequences(batch, accelerator.device)) * len(own)
    loss = accelerator.reduce(total, "sum").item() / len(rows)
    return {"validation_loss": loss, "validation_perplexity": torch.tensor(loss).double().exp().item()}
