# SPDX-License-Identifier: Apache-2.0
"""What the painter learns: to predict each image token from the caption and the image tokens before it."""

import torch

from ..model.modeling_pai_painter import PaiPainterForImageGeneration

__all__ = ["PainterObjective"]


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
