# SPDX-License-Identifier: Apache-2.0
"""`pai-painter evaluate` and its library function: the loss that the model itself computes."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from published_commands import run

from pai_painter import PaiPainterPipeline
from pai_painter.evaluation.likelihood import evaluate_painter
from pai_painter.training.arguments import DataArguments

TABLE = "MUGE_val_text_imgbase64.tsv"


def own_loss(pipe: PaiPainterPipeline) -> float:
    """Of the table's four pictures, without anything of the trainer's."""
    pictures = [Image.new("RGB", (40, 40), (60 * i, 0, 99)) for i in range(4)]
    inputs = pipe.processor(text=[f"红苹果{i}" for i in range(4)], images=pictures, return_tensors="pt")
    codes = pipe.model.vqgan.encode(inputs["pixel_values"])["image_tokens"]
    captions = inputs["input_ids"][:, : pipe.model.config.text_length]
    with torch.no_grad():
        logits = pipe.model(torch.cat([captions, codes], dim=1)).logits[:, captions.shape[1] - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten()).item()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_loss_is_the_models_whatever_the_batch_size(
    place: Path, tiny_painter: Path, pipe: PaiPainterPipeline, batch_size: int
) -> None:
    found = evaluate_painter(str(tiny_painter), DataArguments(train_file=[TABLE]), batch_size)
    assert (found.rows, found.chance) == (4, 64)
    assert found.loss == pytest.approx(own_loss(pipe), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_the_command(place: Path, tiny_painter: Path, pipe: PaiPainterPipeline) -> None:
    result = run("evaluate", "--model", tiny_painter, "--file", TABLE, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["loss"] == pytest.approx(own_loss(pipe), abs=1e-5)
    assert [*facts] == ["model", "rows", "loss", "perplexity", "chance"]
    table = run("evaluate", "--model", tiny_painter, "--file", TABLE)
    assert f"{facts['loss']:.4f} nats per token" in table.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--file", "no.tsv"], "There is no file no.tsv"),
        (["--file", TABLE, "--batch_size", "0"], "at least 1"),
        (["--file", TABLE, "--caption_column", "title"], "title"),
    ],
)
def test_errors_are_one_sentence(place: Path, tiny_painter: Path, words: list[str], reason: str) -> None:
    result = run("evaluate", "--model", tiny_painter, *words)
    assert result.exit_code == 2, result.output
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
