# SPDX-License-Identifier: Apache-2.0
"""What the painter makes of fixed captions, as a grid to look at."""

import math
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

_BATCH = _COLUMNS = 8
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
    A row of pictures for each of three things: originals, what the VQGAN keeps of them, and what is painted for their
    captions with the model's own settings. Captions without a picture come last.

    Args:
        painter: in evaluation mode.
        rows: validation rows with `captions` and `picture`, each shown with its first caption.
        prompts: further captions.
        seed: of all pictures.
        path: the PNG file.
    """
    captions = [*prompts] if rows is None else [*(row[0] for row in rows["captions"]), *prompts]
    if not captions:
        return
    painted: list[Image.Image] = []
    for start in range(0, len(captions), _BATCH):
        input_ids = processor(text=captions[start : start + _BATCH], return_tensors="pt")["input_ids"]
        codes = painter.generate_images(input_ids.to(vqgan.device), seed=seed, decode=False)["image_tokens"]
        painted += _decode(vqgan, processor, codes)
    lines = [painted]
    if rows is not None:
        lines = [*_originals(vqgan, processor, rows), painted]
    path.parent.mkdir(parents=True, exist_ok=True)
    _page(lines, captions).save(path)


def _page(lines: list[list[Image.Image]], captions: list[str]) -> Image.Image:
    """The lines one below the other, broken where the page is wide enough; lines that are too short are filled up."""
    blank = Image.new("RGB", lines[-1][0].size, "white")
    filled = math.ceil(len(captions) / _COLUMNS) * _COLUMNS if len(captions) > _COLUMNS else len(captions)
    columns = min(_COLUMNS, filled)
    lines = [line + [blank] * (filled - len(line)) for line in lines]
    captions = captions + [""] * (filled - len(captions))
    blocks = range(0, filled, columns)
    return draw_grid(
        [image for start in blocks for line in lines for image in line[start : start + columns]],
        captions=[caption for start in blocks for _ in lines for caption in captions[start : start + columns]],
        columns=columns,
        row_labels=_LABELS[-len(lines) :] * len(blocks),
    )


def _originals(
    vqgan: PaiPainterVQModel, processor: PaiPainterProcessor, rows: datasets.Dataset
) -> list[list[Image.Image]]:
    """Pictures as the VQGAN is given them, and as it gives them back."""
    images = processor.image_processor
    originals: list[Image.Image] = []
    kept: list[Image.Image] = []
    for row in rows:
        pixel_values = images(open_picture(row["picture"]), generator=0, return_tensors="pt")["pixel_values"]
        originals += cast(list[Image.Image], images.postprocess(pixel_values))
        kept += _decode(vqgan, processor, vqgan.encode(pixel_values.to(vqgan.device))["image_tokens"])
    return [originals, kept]


def _decode(vqgan: PaiPainterVQModel, processor: PaiPainterProcessor, codes: torch.Tensor) -> list[Image.Image]:
    pixel_values = vqgan.decode(cast(torch.LongTensor, codes)).cpu()
    return cast(list[Image.Image], processor.image_processor.postprocess(pixel_values, output_type="pil"))
