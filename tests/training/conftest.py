# SPDX-License-Identifier: Apache-2.0
"""A world that trains in seconds: coloured shapes of 16×16 pixels, their Chinese names, and tiny models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate_state import fresh_accelerate  # noqa: F401 - used by being here
from tiny_world import COLOURS, PAINTER, SHAPES, VQGAN, WORDS, as_base64, draw

from pai_painter.model.image_processing_pai_painter import PaiPainterImageProcessor
from pai_painter.model.modeling_vqgan import PaiPainterVQModel
from pai_painter.training.arguments import (
    DataArguments,
    PainterModelArguments,
    PainterTrainingArguments,
    VQGANModelArguments,
    VQGANTrainingArguments,
)
from pai_painter.training.painter_model import build_painter
from pai_painter.training.train_vqgan import train_vqgan


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with shapes.tsv (12 rows of two captions), vqgan/ and painter/ (configurations and vocabulary)."""
    folder = tmp_path_factory.mktemp("shapes")
    rows = [
        f"{name}{shape}\t{name}色的{shape}|{name}{shape}图\t{as_base64(draw(colour, shape))}\n"
        for name, colour in COLOURS.items()
        for shape in SHAPES
    ]
    (folder / "shapes.tsv").write_text("".join(rows), encoding="utf-8")
    for name, config in (("vqgan", VQGAN), ("painter", PAINTER)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "painter" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data(shapes: Path) -> DataArguments:
    file = str(shapes / "shapes.tsv")
    return DataArguments(
        train_file=[file],
        validation_file=[file],
        caption_separator="|",
        cache_dir=str(shapes / "cache"),
        max_bad_rows=0,
    )


@pytest.fixture(scope="session")
def vqgan_folder(shapes: Path) -> Path:
    """A VQGAN with random weights: codes of it are as good as any to be learnt."""
    torch.manual_seed(0)
    vqgan = PaiPainterVQModel(PaiPainterVQModel.config_class(**VQGAN))
    # Spread, so that different patches have different codes.
    vqgan.quantize.embedding.weight.data.normal_(std=0.3)
    vqgan.save_pretrained(shapes / "random_vqgan")
    PaiPainterImageProcessor(size=16).save_pretrained(shapes / "random_vqgan")
    return shapes / "random_vqgan"


@pytest.fixture
def vqgan_run(shapes: Path, data: DataArguments) -> Callable[..., Path]:
    """Trains the tiny VQGAN from nothing; keywords change its arguments."""

    def run(output_dir: Path, **options: object) -> Path:
        settings = {
            "max_train_steps": 8,
            "per_device_train_batch_size": 5,
            "codebook_start_step": 2,
            "blank_code": True,
            "use_ema": True,
            "ema_decay": 0.8,
            "logging_steps": 1,
            "save_steps": 4,
            "sample_steps": 100,
            "eval_steps": 100,
            "restart_below": 0.5,
            "learning_rate": 2e-3,
            "num_samples": 2,
        }
        training = VQGANTrainingArguments(output_dir=str(output_dir), **{**settings, **options})
        return train_vqgan(VQGANModelArguments(config_name=str(shapes / "vqgan")), data, training)

    return run


@pytest.fixture
def painter_model(shapes: Path, vqgan_folder: Path) -> PainterModelArguments:
    return PainterModelArguments(config_name=str(shapes / "painter"), vqgan=str(vqgan_folder))


@pytest.fixture
def painter_options() -> dict[str, object]:
    """Everything that draws random numbers or keeps a state."""
    return {
        "max_train_steps": 8,
        "per_device_train_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "pkeep": 0.8,
        "caption_dropout": 0.2,
        "num_crops": 2,
        "max_shift": 1,
        "use_ema": True,
        "ema_decay": 0.8,
        "mixed_precision": "bf16",
        "logging_steps": 1,
        "save_steps": 4,
        "sample_steps": 100,
        "eval_steps": 100,
        "learning_rate": 1e-3,
        "num_samples": 2,
    }


@pytest.fixture
def painter_arguments(painter_options: dict[str, object]) -> Callable[..., PainterTrainingArguments]:
    def make(output_dir: Path, **options: object) -> PainterTrainingArguments:
        return PainterTrainingArguments(output_dir=str(output_dir), **{**painter_options, **options})

    return make


@pytest.fixture(scope="session")
def trained_painter(shapes: Path, vqgan_folder: Path) -> Path:
    """A painter with random weights, saved whole with its processor."""
    torch.manual_seed(0)
    painter, processor = build_painter(
        PainterModelArguments(config_name=str(shapes / "painter"), vqgan=str(vqgan_folder))
    )
    painter.save_pretrained(shapes / "random_painter")
    processor.save_pretrained(shapes / "random_painter")
    return shapes / "random_painter"
