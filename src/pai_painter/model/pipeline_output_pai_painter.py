# SPDX-License-Identifier: Apache-2.0
"""What the pipeline gives."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

__all__ = ["PaiPainterPipelineOutput"]


@dataclass
class PaiPainterPipelineOutput(BaseOutput):
    """
    Pictures in the order of the captions, `num_images_per_prompt` of each.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): By `output_type`: Pillow pictures, an array
            (pictures, side, side, 3) in [0, 1], a tensor (pictures, 3, side, side) in [0, 1], or the image tokens.
        scores (`list[float]`): Mean log-likelihood under the model, in nats per image token; `None` if the
            generation was interrupted.
        seeds (`list[int]`): The seed of each picture. It paints the picture again with `best_of=1`.
        image_tokens (`torch.LongTensor` of shape `(pictures, num_image_tokens)`): Raster order; fewer columns if the
            painting was interrupted.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    scores: list[float | None]
    seeds: list[int]
    image_tokens: torch.LongTensor
