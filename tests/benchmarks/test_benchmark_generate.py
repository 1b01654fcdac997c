# SPDX-License-Identifier: Apache-2.0
"""benchmarks/generate.py compares the same computation, reckons rightly, and documents say what it printed."""

import importlib
import io
import json
from pathlib import Path

import pytest
import torch
from benchmark_scripts import BENCHMARKS, figures_of
from PIL import Image
from transformers import GPT2LMHeadModel

from pai_painter import PaiPainterForImageGeneration


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.slow
def test_generate(tmp_path: Path) -> None:
    parts = [word for part in ("table", "curves", "cold") for word in ("--part", part)]
    figures = figures_of("generate", tmp_path, "--threads", "1", *parts)
    assert [(cell["captions"], cell["copies"]) for cell in figures["cells"]] == [(1, 1), (8, 1), (1, 8)]
    for cell in figures["cells"]:
        published, gpt2, *ours = cell["ways"]
        assert (published, gpt2, ours[0]) == ("published", "GPT-2", "exact")
        for way in (gpt2, *ours):
            row = cell["ways"][way]
            parts_of_it = row["seconds_until"]["64"] + cell["rows"] * row["decoding_seconds_a_picture"]
            assert 0 < parts_of_it <= cell["rows"] * row["seconds_a_picture"]["highest"] * 1.01
            assert 0 < row["read_share"] < 1
            assert row["tokens_per_step"] >= 1
            assert (row["tokens_per_step"] > 1) == (cell["rows"] == 1 and way != gpt2)
            assert 0 < row["product_share"] < 1
            assert row["peak_gb"] > 0
    assert [run["speed"] for run in figures["cold"]] == 2 * ours
    assert all(run[phase] > 0 for run in figures["cold"] for phase in ("import", "load", "paint"))


def test_gpt2_has_as_many_parameters_and_logits() -> None:
    from batch_painters import build_gpt2
    from hardware import count_transformer_parameters
    from steps import CONFIGS

    for size, parameters in (("base", 126_669_312), ("large", 357_795_840)):
        config = CONFIGS[size]()
        with torch.device("meta"):
            gpt2 = build_gpt2(config)
        assert gpt2.num_parameters() == count_transformer_parameters(config) == parameters
        assert gpt2.lm_head.out_features == config.image_vocab_size


def test_all_ways_write_the_same_tokens() -> None:
    """GPT-2 with our weights is the same model; so what is compared with it is the same computation."""
    from batch_painters import Gpt2Way, OurWay, StepClock
    from painters import PublishedPainter
    from steps import StepSettings, build_painter, build_processor, made_up_caption

    torch.manual_seed(0)
    painter = build_painter(StepSettings("tiny")).eval()
    with torch.no_grad():
        for parameter in painter.model.parameters():
            parameter.normal_(std=0.2)
        painter.lm_head.weight.normal_()
    ours, theirs = OurWay(painter, "exact", top_k=1), Gpt2Way(painter, top_k=1)
    give_weights(painter, theirs.gpt2)
    published = PublishedPainter(painter, build_processor(painter.config), top_k=1)
    caption_ids = published.caption_ids([made_up_caption(row) for row in range(2)])
    tokens = published.tokens(caption_ids)
    assert len(tokens.unique()) > 2
    with torch.no_grad():
        torch.testing.assert_close(theirs.gpt2(caption_ids).logits, painter(caption_ids).logits, atol=1e-4, rtol=0)
    for way in (ours, theirs):
        assert torch.equal(way.write(caption_ids, 1, StepClock(64)), tokens)
        assert torch.equal(way.write(caption_ids, 2, StepClock(64)), tokens.repeat_interleave(2, dim=0))
    torch.testing.assert_close(ours.decode(tokens), theirs.decode(tokens), atol=1e-5, rtol=0)


def test_a_speed_is_that_of_both_halves() -> None:
    from batch_painters import OurWay, StepClock
    from steps import StepSettings, build_painter

    painter = build_painter(StepSettings("tiny")).eval()
    way = OurWay(painter, "unheard of")
    for work in (
        lambda: way.write(torch.full((1, 32), 64), 1, StepClock(1)),
        lambda: way.decode(torch.zeros(1, 64, dtype=torch.long)),
    ):
        with pytest.raises(ValueError, match="`speed` must be one of"):
            work()


