# SPDX-License-Identifier: Apache-2.0
"""A shard's captions to pictures, in batches of one shape."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image

from ..data.tsv import BadRow
from ..imaging.painting import PaintingOptions
from ..model.pipeline_pai_painter import PaiPainterPipeline
from .captions import CaptionRow
from .pictures import PaintedRow, Picture, PictureEncoder
from .plan import Plan, row_seed

__all__ = ["ShardPainter"]

# Pictures that the VQGAN decodes at once: a chunk of one shape, so that the neighbours' number doesn't matter.
_DECODED_AT_ONCE = {"cpu": 4}
_DECODED_AT_ONCE_ELSEWHERE = 8


class ShardPainter:
    """
    Paints rows. A row's pictures depend on its caption, its id and its place in the file alone: every batch has the
    same shape, and every picture its own place in one.

    Args:
        pipe ([`PaiPainterPipeline`]): The painter.
        plan ([`Plan`]): Which row is where.
        options ([`PaintingOptions`]): How it paints.
        seed (`int`): See [`row_seed`].
        encoder ([`PictureEncoder`]): To files.
    """

    def __init__(
        self, pipe: PaiPainterPipeline, plan: Plan, options: PaintingOptions, seed: int, encoder: PictureEncoder
    ) -> None:
        self.model, self.processor, self.plan = pipe.model, pipe.processor, plan
        self.options, self.seed, self.encoder = options, seed, encoder
        self.device = self.model.device
        self.chunk = _DECODED_AT_ONCE.get(self.device.type, _DECODED_AT_ONCE_ELSEWHERE)

    @torch.no_grad()
    def paint(
        self, shard: int, rows: Sequence[CaptionRow | BadRow], batch_size: int, progress: Callable[[int], object]
    ) -> Iterator[PaintedRow]:
        """
        The good rows of a shard, each as soon as all its pictures are painted.

        Args:
            shard (`int`): Its number.
            rows (`Sequence[CaptionRow | BadRow]`): Its rows; bad ones leave their places free.
            batch_size (`int`): Pictures of a batch.
            progress (`Callable`): Called with the number of pictures that a batch has added.
        """
        num_images, first_row = self.plan.num_images, self.plan.first_row(shard)
        pictures: list[Picture] = []
        for batch in self.plan.batches(shard, batch_size):
            places = [place for place in batch if place < len(rows) * num_images]
            painted = self._paint_batch(
                [(rows[place // num_images], place % num_images) for place in places], batch_size
            )
            for place, picture in zip(places, painted, strict=True):
                row = rows[place // num_images]
                if picture is None or isinstance(row, BadRow):
                    continue
                pictures.append(picture)
                if len(pictures) == num_images:
                    yield PaintedRow(first_row + place // num_images, row.idx, row.text, pictures)
                    pictures = []
            progress(len(places))

    def _paint_batch(self, wanted: Sequence[tuple[CaptionRow | BadRow, int]], batch_size: int) -> list[Picture | None]:
        """A picture, or `None` for a free place, of each row and number of its picture."""
        places = {place: (row, i) for place, (row, i) in enumerate(wanted) if isinstance(row, CaptionRow)}
        if not places:
            return [None] * len(wanted)
        best_of = self.options.best_of
        ids = self._caption_ids([row.caption for row, _ in places.values()])
        # What stands in a free place changes nothing in the others.
        input_ids = ids[:1].repeat(batch_size, 1)  # (B, text_length)
        input_ids[list(places)] = ids
        starts = [0] * batch_size
        for place, (row, i) in places.items():
            starts[place] = row_seed(self.seed, row.idx) + i * best_of
        codes, seeds, scores = self._paint_codes(input_ids, starts)
        images = self._decode(codes, list(places))
        return [
            None
            if place not in places
            else Picture(
                self.encoder.encode(
                    images[place], places[place][0].caption, starts[place], seeds[place], scores[place]
                ),
                starts[place],
                scores[place],
            )
            for place in range(len(wanted))
        ]

    def _caption_ids(self, captions: list[str]) -> torch.Tensor:
        with _quiet_about_long_captions():
            return self.processor(text=captions, return_tensors="pt")["input_ids"]

    def _paint_codes(self, input_ids: torch.Tensor, starts: list[int]) -> tuple[torch.Tensor, list[int], list[float]]:
        """Codes (B, num_image_tokens) of the likeliest candidates, with their seeds and scores."""
        painted = self.model.generate_images(
            input_ids.to(self.device),
            seed=starts,
            temperature=self.options.temperature,
            top_k=self.options.top_k,
            top_p=self.options.top_p,
            best_of=self.options.best_of,
            decode=False,
            speed=self.options.speed,
        )
        return painted.image_tokens, painted.seeds, painted.scores.tolist()

    def _decode(self, codes: torch.Tensor, places: list[int]) -> dict[int, Image.Image]:
        """The pictures at some places of a batch; codes (B, num_image_tokens)."""
        images: dict[int, Image.Image] = {}
        size = min(self.chunk, len(codes))
        for start in range(0, len(codes), size):
            chunk = [min(place, len(codes) - 1) for place in range(start, start + size)]
            if set(chunk) & set(places):
                pixel_values = self.model.decode_images(codes[chunk], self.options.speed)
                images.update(zip(chunk, self.processor.image_processor.postprocess(pixel_values, "pil"), strict=True))
        return images


@contextmanager
def _quiet_about_long_captions() -> Iterator[None]:
    """A warning for each of a million captions helps nobody: the summary counts them."""
    logger = logging.getLogger("pai_painter.model.processing_pai_painter")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
