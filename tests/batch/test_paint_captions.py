# SPDX-License-Identifier: Apache-2.0
"""The callable that clusters take."""

import io
import pickle
from pathlib import Path

import datasets
import pytest
from PIL import Image

from pai_painter.batch.paint_captions import PaintCaptions, PredictOptions, row_seed

ROWS = {"idx": ["1", "2", "3"], "text": ["红苹果", "🦄", " 熊猫 "], "more": [1, 2, 3]}
OPTIONS = PredictOptions(batch_size=2, seed=7)


def test_a_batch_of_rows(tiny_painter: Path) -> None:
    paint = PaintCaptions(tiny_painter, OPTIONS, device="cpu")
    out = paint(ROWS)
    assert list(out) == ["idx", "text", "image", "seed", "score", "error"]
    assert (out["idx"], out["text"]) == (ROWS["idx"], ROWS["text"])
    assert out["seed"] == [row_seed(7, "1"), None, row_seed(7, "3")]
    assert out["error"][::2] == [None, None]
    assert "knows no word" in out["error"][1]
    assert Image.open(io.BytesIO(out["image"][2])).text["caption"] == "熊猫"
    alone = paint({"idx": [3, 9], "text": ["熊猫", None]})
    assert (alone["image"][0], alone["error"][1]) == (out["image"][2], "The caption is no text, but NoneType.")
    with pytest.raises(KeyError, match="text"):
        paint({"idx": []})


def test_it_travels_without_the_model_and_paints_the_same(tiny_painter: Path) -> None:
    paint = PaintCaptions(tiny_painter, PredictOptions(num_images_per_prompt=2), device="cpu")
    before = paint(ROWS)
    assert before["idx"] == ["1", "1", "2", "3", "3"]
    sent = pickle.dumps(paint)
    assert len(sent) < 2000
    assert pickle.loads(sent)(ROWS) == before


def test_datasets_map(tiny_painter: Path) -> None:
    rows = datasets.Dataset.from_dict(ROWS)
    painted = rows.map(PaintCaptions(tiny_painter, OPTIONS, device="cpu"), batched=True, batch_size=2)
    painted = painted.cast_column("image", datasets.Image())
    assert painted["more"] == [1, 2, 3]
    assert painted[0]["image"].text["seed"] == str(row_seed(7, "1"))
    assert painted[1]["image"] is None


@pytest.mark.slow
def test_a_local_ray(tiny_painter: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        table = ray.data.from_items([{"idx": ROWS["idx"][i], "text": ROWS["text"][i]} for i in range(3)])
        painted = table.map_batches(PaintCaptions(tiny_painter, OPTIONS, device="cpu"), batch_size=2).take_all()
    finally:
        ray.shutdown()
    expected = PaintCaptions(tiny_painter, OPTIONS, device="cpu")(ROWS)
    assert {row["idx"]: row["image"] for row in painted} == dict(zip(ROWS["idx"], expected["image"], strict=True))
