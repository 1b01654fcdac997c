# SPDX-License-Identifier: Apache-2.0
"""No keyword disappears: each public callable refuses what it doesn't know, by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pai_painter import (
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterImageProcessor,
    PaiPainterPipeline,
    PaiPainterProcessor,
    PaiPainterVQConfig,
    PaiPainterVQModel,
)

PICTURE = np.zeros((16, 16, 3), dtype=np.uint8)
CALLS: dict[str, Callable[[PaiPainterPipeline, Path, dict[str, Any]], Any]] = {
    "pipeline": lambda pipe, folder, more: pipe("红苹果", **more),
    "pipeline.from_pretrained": lambda pipe, folder, more: PaiPainterPipeline.from_pretrained(folder, **more),
    "pipeline.save_pretrained": lambda pipe, folder, more: pipe.save_pretrained(folder, **more),
    "pipeline.from_pipe": lambda pipe, folder, more: PaiPainterPipeline.from_pipe(pipe, **more),
    "pipeline.push_to_hub": lambda pipe, folder, more: pipe.push_to_hub("me/painter", **more),
    "pipeline.load_lora_weights": lambda pipe, folder, more: pipe.load_lora_weights(folder, **more),
    "pipeline.save_lora_weights": lambda pipe, folder, more: pipe.save_lora_weights(folder, **more),
    "pipeline.set_adapters": lambda pipe, folder, more: pipe.set_adapters("one", **more),
    "pipeline.fuse_lora": lambda pipe, folder, more: pipe.fuse_lora(**more),
    "pipeline.unfuse_lora": lambda pipe, folder, more: pipe.unfuse_lora(**more),
    "model.from_pretrained": lambda pipe, folder, more: PaiPainterForImageGeneration.from_pretrained(folder, **more),
    "model.push_to_hub": lambda pipe, folder, more: pipe.model.push_to_hub("me/painter", **more),
    "vqgan.from_pretrained": lambda pipe, folder, more: PaiPainterVQModel.from_pretrained(folder, **more),
    "processor": lambda pipe, folder, more: pipe.processor(text="红苹果", **more),
    "processor.push_to_hub": lambda pipe, folder, more: pipe.processor.push_to_hub("me/painter", **more),
    "image processor": lambda pipe, folder, more: pipe.processor.image_processor(PICTURE, **more),
    "image processor's settings": lambda pipe, folder, more: PaiPainterImageProcessor(**more),
    "processor's settings": lambda pipe, folder, more: PaiPainterProcessor(
        pipe.processor.image_processor, pipe.processor.tokenizer, **more
    ),
    "config": lambda pipe, folder, more: PaiPainterConfig(**more),
    "config.from_pretrained": lambda pipe, folder, more: PaiPainterConfig.from_pretrained(folder, **more),
    "config's vq_config": lambda pipe, folder, more: PaiPainterConfig(vq_config=more),
    "vq config": lambda pipe, folder, more: PaiPainterVQConfig(**more),
    "vq config.from_pretrained": lambda pipe, folder, more: PaiPainterVQConfig.from_pretrained(folder, **more),
}


@pytest.mark.parametrize("keyword", ["hiden_size", "seeed"])
@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_keyword_is_refused_by_name(
    name: str, keyword: str, pipe: PaiPainterPipeline, tiny_painter: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=keyword):
        CALLS[name](pipe, tiny_painter, {keyword: 3})


@pytest.mark.parametrize("part", [None, "vq_config"])
def test_a_field_of_a_newer_version_is_named(part: str | None, tiny_painter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_painter, tmp_path / "newer")
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part])["number_of_brushes"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    for load in (PaiPainterConfig, PaiPainterForImageGeneration, PaiPainterPipeline):
        with pytest.raises(ValueError, match=r"has no 'number_of_brushes': .* newer version of pai-painter"):
            load.from_pretrained(folder)


@pytest.mark.parametrize(
    "stored",
    [
        {"architectures": ["PaiPainterForImageGeneration"]},
        {"auto_map": {"AutoConfig": "configuration_pai_painter.PaiPainterConfig"}},
        {"dtype": "bfloat16"},
        {"torch_dtype": "bfloat16"},
        {"transformers_version": "5.24.0"},
        {"_name_or_path": "me/painter"},
        {"quantization_config": {"quant_method": "torchao"}},
        {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ],
    ids=lambda stored: next(iter(stored)),
)
def test_what_transformers_stores_is_read(stored: dict[str, Any], tmp_path: Path) -> None:
    for kind in (PaiPainterConfig, PaiPainterVQConfig):
        kind(**stored).save_pretrained(tmp_path)
        assert kind.from_pretrained(tmp_path).to_diff_dict() == kind(**stored).to_diff_dict()
