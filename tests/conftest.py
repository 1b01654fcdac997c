# SPDX-License-Identifier: Apache-2.0
"""A tiny painter with random weights, made once: real classes, 16×16 pixels, 4×4 codes of 64."""

# First, since libraries read the environment that it sets when they are imported.
from loopback_only import loopback_only

# isort: split
import logging
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import HubStandIn, running_hub

from pai_painter import (
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterImageProcessor,
    PaiPainterPipeline,
    PaiPainterProcessor,
    PaiPainterTokenizer,
    PaiPainterVQConfig,
)

__all__ = ["loopback_only"]  # a fixture of every test

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A Hub of this test's own, with an empty cache before it, in this process and in those that it starts."""
    cache = str(tmp_path_factory.mktemp("hub-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with running_hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def own_news() -> Iterator[None]:
    """A command sets up where our news go; it must not stay so for tests that look for them."""
    logger, captions = logging.getLogger("pai_painter"), logging.getLogger("pai_painter.model.processing_pai_painter")
    before, filters = (logger.handlers, logger.propagate, logger.level), captions.filters[:]
    yield
    logger.handlers, logger.propagate, logger.level = before
    captions.filters[:] = filters


@pytest.fixture(scope="session")
def tiny_painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painter's folder in the native layout. Copy it before you change it."""
    vq_config = PaiPainterVQConfig(
        resolution=16,
        base_channels=8,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=1,
        attn_resolutions=[4],
        latent_channels=8,
        embed_dim=8,
        num_embeddings=64,
        norm_num_groups=4,
    )
    config = PaiPainterConfig(
        vq_config=vq_config,
        image_vocab_size=64,
        text_length=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,  # so that captions make a difference
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PaiPainterForImageGeneration(config)
        with torch.no_grad():
            model.vqgan.quantize.embedding.weight.normal_()  # so that codes make a difference
    processor = PaiPainterProcessor(
        PaiPainterImageProcessor(size=vq_config.resolution),
        PaiPainterTokenizer.from_pretrained(
            GOLDEN, image_vocab_size=config.image_vocab_size, model_max_length=config.text_length
        ),
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-painter"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(tiny_painter: Path) -> PaiPainterPipeline:
    pipe = PaiPainterPipeline.from_pretrained(tiny_painter)
    pipe.set_progress_bar_config(disable=True)
    return pipe
