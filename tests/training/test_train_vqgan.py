# SPDX-License-Identifier: Apache-2.0
"""Training the VQGAN, from pictures to a folder that loads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_world import VQGAN
from transformers import AutoImageProcessor, AutoModel

from pai_painter import PaiPainterVQModel
from pai_painter.data.row_cache import PictureRows, load_rows
from pai_painter.data.sources import find_source
from pai_painter.training.arguments import DataArguments, VQGANModelArguments, VQGANTrainingArguments
from pai_painter.training.train_vqgan import train_vqgan, validate_vqgan


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_is_saved_loads_at_once(vqgan_run: Callable, tmp_path: Path) -> None:
    folder = vqgan_run(tmp_path, sample_steps=4, eval_steps=4, use_ema=False)
    vqgan, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert isinstance(vqgan, PaiPainterVQModel)
    assert processor.size == {"shortest_edge": 16}
    reports = [line for line in metrics(folder) if "psnr" in line]
    assert [line["step"] for line in reports] == [4, 8]
    assert set(reports[0]) == {"step", "psnr", "codes_used", "perplexity"}
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step-000004.png", "step-000008.png"]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4"]


def test_it_learns(vqgan_run: Callable, data: DataArguments, tmp_path: Path) -> None:
    """12 pictures, 100 steps, 16 codes: far better than each picture's mean colour, with all codes in use."""
    options = {"max_train_steps": 100, "codebook_start_step": 40, "per_device_train_batch_size": 8, "flip": False}
    folder = vqgan_run(
        tmp_path, learning_rate=6e-3, max_shift=0, logging_steps=10, sample_steps=100, save_steps=999, **options
    )
    losses = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    vqgan, processor = PaiPainterVQModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    rows = load_rows(find_source(data.train_file, caption_separator="|"), cache_dir=data.cache_dir)
    pictures = torch.stack([PictureRows(rows, processor)[row] for row in range(len(rows))]) / 2
    plain = (pictures - pictures.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).log10().mean() * -10
    last = metrics(folder)[-1]
    assert last["psnr"] > plain.item() + 3
    assert last["codes_used"] > 0.8
    # The metrics are those of the saved VQGAN.
    again = validate_vqgan(vqgan, rows, processor)
    assert again["psnr"] == pytest.approx(last["psnr"], abs=1e-3)
    assert again["codes_used"] == last["codes_used"]


def test_psnr(vqgan_folder: Path, data: DataArguments) -> None:
    vqgan, processor = PaiPainterVQModel.from_pretrained(vqgan_folder), AutoImageProcessor.from_pretrained(vqgan_folder)
    rows = load_rows(find_source(data.train_file, caption_separator="|"), cache_dir=data.cache_dir)
    pictures = torch.stack([PictureRows(rows, processor)[row] for row in range(len(rows))])
    with torch.no_grad():
        painted = vqgan(pictures)
    difference = (painted.pixel_values.clamp(-1, 1) - pictures) * 127.5  # of 8-bit values
    expected = (20 * torch.log10(255 / difference.square().mean((1, 2, 3)).sqrt())).mean().item()
    found = validate_vqgan(vqgan, rows, processor, batch_size=5)
    assert found["psnr"] == pytest.approx(expected, abs=1e-3)
    assert found["codes_used"] == len(painted.image_tokens.unique()) / 16


def test_a_trained_vqgan_keeps_its_codes(vqgan_folder: Path, data: DataArguments, tmp_path: Path) -> None:
    """Going on with one doesn't begin again with k-means, and it trains in float32 whatever it was saved in."""
    before = PaiPainterVQModel.from_pretrained(vqgan_folder)
    before.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoImageProcessor.from_pretrained(vqgan_folder).save_pretrained(tmp_path / "half")
    training = VQGANTrainingArguments(
        output_dir=str(tmp_path / "out"), max_train_steps=2, learning_rate=1e-5, restart_below=0.0
    )
    train_vqgan(VQGANModelArguments(model_name_or_path=str(tmp_path / "half")), data, training)
    after = PaiPainterVQModel.from_pretrained(tmp_path / "out")
    assert after.dtype == torch.float32
    old, new = before.quantize.embedding.weight.float(), after.quantize.embedding.weight
    moved = (new - old).norm(dim=1) / old.norm(dim=1)
    assert moved.max() < 0.1
    assert moved.max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_start_step": 8}, r"`codebook_start_step` \(8\) must be below the 8 steps of the run"),
        ({"learning_rate": 1e30, "save_steps": 2, "codebook_start_step": 7}, r"The loss became (nan|inf) in the"),
    ],
)
def test_errors(options: dict, message: str, vqgan_run: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        vqgan_run(tmp_path, **options)


def test_too_few_pictures(shapes: Path, data: DataArguments, vqgan_run: Callable, tmp_path: Path) -> None:
    config = shapes / "vqgan" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({**VQGAN, "num_embeddings": 200}))
    try:
        with pytest.raises(ValueError, match=r"12 training pictures have too few patches for 200 `num_embeddings`"):
            vqgan_run(tmp_path)
    finally:
        config.write_text(before)
