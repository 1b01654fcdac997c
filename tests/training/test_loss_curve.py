# SPDX-License-Identifier: Apache-2.0
"""loss.png, from whole and from broken files of metrics."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pai_painter.training.metrics import draw_loss_curve, read_metrics

LINES = [{"step": step, "loss": 2 + 7 * math.exp(-step / 300), "learning_rate": 1e-4} for step in range(10, 310, 10)]
VALIDATIONS = [{"step": step, "validation_loss": 3.0} for step in (100, 200, 300)]


def draw(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> bytes | None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    draw_loss_curve(read_metrics(folder / "metrics.jsonl"), folder / "loss.png")
    path = folder / "loss.png"
    return Image.open(path).convert("RGB").tobytes() if path.exists() else None


def test_both_losses_are_drawn_and_a_cut_line_changes_nothing(tmp_path: Path) -> None:
    whole = draw(tmp_path, LINES + VALIDATIONS)
    assert whole != draw(tmp_path, LINES)
    assert whole == draw(tmp_path, LINES + VALIDATIONS, tail='{"step": 310, "loss')


@pytest.mark.parametrize(
    "lines",
    [[{"step": 8, "loss": 2.7}], VALIDATIONS, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}]],
    ids=["one-point", "validation-only", "not-finite"],
)
def test_odd_runs_are_drawn_without_a_warning(
    tmp_path: Path, lines: list[dict[str, Any]], recwarn: pytest.WarningsRecorder
) -> None:
    assert draw(tmp_path, lines)
    assert [str(warning.message) for warning in recwarn] == []


def test_without_a_loss_nothing_is_drawn(tmp_path: Path) -> None:
    assert draw(tmp_path, [{"step": 1, "learning_rate": 0.1}], tail='{"st') is None
