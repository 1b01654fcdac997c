# SPDX-License-Identifier: Apache-2.0
"""The model inside the package: what it is, and that its pictures show what was asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor

FOLDER = Path(DEMO_MODEL)


@pytest.fixture(scope="module")
def pipe() -> PaiPainterPipeline:
    pipe = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 16e6
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= names
    assert {"README.md", "vocab.txt"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_weights_are_stored_in_half_and_loaded_in_single_precision() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    model = AutoModel.from_pretrained(DEMO_MODEL)
    assert isinstance(model, PaiPainterForImageGeneration)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert isinstance(AutoProcessor.from_pretrained(DEMO_MODEL), PaiPainterProcessor)


def test_recommended_settings_travel_with_it(pipe: PaiPainterPipeline) -> None:
    assert pipe.model.generation_config.best_of > 1
    assert pipe.model.generation_config.max_length == pipe.model.config.max_position_embeddings


@pytest.mark.parametrize(("caption", "channel"), [("红苹果", 0), ("红心", 0), ("绿心", 1), ("蓝心", 2)])
def test_colours_are_right(pipe: PaiPainterPipeline, caption: str, channel: int) -> None:
    """The middle of the picture has most of the colour that the caption names."""
    picture = np.asarray(pipe(caption, seed=0).images[0], dtype=float)
    middle = picture[24:40, 24:40].mean((0, 1))
    assert middle.argmax() == channel
    others = np.delete(middle, channel)
    assert middle[channel] > others.max() + 40


def test_pictures_stand_on_white(pipe: PaiPainterPipeline) -> None:
    picture = np.asarray(pipe("红苹果", seed=0).images[0])
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 235


def test_it_is_surer_of_what_it_knows(pipe: PaiPainterPipeline) -> None:
    known = pipe(["红苹果", "熊猫", "西瓜", "足球"], seed=0).scores
    nonsense = pipe(["红苹果的足球熊猫"], seed=0).scores
    assert min(known) > -0.5
    assert nonsense[0] < max(known)
