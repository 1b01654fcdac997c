# SPDX-License-Identifier: Apache-2.0
"""Captions to PNG, the published way and ours, with random weights."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from steps import StepSettings, build_painter, build_processor, made_up_caption

from pai_painter import PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor
from pai_painter.batch.paint_captions import PaintCaptions, PredictOptions

__all__ = ["OurPainter", "PainterSettings", "PublishedPainter", "build_part_of_painting", "prefix_weights"]

_PUBLISHED_TOP_K = 100


@dataclass(frozen=True)
class PainterSettings:
    """What paints, and how many pictures at once."""

    size: str = "base"
    batch_size: int = 8
    published: bool = False


def build_part_of_painting(settings: PainterSettings) -> Callable[..., Any]:
    """
    What can be timed: ours paints a batch and returns its files' bytes; the published way takes one step with a prefix
    of a given length, or without one decodes the picture of one row.
    """
    torch.manual_seed(0)
    attention = "eager" if settings.published else "sdpa"
    model = build_painter(StepSettings(settings.size, attn_implementation=attention)).eval()
    captions = [made_up_caption(row) for row in range(settings.batch_size)]
    processor = build_processor(model.config)
    if settings.published:
        return PublishedPainter(model, processor).part(captions)
    painter = OurPainter(PaiPainterPipeline(model, processor), settings.batch_size)
    return lambda: sum(map(len, painter.paint(captions)))


class OurPainter:
    """`pai-painter predict` from the rows of a shard to the files' bytes."""

    def __init__(self, pipe: PaiPainterPipeline, batch_size: int, top_k: int | None = None):
        options = PredictOptions(batch_size=batch_size, top_k=top_k)
        self.painter = PaintCaptions(pipe, options, model_name="benchmark")

    def paint(self, captions: list[str]) -> list[bytes]:
        """A PNG for each caption of a batch."""
        rows = [(str(line), caption) for line, caption in enumerate(captions, 1)]
        return [pictures[0].png for pictures in self.painter.paint(rows)]


class PublishedPainter:
    """
    Prediction the way EasyNLP's predictor does it: the whole prefix goes through the transformer again for every token,
    logits are computed at all its positions, and the whole batch goes through the VQGAN once for every row of it.

    The loop is favoured where it was easy: captions come as ids, and pictures aren't turned into base64; attention and
    VQGAN are ours, in the same operations.
    """

    def __init__(
        self, model: PaiPainterForImageGeneration, processor: PaiPainterProcessor, top_k: int = _PUBLISHED_TOP_K
    ):
        self.model, self.processor, self.top_k = model, processor, top_k

    def caption_ids(self, captions: list[str]) -> torch.Tensor:
        """Ids (B, text_length)."""
        return self.processor(text=captions, return_tensors="pt")["input_ids"]

    def paint(self, captions: list[str]) -> list[bytes]:
        """A PNG for each caption."""
        image_tokens = self.tokens(self.caption_ids(captions))
        return [self.picture(image_tokens, row) for row in range(len(captions))]

    def tokens(self, caption_ids: torch.Tensor) -> torch.Tensor:
        """
        Args:
            caption_ids (`torch.LongTensor` of shape `(batch, text_length)`)

        Returns:
            `torch.LongTensor` of shape `(batch, num_image_tokens)`.
        """
        sequence = caption_ids
        for _ in range(self.model.config.num_image_tokens):
            sequence = torch.cat([sequence, self.next_code(sequence)], dim=1)
        return sequence[:, caption_ids.shape[1] :]

    @torch.no_grad()
    def next_code(self, sequence: torch.Tensor) -> torch.Tensor:
        """One step: a token (B, 1) after a prefix (B, T)."""
        logits = self.model(sequence, use_cache=False).logits[:, -1]  # (B, image_vocab_size)
        lowest = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
        probabilities = logits.masked_fill(logits < lowest, float("-inf")).softmax(-1)
        return probabilities.multinomial(1)

    @torch.no_grad()
    def picture(self, image_tokens: torch.Tensor, row: int) -> bytes:
        """The PNG of one row, for which the whole batch is decoded."""
        pixel_values = self.model.vqgan.decode(image_tokens)  # (B, 3, resolution, resolution)
        file = io.BytesIO()
        self.processor.image_processor.postprocess(pixel_values[row, None], "pil")[0].save(file, "PNG")
        return file.getvalue()

    def part(self, captions: list[str]) -> Callable[[int | None], Any]:
        """See [`build_part_of_painting`]; made-up tokens so far cost nothing and change no duration."""
        config, caption_ids = self.model.config, self.caption_ids(captions)
        tokens = torch.randint(config.image_vocab_size, (len(captions), config.num_image_tokens))
        sequence = torch.cat([caption_ids, tokens], dim=1)

        def take(prefix: int | None) -> int:
            if prefix is None:
                return len(self.picture(tokens, 0))
            return len(self.next_code(sequence[:, :prefix]))

        return take


def prefix_weights(first: int, last: int, timed: int) -> dict[int, float]:
    """
    Which lengths of the prefix to time, and how much each counts for the sum over all from `first` to `last`: between
    them the duration is taken as a straight line (the trapezoid rule, with half a step more at both ends).
    """
    if timed > last - first:
        return dict.fromkeys(range(first, last + 1), 1.0)
    lengths = [round(first + (last - first) * place / (timed - 1)) for place in range(timed)]
    weights = dict.fromkeys(lengths, 0.0)
    weights[first] += 0.5
    weights[last] += 0.5
    for left, right in pairwise(lengths):
        weights[left] += (right - left) / 2
        weights[right] += (right - left) / 2
    return weights
