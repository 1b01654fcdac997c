# SPDX-License-Identifier: Apache-2.0
"""One optimizer step of the painter, the published way and ours, on made-up pictures and captions."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import datasets
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import default_collate

from pai_painter import (
    DEMO_MODEL,
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterImageProcessor,
    PaiPainterProcessor,
    PaiPainterTokenizer,
    PaiPainterVQConfig,
)
from pai_painter.lora import add_lora
from pai_painter.training.arguments import PainterTrainingArguments
from pai_painter.training.painter_model import take_vqgan
from pai_painter.training.painter_objective import PainterObjective
from pai_painter.training.painter_rows import CaptionedRows, sequences
from pai_painter.training.training_run import build_optimizer

__all__ = [
    "CONFIGS",
    "OurStep",
    "PublishedStep",
    "StepSettings",
    "build_painter",
    "build_processor",
    "build_step",
    "made_up_caption",
    "made_up_rows",
]

# Sizes of the released models, and one for trying the scripts out.
CONFIGS: dict[str, Callable[[], PaiPainterConfig]] = {
    "base": PaiPainterConfig,
    "large": lambda: PaiPainterConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
    "tiny": lambda: PaiPainterConfig(
        vq_config=PaiPainterVQConfig(
            resolution=32, base_channels=8, channel_multiplier=[1, 2, 2], norm_num_groups=4, num_embeddings=64
        ),
        image_vocab_size=64,
        text_vocab_size=2000,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    ),
}
datasets.disable_progress_bars()

_COLOURS, _THINGS = "红橙黄绿青蓝紫", "猫狗花鸟鱼船山树"


@dataclass(frozen=True)
class StepSettings:
    """What is trained, and how."""

    size: str = "base"
    batch_size: int = 4
    published: bool = False
    mixed_precision: str = "no"
    attn_implementation: str = "sdpa"
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    lora_rank: int | None = None


def build_step(settings: StepSettings) -> Callable[[], float]:
    """What takes one step each time it is called and returns the loss."""
    torch.manual_seed(0)
    painter = build_painter(settings)
    return PublishedStep(painter, settings) if settings.published else OurStep(painter, settings)


def build_painter(settings: StepSettings) -> PaiPainterForImageGeneration:
    """A painter with random weights, of which those that `settings` asks for are trained."""
    config = CONFIGS[settings.size]()
    painter = PaiPainterForImageGeneration._from_config(config, attn_implementation=settings.attn_implementation)
    painter.vqgan.requires_grad_(False)
    if settings.lora_rank is not None:
        add_lora(painter, settings.lora_rank)
    if settings.gradient_checkpointing:
        painter.activation_checkpointing_enable()
    return painter.train()


def build_processor(config: PaiPainterConfig) -> PaiPainterProcessor:
    """The demo model's vocabulary, filled up with made-up pieces, and the model's sizes."""
    pieces = PaiPainterTokenizer.from_pretrained(DEMO_MODEL).get_vocab()
    vocabulary = sorted(pieces, key=pieces.__getitem__)
    vocabulary += [f"##made-up-{number}" for number in range(config.text_vocab_size - len(vocabulary))]
    tokenizer = PaiPainterTokenizer(vocabulary, config.image_vocab_size, config.text_length)
    return PaiPainterProcessor(PaiPainterImageProcessor(size=config.vq_config.resolution), tokenizer)


def made_up_caption(row: int) -> str:
    """The caption of a row."""
    return f"{_COLOURS[row % len(_COLOURS)]}色的{_THINGS[row % len(_THINGS)]}"


def made_up_rows(config: PaiPainterConfig, count: int) -> datasets.Dataset:
    """Rows as the cache of tokens has them; every token is as likely as any other."""
    tokens = torch.randint(config.image_vocab_size, (count, 1, config.num_image_tokens))
    captions = [[made_up_caption(row)] for row in range(count)]
    columns = {"idx": [str(row) for row in range(count)], "captions": captions, "image_tokens": tokens.tolist()}
    return datasets.Dataset.from_dict(columns)


class OurStep:
    """The step of `train.py` in its second epoch: tokens come from a table on the disk, the head skips the caption."""

    def __init__(self, painter: PaiPainterForImageGeneration, settings: StepSettings):
        config = painter.config
        self._folder = tempfile.TemporaryDirectory(prefix="tokens-")
        made_up_rows(config, 4 * settings.batch_size).save_to_disk(self._folder.name)
        self.rows = CaptionedRows(datasets.load_from_disk(self._folder.name), build_processor(config))
        self.vqgan = take_vqgan(painter)  # stays in memory, as in training
        self.batch_size, self.done = settings.batch_size, 0
        training = PainterTrainingArguments(output_dir=self._folder.name)
        self.max_grad_norm = training.max_grad_norm
        self.accelerator = Accelerator(cpu=True, mixed_precision=settings.mixed_precision)
        objective = PainterObjective(painter, training.pkeep)
        if settings.torch_compile:
            objective.compile()
        optimizer = build_optimizer(objective, training)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)

    def __call__(self) -> float:
        first = self.done * self.batch_size
        items = [self.rows[1, row % len(self.rows)] for row in range(first, first + self.batch_size)]
        loss = self.objective(*sequences(default_collate(items), self.accelerator.device))
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return loss.item()


class PublishedStep:
    """
    A step the way EasyNLP's trainer takes it: every picture goes through the VQGAN again, logits are computed at all
    positions, everything is float32, and AdamW goes from weight to weight.

    The loop is favoured where it was easy: pictures lie in memory, decoded and scaled, and captions as ids; attention
    and VQGAN are ours, in the same operations.
    """

    def __init__(self, painter: PaiPainterForImageGeneration, settings: StepSettings):
        self.painter, config = painter, painter.config
        rows, side = settings.batch_size, config.vq_config.resolution
        shape = (rows, config.text_length)
        self.caption_ids = torch.randint(config.image_vocab_size, config.vocab_size, shape)
        self.pixel_values = torch.rand(rows, config.vq_config.in_channels, side, side) * 2 - 1
        self.trained = [parameter for parameter in painter.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=4e-5, foreach=False, fused=False)

    def __call__(self) -> float:
        loss = self.loss(self.caption_ids, self.pixel_values)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def loss(self, caption_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Args:
            caption_ids (`torch.LongTensor` of shape `(batch, text_length)`)
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, resolution, resolution)`): In [-1, 1].

        Returns:
            Mean cross-entropy of the tokens.
        """
        with torch.no_grad():
            image_tokens = self.painter.vqgan.encode(pixel_values).image_tokens
        sequence = torch.cat([caption_ids, image_tokens], dim=1)[:, :-1]
        logits = self.painter(sequence, use_cache=False).logits  # (B, text_length + tokens - 1, image_vocab_size)
        logits = logits[:, caption_ids.shape[1] - 1 :]
        return nn.functional.cross_entropy(logits.flatten(0, 1), image_tokens.flatten())
