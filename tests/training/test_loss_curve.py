# SPDX-License-Identifier: Apache-2.0
"""loss.png: what is drawn, from whole and from broken files of figures."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pai_painter.training.loss_curve import _smoothed, draw_loss_curve

BLUE, RED, GREY = (47, 111, 181), (209, 73, 91), (107, 114, 128)


def draw(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> np.ndarray:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    path = draw_loss_curve(folder / "metrics.jsonl", folder / "loss.png")
    assert path == folder / "loss.png"
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def places(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns, counted from 0 to 1, of a colour's pixels, (pixels, 2)."""
    found = np.argwhere(np.abs(picture - colour).max(axis=-1) < 8)
    return found / picture.shape[:2]


def run(steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        lines.append({"step": step, "loss": 2 + 7 * math.exp(-step / 300), "learning_rate": 1e-4 * step / steps})
        if step % 100 == 0:
            lines.append({"step": step, "validation_loss": lines[-1]["loss"] + 0.5})
    return lines


def test_loss_validation_and_learning_rate_are_where_they_belong(tmp_path: Path) -> None:
    picture = draw(tmp_path, run(1000))
    assert picture.shape == (720, 1080, 3)
    legend = 0.3  # it stands in the upper right corner
    curve = [place for place in places(picture, BLUE) if place[0] > legend or place[1] < 0.5]
    left, right = min(curve, key=lambda place: place[1]), max(curve, key=lambda place: place[1])
    assert left[0] < 0.3 < 0.5 < right[0]  # it falls from the left to the right
    validations = [place for place in places(picture, RED) if place[0] > legend or place[1] < 0.5]
    assert max(place[0] for place in validations) < max(place[0] for place in curve)  # 0.5 above the loss
    rates = places(picture, GREY)
    assert min(rates[:, 0]) > max(place[0] for place in curve)  # a panel of its own, below


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 8, "loss": 2.7, "rows_per_second": 1.0, "learning_rate": 4e-5}],
        [{"step": 8, "loss": 2.7}],
        [{"step": 8, "validation_loss": 2.7}],
        [{"step": 8, "loss": 2.7, "learning_rate": 0.0}, {"step": 8, "validation_loss": 2.7}],
        [*run(300), *run(900)[60:]],
        [*run(500), *run(1000)],
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}],
    ],
    ids=["one-point", "no-rate", "validation-only", "rate-0", "gap", "done-again", "not-finite"],
)
def test_odd_runs_are_drawn_without_a_warning(
    tmp_path: Path, lines: list[dict[str, Any]], recwarn: pytest.WarningsRecorder
) -> None:
    picture = draw(tmp_path, lines)
    assert len(places(picture, BLUE)) + len(places(picture, RED)) > 20
    assert [str(warning.message) for warning in recwarn] == []


def test_a_cut_line_changes_nothing(tmp_path: Path) -> None:
    whole = draw(tmp_path, run(200))
    assert np.array_equal(whole, draw(tmp_path, run(200), tail='{"step": 210, "loss'))
    assert not np.array_equal(whole, draw(tmp_path, run(210)))


def test_without_a_loss_nothing_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "learning_rate": 0.1}\n{"st')
    assert draw_loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png") is None
    assert not (tmp_path / "loss.png").exists()
    with pytest.raises(FileNotFoundError):
        draw_loss_curve(tmp_path / "none.jsonl", tmp_path / "loss.png")


def test_the_smoothed_line_does_not_lag() -> None:
    values = tuple(float(value) for value in range(100))
    smoothed = _smoothed(values)
    assert smoothed[:97] == list(values[:97])  # a straight line stays one, but for the last points
    assert smoothed[-1] == sum(values[-4:]) / 4
    assert _smoothed((5.0,)) == [5.0]


def test_pyplot_and_its_state_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw(tmp_path, run(100))
    assert "matplotlib.pyplot" not in sys.modules
