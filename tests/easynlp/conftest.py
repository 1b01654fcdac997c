# SPDX-License-Identifier: Apache-2.0
"""A world in which the published commands run: their sizes around next to no weights."""

from pathlib import Path

import datasets
import pytest
import torch
from published_commands import write_tables

from pai_painter import (
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterImageProcessor,
    PaiPainterProcessor,
    PaiPainterTokenizer,
    PaiPainterVQConfig,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def published_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painter of 256×256 pixels, 32 word pieces and 16×16 codes of 16384, as the commands say, but small within."""
    vq_config = PaiPainterVQConfig(
        resolution=256,
        base_channels=4,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        attn_resolutions=[],
        encoder_attention=False,
        latent_channels=4,
        embed_dim=4,
        num_embeddings=16384,
        norm_num_groups=4,
    )
    config = PaiPainterConfig(vq_config=vq_config, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PaiPainterForImageGeneration(config)
    folder = tmp_path_factory.mktemp("published") / "model"
    model.save_pretrained(folder)
    PaiPainterProcessor(PaiPainterImageProcessor(), PaiPainterTokenizer.from_pretrained(GOLDEN)).save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a cache of its own and the tables of the published commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_tables(tmp_path, side=40)
    return tmp_path


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