@torch.no_grad()
def give_weights(painter: PaiPainterForImageGeneration, gpt2: GPT2LMHeadModel) -> None:
    """A painter's weights for GPT-2, whose linear layers are turned."""
    model, other = painter.model, gpt2.transformer
    other.wte.weight.copy_(model.embed_tokens.weight)
    other.wpe.weight.copy_(model.embed_positions[0])
    gpt2.lm_head.weight.copy_(painter.lm_head.weight)
    other.ln_f.load_state_dict(model.norm.state_dict())
    for layer, block in zip(model.layers, other.h, strict=True):
        block.ln_1.load_state_dict(layer.ln_1.state_dict())
        block.ln_2.load_state_dict(layer.ln_2.state_dict())
        attention = layer.attn
        for name in ("weight", "bias"):
            of_all = torch.cat([getattr(each, name) for each in (attention.q_proj, attention.k_proj, attention.v_proj)])
            for turned, whole in (
                (block.attn.c_attn, of_all),
                (block.attn.c_proj, getattr(attention.out_proj, name)),
                (block.mlp.c_fc, getattr(layer.mlp.fc_1, name)),
                (block.mlp.c_proj, getattr(layer.mlp.fc_2, name)),
            ):
                getattr(turned, name).copy_(whole.t() if name == "weight" else whole)


@pytest.mark.parametrize("way", ["GPT-2", "exact"])
def test_a_batch_is_told_by_its_steps(way: str) -> None:
    from batch_painters import WaySettings, build_way

    paint = build_way(WaySettings(way, "tiny", 4))
    whole, warm_up = paint(2, 2), paint(2, 2, 8)
    assert (len(whole.written), len(warm_up.written)) == (64, 8)
    assert whole.written == sorted(whole.written)
    assert len(whole.sizes) == len(warm_up.sizes) == 4
    assert min(whole.sizes) > 32


def test_what_a_step_must_read() -> None:
    from hardware import step_bytes, vqgan_flops

    from pai_painter import PaiPainterConfig
    from pai_painter.cpu.speed import PaintingSpeed

    config = PaiPainterConfig()
    parameters = 126_669_312 - (37_512 + 288) * 768  # without what is looked up
    matrices, outputs = 12 * 12 * 768**2 + 768 * 16_384, 12 * 9 * 768 + 16_384
    kept = 2 * 12 * 768 * 160  # from 33 positions to 287
    assert step_bytes(config, PaintingSpeed(), 8) == 4 * (parameters + 8 * kept)
    fastest = PaintingSpeed(dtype=torch.bfloat16, int8_rows=4, num_draft_tokens=7)
    assert step_bytes(config, fastest, 5) == 2 * (parameters + 5 * kept)
    assert step_bytes(config, fastest, 4) == matrices + 4 * (parameters - matrices + outputs + 4 * kept)
    assert step_bytes(config, fastest, 1) == 2 * (parameters + kept)  # eight positions at once
    assert vqgan_flops(config) == pytest.approx(252.7e9, rel=1e-3)


def test_the_machine_is_measured() -> None:
    from hardware import build_hardware

    rates = build_hardware(tiny=True)()
    assert {"read", "torch.float32"} <= set(rates) <= {"read", "torch.float32", "torch.bfloat16"}
    assert all(1e8 < rate < 1e14 for rate in rates.values())


def test_the_published_loop_is_reckoned_for_every_length() -> None:
    from generate_figures import reckon_published
    from painters import prefix_weights

    weights = prefix_weights(32, 287, 5)
    steps = {prefix: 0.1 + prefix**2 / 1000 for prefix in weights}
    whole = sum(weight * steps[prefix] for prefix, weight in weights.items())
    assert reckon_published(steps, 32, 256) == pytest.approx(whole)
    assert reckon_published(steps, 32, 1) == steps[32]


@pytest.fixture
def run_figures() -> dict:
    """A made-up run: the published loop takes 1 s a step, and in the second round all are half as fast or slower."""
    from batch_painters import Painted
    from generate_figures import BARS, cell_figures
    from measuring import Measured
    from reporting import describe_machine
    from steps import CONFIGS

    def painted(shape: tuple[int, int], seconds: float) -> Measured:
        written = [seconds * (place + 1) / 100 for place in range(64)]
        return Measured(seconds, Painted(written, 63, 0.3 * seconds, 0.01, [100] * shape[0] * shape[1]), 10**9, 0)

    cells = []
    for shape in ((1, 1), (8, 1), (1, 8)):
        rounds = []
        for slow in (1, 2):
            taken: dict = {("published", prefix): Measured(slow, 1, 2 * 10**9, 0) for prefix in (32, 95)}
            taken["published", None] = Measured(2 * slow, 1, 10**9, 0)
            taken["hardware"] = Measured(1, {"read": 3e10, "torch.float32": 3e11, "torch.bfloat16": 2e12}, 0, 0)
            for way, seconds in (("GPT-2", 10), ("exact", 7), ("fastest", 2)):
                taken[way, shape] = painted(shape, slow * seconds * (slow if way == "fastest" else 1))
            rounds.append(taken)
        cells.append(cell_figures(CONFIGS["tiny"](), "tiny", shape, rounds))
    phases = {"import": 3.0, "load": 1.0, "prepare": 0.5, "paint": 2.0}
    return {
        "machine": describe_machine(),
        "minutes": 1.0,
        "load_average_before": 0.25,
        "parts": ["table", "curves", "cold"],
        "size": "tiny",
        "rounds": 2,
        "threads": 1,
        "top_k": 100,
        "tokens": 64,
        "timed_prefixes": [32, 95],
        "bars": [vars(bar) for bar in BARS],
        "cells": cells,
        "cold": [{"speed": "exact", **phases}, {"speed": "exact", **phases, "paint": 4.0}],
    }


