# SPDX-License-Identifier: Apache-2.0
"""What the VQGAN is trained to do: reconstruct a picture from its image tokens."""

import torch
import torch.nn.functional as F
from torch import nn

from ..model.modeling_vqgan import PaiPainterVQModel
from .arguments import VQGANTrainingArguments

__all__ = ["VQGANObjective", "blank_patches"]

# Of white's 1.0: an 8-bit picture's next level is 0.992.
_WHITE = 0.995


class VQGANObjective(nn.Module):
    """
    One training step's forward, as a module so that DDP sees it.

    The loss is L1 + `l2_weight`·L2 + `gradient_weight`·L1 of the differences of neighbouring pixels, plus
    `commitment_weight`·squared distance of the latents to their codebook entries. No gradient reaches the codebook.
    """

    def __init__(self, vqgan: PaiPainterVQModel, arguments: VQGANTrainingArguments):
        super().__init__()
        self.vqgan, self.arguments = vqgan, arguments

    def forward(self, pixel_values: torch.Tensor, quantise: bool) -> dict[str, torch.Tensor]:
        """
        Takes pixels (batch, channels, resolution, resolution) in [-1, 1]; before the codebook has started, latents are
        not quantised. Gives `loss` and `pixels_loss`, scalars, and for the codebook `latents` (n, embed_dim),
        `image_tokens` (n,) and `errors` (n,), where n = batch × image tokens of a picture.
        """
        vqgan = self.vqgan
        latents = vqgan.encode_latents(pixel_values).float()  # (B, D, g, g)
        vectors = latents.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (B*g*g, D)
        if not quantise:
            reconstruction = vqgan.decode_latents(latents).float()
            commitment = latents.new_zeros(())
            image_tokens = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
        else:
            # Half precision would take the wrong one of two near entries.
            with torch.autocast(latents.device.type, enabled=False):
                image_tokens = vqgan.quantize.nearest(latents.detach())  # (B, g*g)
            if self.arguments.blank_code:
                blank = blank_patches(pixel_values, vqgan.config.image_grid)
                image_tokens = image_tokens.masked_fill(blank.flatten(1), 0)
            quantized = vqgan.quantize(image_tokens, vqgan.config.image_grid)
            commitment = F.mse_loss(latents, quantized)
            # Straight through: the decoder sees the entries, the encoder gets the decoder's gradient.
            reconstruction = vqgan.decode_latents(latents + (quantized - latents).detach()).float()
        error = reconstruction - pixel_values
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        pixels_loss = error.abs().mean() + self.arguments.l2_weight * error.pow(2).mean()
        pixels_loss = pixels_loss + self.arguments.gradient_weight * edges
        patch_errors = F.adaptive_avg_pool2d(error.abs().detach(), vqgan.config.image_grid)
        return {
            "loss": pixels_loss + self.arguments.commitment_weight * commitment,
            "pixels_loss": pixels_loss.detach(),
            "latents": vectors,
            "image_tokens": image_tokens.flatten(),
            "errors": patch_errors.mean(1).flatten(),
        }


def blank_patches(pixel_values: torch.Tensor, grid: int) -> torch.Tensor:
    """Which of the grid's patches are plain white: (batch, channels, height, width) → bool (batch, grid, grid)."""
    darkest = -F.adaptive_max_pool2d(-pixel_values.amin(1, keepdim=True), grid)
    return darkest.squeeze(1) > _WHITE
