# SPDX-License-Identifier: Apache-2.0
"""A model's hash says what it computes, and nothing of where it was loaded from."""

from pathlib import Path

import torch

from pai_painter import PaiPainterConfig, PaiPainterPipeline, PaiPainterVQConfig, PaiPainterVQModel
from pai_painter.model_hash import architecture_of, hash_of_model


def test_hash_of_model(pipe: PaiPainterPipeline, tmp_path: Path) -> None:
    vqgan = pipe.model.vqgan
    before = hash_of_model(vqgan)
    vqgan.save_pretrained(tmp_path / "elsewhere")
    assert hash_of_model(PaiPainterVQModel.from_pretrained(tmp_path / "elsewhere")) == before
    assert hash_of_model(vqgan.to(torch.bfloat16)) != before


def test_architecture_of() -> None:
    config = PaiPainterConfig(
        vq_config={"channel_multiplier": [1, 1], "attn_resolutions": [], "num_embeddings": 32, "resolution": 8},
        image_vocab_size=32,
    )
    found = architecture_of(config)
    assert found["hidden_size"] == 768
    assert found["vq_config"]["channel_multiplier"] == [1, 1]
    assert not {"_name_or_path", "transformers_version", "architectures", "dtype"} & found.keys()
    assert architecture_of(PaiPainterVQConfig(attn_resolutions=(16,)))["attn_resolutions"] == [16]
