# SPDX-License-Identifier: Apache-2.0
"""What the painter makes of fixed captions, as a grid to look at."""

from pathlib import Path
from typing import cast

import datasets
import torch
from PIL import Image

from ..data.open_picture import open_picture
from ..imaging.grids import draw_grid
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor

__all__ = ["draw_samples"]

_BATCH = 8
_COLUMNS = ("原图", "编解码", "生成")  # the original, through the VQGAN, painted


@torch.no_grad()
def draw_samples(
    painter: PaiPainterForImageGeneration,
    vqgan: PaiPainterVQModel,
    processor: PaiPainterProcessor,
    rows: datasets.Dataset | None,
    prompts: list[str],
    seed: int,
    path: Path,
) -> None:
    """
    A line for each caption: the original, what the VQGAN keeps of it, and what the model paints with its own settings.

    Args:
        painter: in evaluation mode.
        rows: validation rows with `captions` and `picture`, each shown with its first caption.
        prompts: further captions, without a picture.
        seed: of all pictures.
        path: the PNG file.
    """
    images, pictures = processor.image_processor, [] if rows is None else rows["picture"]
    captions = [*([] if rows is None else (row[0] for row in rows["captions"])), *prompts]
    if not captions:
        return

    def decode(image_tokens: torch.Tensor) -> list[Image.Image]:
        pixel_values = vqgan.decode(cast(torch.LongTensor, image_tokens)).cpu()
        return cast(list[Image.Image], images.postprocess(pixel_values, output_type="pil"))

    painted: list[Image.Image] = []
    for start in range(0, len(captions), _BATCH):
        input_ids = processor(text=captions[start : start + _BATCH], return_tensors="pt")["input_ids"]
        painted += decode(painter.generate_images(input_ids.to(vqgan.device), seed=seed, decode=False)["image_tokens"])
    cells: list[Image.Image] = []
    for number, image in enumerate(painted):
        if number < len(pictures):
            pixels = images(open_picture(pictures[number]), generator=0, return_tensors="pt")["pixel_values"]
            kept = decode(vqgan.encode(pixels.to(vqgan.device))["image_tokens"])
            cells += [*cast(list[Image.Image], images.postprocess(pixels)), *kept, image]
        else:
            cells += [*[Image.new("RGB", image.size, "white")] * 2, image]
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [caption for caption in captions for _ in _COLUMNS]
    draw_grid(cells, captions=texts, columns=len(_COLUMNS), column_labels=_COLUMNS).save(path)