def test_ratios_are_taken_within_a_round(run_figures: dict) -> None:
    one, eight, _ = run_figures["cells"]
    assert one["ways"]["published"]["seconds_a_picture"] == {"median": 99, "lowest": 66, "highest": 132}
    assert one["ways"]["exact"]["against_published"]["median"] == pytest.approx(66 / 7)
    assert one["ways"]["exact"]["against_gpt2"]["median"] == pytest.approx(10 / 7)
    assert one["ways"]["fastest"]["against_published"] == {"median": 24.75, "lowest": 16.5, "highest": 33}
    assert one["ways"]["exact"]["seconds_until"] == pytest.approx({"16": 1.68, "32": 3.36, "64": 6.72})
    assert one["ways"]["exact"]["step_seconds"] == pytest.approx(0.105)
    assert one["ways"]["exact"]["product_share"] == pytest.approx(0.75 * one["vqgan_flops"] / 3e11 / 2.1)
    assert eight["ways"]["published"]["seconds_a_picture"]["lowest"] == (64 + 8 * 2) / 8  # all decoded for every row


def test_missed_bars_are_named(run_figures: dict) -> None:
    from generate_figures import missed_bars

    missed = missed_bars(run_figures)
    assert missed == [
        "exact, 8 captions × 1: 11.43× instead of 20× the published loop",
        "exact, 1 captions × 8: 11.43× instead of 20× the published loop",
        "fastest, 8 captions × 1: 30.00× instead of 50× the published loop",
        "fastest, 1 captions × 8: 30.00× instead of 50× the published loop",
    ]


def test_a_document_says_what_the_command_printed(run_figures: dict, tmp_path: Path) -> None:
    from generate_report import BLOCK, sheets, write_markdown
    from reporting import split_block
    from rich.console import Console

    document = tmp_path / "README.md"
    document.write_text(f"before\n\n<!-- {BLOCK} -->\nold\n<!-- end of {BLOCK} -->\n\nafter\n", encoding="utf-8")
    for _ in range(2):  # the second time there is something to replace
        write_markdown(run_figures, tmp_path / "plots" / "plot.png", document)
    before, block, after = split_block(document, BLOCK)
    assert (before, after) == (f"before\n\n<!-- {BLOCK} -->", f"<!-- end of {BLOCK} -->\n\nafter\n")
    assert "old" not in block
    assert "(plots/plot.png)" in block
    assert run_figures["machine"]["date"] in block
    console = Console(width=200, record=True, file=io.StringIO())
    for sheet in sheets(run_figures):
        sheet.show(console)
    printed = [cells(line, "│") for line in console.export_text().splitlines() if line.startswith("│")]
    written = [cells(line, "|") for line in block.splitlines() if line.startswith("|") and "---" not in line]
    assert len(printed) > 20
    assert [row for row in written if row in printed] == printed
    assert ["8 captions", "ours, fastest", "0.62"] in [row[:3] for row in printed]


def cells(line: str, rule: str) -> list[str]:
    return [cell.strip() for cell in line.strip(rule).split(rule)]


@pytest.mark.parametrize(
    "text", ["", "<!-- a -->", "<!-- end of a --><!-- a -->", "<!-- a --><!-- a --><!-- end of a -->"]
)
def test_a_document_without_marks_is_left_alone(text: str, tmp_path: Path) -> None:
    from reporting import replace_block

    document = tmp_path / "README.md"
    document.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="must have the lines <!-- a --> and <!-- end of a -->, once each"):
        replace_block(document, "a", "new")
    assert document.read_text(encoding="utf-8") == text


def test_a_run_is_shown_again(run_figures: dict, tmp_path: Path) -> None:
    saved, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    saved.write_text(json.dumps(run_figures), encoding="utf-8")
    importlib.import_module("generate").main(shown=saved, plot=plot)
    with Image.open(plot) as image:
        assert image.format == "PNG"
        assert image.width > 1000


def test_the_readme_has_the_figures_of_the_saved_run() -> None:
    from generate_report import BLOCK, markdown
    from reporting import split_block

    saved, plot = BENCHMARKS / "figures" / "generate.json", BENCHMARKS / "figures" / "generate.png"
    figures = json.loads(saved.read_text(encoding="utf-8"))
    assert split_block(BENCHMARKS / "README.md", BLOCK)[1].strip() == markdown(figures, plot, BENCHMARKS)
    assert plot.exists()
