# SPDX-License-Identifier: Apache-2.0
"""benchmarks/quality.py: what it says of rounding is what painting rounds."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from model_fixtures import CODES, PAINTERS, expected, golden_painter, picture_labels, whole_sequence
from PIL import Image

from pai_painter import DEMO_MODEL, PaiPainterPipeline
from pai_painter.cpu.speed import PaintingSpeed, has_bfloat16
from pai_painter.imaging.grids import draw_grid

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS, LINES = ROOT / "benchmarks", ROOT / "examples" / "line_style" / "heldout.tsv"
EXACT, BFLOAT16, INT8 = PaintingSpeed(), PaintingSpeed(dtype=torch.bfloat16), PaintingSpeed(int8_rows=100)
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16 arithmetic")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("folder", PAINTERS)
def test_dictated_exactly_codes_have_the_models_loss(folder: str, batch_size: int) -> None:
    from quality import dictate

    painter, data = golden_painter(folder), expected(folder)
    losses, most_likely = dictate(painter, data["text_ids"], data["codes"], EXACT, batch_size)
    outputs = painter(whole_sequence(folder), labels=picture_labels(folder))
    assert losses.shape == (3, CODES)
    torch.testing.assert_close(losses.mean(), outputs.loss, atol=1e-5, rtol=0)
    assert torch.equal(most_likely, outputs.logits[:, -CODES - 1 : -1].argmax(-1))


@pytest.mark.parametrize("speed", [BFLOAT16, INT8], ids=["bfloat16", "int8"])
def test_rounding_is_seen_and_small(speed: PaintingSpeed) -> None:
    from quality import dictate

    painter, data = golden_painter(), expected()
    exact, rounded = (dictate(painter, data["text_ids"], data["codes"], each, 3)[0] for each in (EXACT, speed))
    assert 1e-5 < (exact - rounded).abs().mean() < 0.05


def test_figures_of_made_up_work() -> None:
    from quality import Work, compare

    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    one_off, rows_off = tokens.clone(), tokens + 1
    one_off[1, 3] = 0
    pixels = torch.zeros(2, 3, 4, 4)
    exact = Work(torch.full((2, 4), 1.5), tokens, tokens, tokens, tokens, pixels)
    assert compare(exact, exact) == {
        "loss": 1.5,
        "loss_change": 0,
        **dict.fromkeys(
            [
                "same_most_likely",
                "same_most_likely_along_painted",
                "same_greedy_codes",
                "same_greedy_pictures",
                "same_drawn_codes",
                "same_drawn_pictures",
            ],
            1,
        ),
        "psnr": None,
    }
    rounded = Work(torch.full((2, 4), 1.25), one_off, one_off, tokens, rows_off, torch.full_like(pixels, 0.2))
    figures = compare(rounded, exact)
    assert (figures["loss"], figures["loss_change"]) == (1.25, -0.25)
    assert (figures["same_most_likely"], figures["same_most_likely_along_painted"]) == (7 / 8, 0)
    assert (figures["same_greedy_codes"], figures["same_greedy_pictures"]) == (7 / 8, 1 / 2)
    assert (figures["same_drawn_codes"], figures["same_drawn_pictures"]) == (1, 1)
    assert figures["psnr"] == pytest.approx(20)  # a tenth of the range off everywhere
    outside = replace(exact, pixels=torch.full_like(pixels, 3.0))
    assert compare(outside, replace(exact, pixels=torch.ones_like(pixels)))["psnr"] is None  # both are white


@needs_bfloat16
def test_speeds_are_compared_on_what_exact_paints() -> None:
    from quality import dictate, paint

    painter, data = golden_painter(), expected()
    captions, tokens = data["text_ids"], data["codes"]
    exact = paint(painter, captions, tokens, EXACT, 2, None)
    assert torch.equal(exact.greedy, data["greedy_codes"])
    assert torch.equal(exact.drawn, painter.generate_images(captions, seed=0).image_tokens)
    assert torch.equal(exact.pixels, painter.decode_images(exact.drawn))
    exact = replace(exact, drawn=exact.drawn.flip(0))  # other pictures than this speed draws
    rounded = paint(painter, captions, tokens, BFLOAT16, 2, exact)
    assert torch.equal(rounded.most_likely, dictate(painter, captions, tokens, BFLOAT16, 2)[1])
    assert torch.equal(rounded.most_likely_along, dictate(painter, captions, exact.drawn, BFLOAT16, 2)[1])
    assert torch.equal(rounded.pixels, painter.decode_images(exact.drawn, BFLOAT16))
    assert not torch.equal(rounded.pixels, painter.decode_images(exact.drawn))
    assert not torch.equal(rounded.losses, exact.losses)


@needs_bfloat16
def test_the_grid_shows_what_changed_most() -> None:
    from quality import _CELL, _draw

    pipe = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    captions = ["红苹果", "熊猫", "西瓜"]
    exact = pipe(captions, seed=0, best_of=1).image_tokens
    rounded = exact[[0, 0, 2]]  # a second apple in place of the panda
    rounded[0, 40] += 1 if rounded[0, 40] == 0 else -1
    apple, panda, melon, almost = pipe.processor.image_processor.postprocess(
        pipe.model.decode_images(torch.cat([exact, rounded[:1]])), output_type="pil"
    )
    white = Image.new("RGB", (64, 64), "white")
    above = [apple, panda, melon, almost, apple, melon]
    below = [panda, apple, white, apple, almost, white]
    expected_page = draw_grid(
        above + below,
        captions=captions * 2 + ["熊猫", "红苹果", ""] * 2,
        cell_size=_CELL,
        columns=3,
        row_labels=["exact", "balanced"] * 2,
    )
    page = _draw(pipe, captions, {"exact": exact, "balanced": rounded}, 9)
    difference = np.asarray(page, dtype=int) - np.asarray(expected_page)
    assert 0 < abs(difference).max() < 20  # the VQGAN's numbers are rounded, too
    nothing_changed = _draw(pipe, captions, {"exact": exact, "balanced": exact}, 2)
    assert nothing_changed.height < expected_page.height * 2 / 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": Path("nowhere.tsv")}, "There is no file nowhere.tsv."),
        ({"data": LINES, "model": "no/such/folder"}, "no/such/folder"),
    ],
    ids=["data", "model"],
)
def test_bad_options_are_one_sentence(
    options: dict, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import quality

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    with pytest.raises(typer.BadParameter, match=sentence):
        quality.main(**options)


def test_a_data_set_that_was_not_made_is_told_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import quality

    monkeypatch.setattr(quality, "_HELD_OUT", tmp_path / "heldout.tsv")
    with pytest.raises(typer.BadParameter, match=r"isn't there: examples/emoji/README\.md says how it is made"):
        quality.main(data=tmp_path / "heldout.tsv")


def test_imitated_bfloat16_rounds_alike_and_a_build_without_int8_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import quality
    from measuring import MeasuringFailed

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    quality.main(tiny=True)
    monkeypatch.setattr(type(torch.backends.quantized), "engine", "none")
    with pytest.raises(MeasuringFailed, match="This build of PyTorch has no int8 arithmetic"):
        quality.main(tiny=True)


@needs_bfloat16
@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    words = ("--tiny", "--json", "figures.json", "--grid", "grid.png")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "quality.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What rounding changes: demo_model, 2 rows of heldout.tsv" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "grid.png"]
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert list(figures["speeds"]) == ["exact", "balanced", "fastest"]
    assert figures["speeds"]["exact"]["loss_change"] == 0
    assert figures["speeds"]["fastest"]["loss_change"] != figures["speeds"]["balanced"]["loss_change"] != 0
    assert figures["speeds"]["balanced"]["psnr"] > 40
    with Image.open(tmp_path / "grid.png") as page:
        assert page.height > page.width / 2
