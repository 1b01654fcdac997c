# SPDX-License-Identifier: Apache-2.0
"""What the painter makes of fixed captions, as a grid to look at."""

from pathlib import Path
from typing import cast

import datasets
import torch
from PIL import Image

from ..data.pictures import open_picture
from ..imaging.grids import draw_grid
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor

__all__ = ["draw_samples"]

_BATCH = 8
_LABELS = ("原图", "编解码", "生成")  # the original, through the VQGAN, painted


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
    A grid of pictures: originals, what the VQGAN keeps of them, and what is painted for their captions with the model's
    own settings. Captions without a picture come last.

    Args:
        painter: in evaluation mode.
        rows: validation rows with `captions` and `picture`, each shown with its first caption.
        prompts: further captions.
        seed: of all pictures.
        path: the PNG file.
    """
    images = processor.image_processor
    captions = [*([] if rows is None else (row[0] for row in rows["captions"])), *prompts]
    if not captions:
        return

    def decode(image_tokens: torch.Tensor) -> list[Image.Image]:
        pixel_values = vqgan.decode(cast(torch.LongTensor, image_tokens)).cpu()
        return cast(list[Image.Image], images.postprocess(pixel_values, output_type="pil"))

    originals: list[Image.Image] = []
    kept: list[Image.Image] = []
    for row in rows or ():
        pixel_values = images(open_picture(row["picture"]), generator=0, return_tensors="pt")["pixel_values"]
        originals += cast(list[Image.Image], images.postprocess(pixel_values))
        kept += decode(vqgan.encode(pixel_values.to(vqgan.device))["image_tokens"])
    painted: list[Image.Image] = []
    for start in range(0, len(captions), _BATCH):
        input_ids = processor(text=captions[start : start + _BATCH], return_tensors="pt")["input_ids"]
        painted += decode(painter.generate_images(input_ids.to(vqgan.device), seed=seed, decode=False)["image_tokens"])
    path.parent.mkdir(parents=True, exist_ok=True)
    _grid([originals, kept, painted] if originals else [painted], captions).save(path)


def _grid(lines: list[list[Image.Image]], captions: list[str]) -> Image.Image:
    """The lines below each other, in blocks of eight columns; short lines are filled with white."""
    columns = min(_BATCH, len(captions))
    filled = -(-len(captions) // columns) * columns
    blank = Image.new("RGB", lines[-1][0].size, "white")
    lines = [line + [blank] * (filled - len(line)) for line in lines]
    captions = captions + [""] * (filled - len(captions))
    blocks = [slice(start, start + columns) for start in range(0, filled, columns)]
    return draw_grid(
        [image for block in blocks for line in lines for image in line[block]],
        captions=[caption for block in blocks for _ in lines for caption in captions[block]],
        columns=columns,
        row_labels=_LABELS[-len(lines) :] * len(blocks),
    )
