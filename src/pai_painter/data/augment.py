# SPDX-License-Identifier: Apache-2.0
"""Small changes of pictures that leave their meaning alone."""

import torch
import torch.nn.functional as F

__all__ = ["shift_and_flip"]


def shift_and_flip(pixel_values: torch.Tensor, max_shift: int, flip: bool, generator: torch.Generator) -> torch.Tensor:
    """
    Moves each picture by up to `max_shift` pixels (its border is repeated) and, with `flip`, mirrors every second.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`)

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    batch, _, height, width = pixel_values.shape
    padded = F.pad(pixel_values, [max_shift] * 4, mode="replicate")
    offsets = torch.randint(0, 2 * max_shift + 1, (batch, 2), generator=generator).tolist()
    mirrored = (torch.rand(batch, generator=generator) < 0.5).tolist()
    moved = [
        picture[:, down : down + height, right : right + width]
        for picture, (down, right) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(
        [picture.flip(-1) if flip and mirror else picture for picture, mirror in zip(moved, mirrored, strict=True)]
    )
