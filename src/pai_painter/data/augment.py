# SPDX-License-Identifier: Apache-2.0
"""Small changes of pictures that leave their meaning alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image

from ..model.image_processing_pai_painter import PaiPainterImageProcessor


@dataclass(frozen=True)
class Augmentation:
    """How copies of pictures differ: a random square is cut out, every second is mirrored, all move by some pixels."""

    random_crop: bool = False
    random_flip: bool = False
    max_shift: int = 0

    def prepare(
        self, images: Sequence[Image.Image], processor: PaiPainterImageProcessor, generator: torch.Generator
    ) -> torch.Tensor:
        """Changed copies of pictures: (images, 3, size, size) in [-1, 1]."""
        options = {"random_crop": True} if self.random_crop else {}  # or what the processor is set to
        pixel_values = processor([*images], generator=generator, return_tensors="pt", **options)["pixel_values"]
        return shift_and_flip(pixel_values, self.max_shift, self.random_flip, generator)


def shift_and_flip(pixel_values: torch.Tensor, max_shift: int, flip: bool, generator: torch.Generator) -> torch.Tensor:
    """Moves pictures (batch, channels, height, width), repeating their borders; with `flip`, mirrors every second."""
    batch, _, height, width = pixel_values.shape
    padded = F.pad(pixel_values, [max_shift] * 4, mode="replicate")
    offsets = torch.randint(0, 2 * max_shift + 1, (batch, 2), generator=generator).tolist()
    mirrored = (torch.rand(batch, generator=generator) < 0.5).tolist()
    moved = []
    for picture, (down, right), mirror in zip(padded, offsets, mirrored, strict=True):
        picture = picture[:, down : down + height, right : right + width]
        moved.append(picture.flip(-1) if flip and mirror else picture)
    return torch.stack(moved)
