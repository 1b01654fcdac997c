# SPDX-License-Identifier: Apache-2.0
"""Rows on their way to the painter: a caption's ids, and image tokens from the cache or pixels to be encoded."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from ..data.augment import Augmentation
from ..data.open_picture import open_picture
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from .order import seed_of

Items = dict[str, torch.Tensor]
_UNCHANGED = Augmentation()


class _Rows:
    """Rows of which the caption and the copy of the picture are a function of the seed, the epoch and the row."""

    def __init__(
        self,
        rows: Any,
        processor: PaiPainterProcessor,
        seed: int = 0,
        caption_dropout: float = 0.0,
        augmentation: Augmentation = _UNCHANGED,
    ):
        self.rows, self.processor, self.seed = rows, processor, seed
        self.caption_dropout, self.augmentation = caption_dropout, augmentation

    def _ids(self, caption: str) -> torch.Tensor:
        """(text_length,)"""
        return self.processor(text=caption, return_tensors="pt")["input_ids"][0]

    def _drawn_ids(self, captions: list[str], epoch: int, row: int) -> torch.Tensor:
        """(text_length,), of one of the captions or, with the probability of `caption_dropout`, of the empty one."""
        which, dropped = torch.rand(2, generator=self._generator(6, epoch, row)).tolist()
        return self._ids("" if dropped < self.caption_dropout else captions[int(which * len(captions))])

    def _pictured(self, captions: list[str], picture: Any, epoch: int, row: int) -> Items:
        generator = self._generator(8, epoch, row)
        pixel_values = self.augmentation.prepare([picture], self.processor.image_processor, generator)[0]
        return {"caption_ids": self._drawn_ids(captions, epoch, row), "pixel_values": pixel_values}

    def _generator(self, purpose: int, epoch: int, row: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, purpose, epoch, row))


class CaptionedRows(_Rows, Dataset[Items]):
    """
    `datasets.Dataset` rows as `caption_ids` (text_length,) and `image_tokens` (num_image_tokens,) or, of rows that hold
    pictures, `pixel_values` (3, size, size) of a copy that is new in each epoch.

    Items are asked for by (epoch, row), which fix the caption and the variant of the image tokens. Asked for by row
    alone, the first of each is taken.
    """

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> Items:
        if isinstance(item, int):
            row = self.rows[item]
            return {"caption_ids": self._ids(row["captions"][0]), "image_tokens": torch.tensor(row["image_tokens"][0])}
        row = self.rows[item[1]]
        if "picture" in row:
            return self._pictured(row["captions"], open_picture(row["picture"]), *item)
        variants, number = row["image_tokens"], torch.rand((), generator=self._generator(7, *item)).item()
        tokens = torch.tensor(variants[int(number * len(variants))])
        return {"caption_ids": self._drawn_ids(row["captions"], *item), "image_tokens": tokens}


class StreamedPictures(_Rows, IterableDataset[Items]):
    """
    Rows of a `PictureStream` as `caption_ids` (text_length,), `pixel_values` (3, size, size) and `place` (2,): the
    epoch and position behind which the stream is resumed.
    """

    def __iter__(self) -> Iterator[Items]:
        for row in self.rows:
            item = self._pictured(row.captions, row.picture, row.epoch, row.position)
            yield {**item, "place": torch.tensor([row.epoch, row.position])}


def sequences(batch: Items, device: torch.device, vqgan: PaiPainterVQModel | None = None) -> tuple[torch.Tensor, ...]:
    """
    Batches of captions and image tokens, or of captions and pixels that `vqgan` encodes, → `input_ids` and `labels`,
    both (batch, text_length + num_image_tokens); the labels are -100 on the caption.
    """
    caption_ids = batch["caption_ids"].to(device)
    if vqgan is not None:
        with torch.no_grad():
            image_tokens = vqgan.encode(batch["pixel_values"].to(device))["image_tokens"]
    else:
        image_tokens = batch["image_tokens"].to(device)
    input_ids = torch.cat([caption_ids, image_tokens], dim=1)
    return input_ids, torch.cat([torch.full_like(caption_ids, -100), image_tokens], dim=1)
