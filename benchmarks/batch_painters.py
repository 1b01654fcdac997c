# SPDX-License-Identifier: Apache-2.0
"""Batches of captions to PNG, with random weights: ours at each speed, and transformers' GPT-2 of the same size."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from painters import PublishedPainter
from steps import StepSettings, build_painter, build_processor, made_up_caption
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, StoppingCriteria

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration, PaiPainterProcessor
from pai_painter.cpu.decoding import DecodingLoop
from pai_painter.cpu.speed import SpeedName

__all__ = [
    "GPT2",
    "PUBLISHED",
    "TOP_K",
    "BatchPainter",
    "Gpt2Way",
    "OurWay",
    "Painted",
    "WaySettings",
    "build_gpt2",
    "build_way",
]

PUBLISHED, GPT2 = "published", "GPT-2"
TOP_K = 100


@dataclass(frozen=True)
class WaySettings:
    """What paints (`PUBLISHED`, `GPT2` or one of our speeds), and how many pictures at once."""

    way: str
    size: str = "base"
    rows: int = 1


@dataclass(frozen=True)
class Painted:
    """
    Args:
        written (`list[float]`): Seconds from the beginning until each token was there.
        steps (`int`): How often all layers were gone through behind the caption's turn: once for each further token, or
            less if tokens were drafted.
        decoding_seconds (`float`): From tokens to pixels.
        png_seconds (`float`): From pixels to files.
        sizes (`list[int]`): Bytes of each file.
    """

    written: list[float]
    steps: int
    decoding_seconds: float
    png_seconds: float
    sizes: list[int]


class Way(Protocol):
    """A way to paint: the two halves in which the ways differ."""

    def write(self, caption_ids: torch.Tensor, copies: int, clock: "StepClock") -> torch.Tensor:
        """Codes (captions * copies, up to num_image_tokens) for caption ids (captions, text_length)."""

    def decode(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Pixels (pictures, 3, resolution, resolution) for tokens (pictures, num_image_tokens)."""


def build_way(settings: WaySettings) -> Callable[..., Any]:
    """A [`BatchPainter`], or of the published way its parts: see [`PublishedPainter.part`]."""
    torch.manual_seed(0)
    published = settings.way == PUBLISHED
    painter = build_painter(StepSettings(settings.size, attn_implementation="eager" if published else "sdpa")).eval()
    processor = build_processor(painter.config)
    if published:
        captions = [made_up_caption(row) for row in range(settings.rows)]
        return PublishedPainter(painter, processor, TOP_K).part(captions)
    if settings.way == GPT2:
        return BatchPainter(Gpt2Way(painter), processor, painter.config)
    return BatchPainter(OurWay(painter, settings.way), processor, painter.config)


class StepClock(StoppingCriteria):
    """Notes when each token is there, and ends the writing after so many of them."""

    def __init__(self, last: int):
        self.last = last
        self.times: list[float] = []
        self.passes: int | None = None  # through all layers, the caption's included, where a token is not a pass

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.full((len(input_ids),), len(self.times) >= self.last)


@contextmanager
def _counted_by(clock: StepClock) -> Iterator[None]:
    """Counts the passes of the writer that the painter makes for itself."""
    hidden, clock.passes = DecodingLoop._hidden, 0

    def counted(writer: DecodingLoop, ids: torch.Tensor, start: int) -> torch.Tensor:
        clock.passes += 1
        return hidden(writer, ids, start)

    DecodingLoop._hidden = counted
    try:
        yield
    finally:
        DecodingLoop._hidden = hidden


class OurWay:
    """`generate_images` and `decode_images`, as the pipeline calls them."""

    def __init__(self, painter: PaiPainterForImageGeneration, speed: SpeedName, top_k: int = TOP_K):
        self.painter, self.speed, self.top_k = painter, speed, top_k

    def write(self, caption_ids: torch.Tensor, copies: int, clock: StepClock) -> torch.Tensor:
        with _counted_by(clock):
            painted = self.painter.generate_images(
                caption_ids,
                copies,
                seed=0,
                top_k=self.top_k,
                decode=False,
                speed=self.speed,
                stopping_criteria=[clock],
            )
        return painted.image_tokens

    def decode(self, image_tokens: torch.Tensor) -> torch.Tensor:
        return self.painter.decode_images(image_tokens, self.speed)


class Gpt2Way:
    """What one gets without this package: GPT-2's `generate` with its key/value cache, and the VQGAN as it is."""

    def __init__(self, painter: PaiPainterForImageGeneration, top_k: int = TOP_K):
        self.gpt2, self.vqgan, self.top_k = build_gpt2(painter.config), painter.vqgan, top_k
        self.num_image_tokens = painter.config.num_image_tokens

    def write(self, caption_ids: torch.Tensor, copies: int, clock: StepClock) -> torch.Tensor:
        sequences = self.gpt2.generate(
            caption_ids,
            do_sample=True,
            top_k=self.top_k,
            num_return_sequences=copies,
            max_new_tokens=self.num_image_tokens,
            stopping_criteria=[clock],
        )
        return sequences[:, caption_ids.shape[1] :]

    @torch.no_grad()
    def decode(self, image_tokens: torch.Tensor) -> torch.Tensor:
        return self.vqgan.decode(image_tokens)


def build_gpt2(config: PaiPainterConfig) -> GPT2LMHeadModel:
    """transformers' GPT-2 with as many parameters as a painter has without its VQGAN, and with as many logits."""
    same = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_position_embeddings,
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    gpt2 = GPT2LMHeadModel(same)
    gpt2.lm_head = nn.Linear(config.hidden_size, config.image_vocab_size, bias=False)
    return gpt2.eval()


class BatchPainter:
    """
    From captions to the bytes of PNG files.

    Args:
        way ([`Way`]): Writes and decodes tokens.
        processor ([`PaiPainterProcessor`]): Captions to ids, pixels to pictures.
        config ([`PaiPainterConfig`]): The painter's.
    """

    def __init__(self, way: Way, processor: PaiPainterProcessor, config: PaiPainterConfig):
        self.way, self.processor, self.num_image_tokens = way, processor, config.num_image_tokens

    def __call__(self, captions: int, copies: int, tokens: int | None = None) -> Painted:
        """
        Args:
            captions: how many.
            copies: pictures of each.
            tokens: stop writing after so many, for warming up; the others are 0.
        """
        start = time.perf_counter()
        texts = [made_up_caption(row) for row in range(captions)]
        caption_ids = self.processor(text=texts, return_tensors="pt")["input_ids"]
        clock = StepClock(tokens or self.num_image_tokens)
        image_tokens = self.way.write(caption_ids, copies, clock)
        image_tokens = F.pad(image_tokens, (0, self.num_image_tokens - image_tokens.shape[1]))
        written = time.perf_counter()
        pixel_values = self.way.decode(image_tokens)
        decoded = time.perf_counter()
        sizes = []
        for image in self.processor.image_processor.postprocess(pixel_values, "pil"):
            file = io.BytesIO()
            image.save(file, "PNG")
            sizes.append(file.tell())
        ended = time.perf_counter()
        times = [each - start for each in clock.times]
        steps = (len(times) if clock.passes is None else clock.passes) - 1
        return Painted(times, steps, decoded - written, ended - decoded, sizes)
