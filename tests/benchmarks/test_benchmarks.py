# SPDX-License-Identifier: Apache-2.0
"""The scripts of benchmarks/ run, and what they compare is the same computation."""

import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from benchmark_scripts import BENCHMARKS, figures_of, forget_precision, run
from model_fixtures import PAINTERS, expected, golden_painter
from PIL import Image

SCRIPTS = (
    *("busy", "flat_memory", "generate", "packing", "plan_captions", "predict", "quality", "speculative", "start"),
    "train_step",
    "training_memory",
)
COMMANDS = re.findall(r"^python benchmarks/(\w+)\.py *(.*)$", (BENCHMARKS / "README.md").read_text("utf-8"), re.M)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    forget_precision()


@pytest.mark.slow
def test_train_step(tmp_path: Path) -> None:
    variants = figures_of("train_step", tmp_path, "--threads", "1")["variants"]
    assert list(variants) == ["published", "ours, float32", "ours, fastest"]
    assert variants["published"]["speedup"] == 1
    for row in variants.values():
        assert row["speedup_lowest"] <= row["speedup"] <= row["speedup_highest"]
        assert row["rows_per_second"] > 0
        assert row["peak_gb"] > 0


@pytest.mark.slow
def test_training_memory(tmp_path: Path) -> None:
    full, lora = figures_of("training_memory", tmp_path)["rows"]
    assert 0 < lora["trainable_parameters"] < full["trainable_parameters"] < full["parameters"]
    assert full["fixed_gb"] == pytest.approx(4e-9 * (full["parameters"] + 3 * full["trainable_parameters"]))
    assert full["peaks"][0]["measured"]
    assert full["peaks"][0]["peak_gb"] > full["fixed_gb"]


def test_what_memory_does_not_hold_is_not_tried(tmp_path: Path) -> None:
    importlib.import_module("training_memory").main(tiny=True, memory_limit=0.001, json_file=tmp_path / "figures.json")
    full, lora = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["rows"]
    assert lora["trainable_parameters"] < full["trainable_parameters"]
    assert not full["peaks"][0]["measured"]
    assert full["peaks"][0]["peak_gb"] > 0.001


@pytest.mark.slow
def test_flat_memory(tmp_path: Path) -> None:
    figures = figures_of("flat_memory", tmp_path, "--folder", str(tmp_path))
    assert figures["rows"] > 1
    assert [run["steps"] for run in figures["runs"]] == [2, 2]
    assert all(0.1 < run["peak_gb"] < 2 for run in figures["runs"])


@pytest.mark.slow
def test_predict(tmp_path: Path) -> None:
    figures = figures_of("predict", tmp_path, "--threads", "1")
    published, ours = figures["variants"]["published"], figures["variants"]["ours"]
    assert figures["timed_prefixes"] == [32, 95]
    assert figures["speedup_lowest"] <= figures["speedup"] <= figures["speedup_highest"]
    parts = published["token_seconds_per_image"] + published["decoding_seconds_per_image"]
    assert published["seconds_per_image"] == pytest.approx(parts)  # two rounds: the median is the mean
    assert all(0 < row["images_per_second"] <= row["images_per_second_best"] for row in (published, ours))


@pytest.mark.slow
def test_a_missed_target_is_a_failure(tmp_path: Path) -> None:
    done = run("predict", tmp_path, "--tiny", "--threads", "1", "--check")
    assert done.returncode == 1
    assert re.search(r"Slower than the target: [\d.]+× instead of 15×\.", done.stderr)


@pytest.mark.slow
def test_plan_captions(tmp_path: Path) -> None:
    few, many = figures_of("plan_captions", tmp_path, "--folder", str(tmp_path))["runs"]
    assert (few["pictures"], few["rejected"], few["shards"]) == (100, 0, 4)
    assert (many["pictures"], many["rejected"], many["shards"]) == (999, 1, 32)
    assert list(many["seconds"]) == ["survey", "shards", "joining"]
    assert all(seconds > 0 for seconds in many["seconds"].values())


@pytest.mark.slow
def test_too_much_memory_is_a_failure(tmp_path: Path) -> None:
    done = run("flat_memory", tmp_path, "--tiny", "--limit", "100MB")
    assert done.returncode == 1
    assert "More than 0.1 GB of anonymous memory were in use." in done.stderr


def test_anonymous_memory_counts_children() -> None:
    from flat_memory import watch_anonymous_memory

    holds = "kept = b'x' * 100_000_000; print('ready', flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with watch_anonymous_memory(process.pid, 0.01) as samples:
        assert process.stdout.readline() == b"ready\n"
        seen = len(samples)
        while len(samples) < seen + 2:  # the first of them may have been begun before
            time.sleep(0.01)
        process.communicate(b"\n", timeout=10)
    assert 100_000_000 < max(samples) < 150_000_000


TAKING = """
import os

def build(megabytes):
    len(b"x" * 400_000_000)  # what building needs doesn't count
    kept = [b"x" * 50_000_000]
    def step():
        if not megabytes:
            os._exit(9)
        kept.append(b"x" * (megabytes * 1_000_000))
        kept.pop()
        return 1.5
    return step
"""


@pytest.fixture
def taking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """For a process of its own: builds what takes memory in each step, or with 0 dies."""
    (tmp_path / "taking_memory.py").write_text(TAKING)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("taking_memory").build


def test_a_step_is_measured_in_a_process_of_its_own(taking: Callable) -> None:
    from measuring import step_processes

    with step_processes(taking, 200, 100) as (large, small):
        for process, megabytes in ((large, 200), (small, 100), (large, 200)):
            measured = process.step()
            assert measured.result == 1.5
            assert measured.peak_bytes / 1e6 == pytest.approx(50 + megabytes, abs=10)
            assert measured.grown_bytes / 1e6 == pytest.approx(megabytes, abs=10)


def test_a_process_that_dies_is_named(taking: Callable) -> None:
    from measuring import MeasuringFailed, step_processes

    sentence = "The process of 0 ended with status 9"
    with step_processes(taking, 0) as (process,), pytest.raises(MeasuringFailed, match=sentence):
        process.step()


def test_both_ways_have_the_same_loss() -> None:
    from steps import PublishedStep, StepSettings, build_painter

    from pai_painter.training.painter_objective import PainterObjective
    from pai_painter.training.painter_rows import sequences

    torch.manual_seed(0)
    settings = StepSettings("tiny", batch_size=3, published=True, attn_implementation="eager")
    painter = build_painter(settings)
    with torch.no_grad():
        painter.lm_head.weight.normal_()  # so that the loss isn't everywhere that of guessing
    published = PublishedStep(painter, settings)
    rows = {"caption_ids": published.caption_ids, "pixel_values": published.pixel_values}
    input_ids, labels = sequences(rows, torch.device("cpu"), painter.vqgan)
    with torch.no_grad():
        ours = PainterObjective(painter)(input_ids, labels)
        theirs = published.loss(published.caption_ids, published.pixel_values)
    assert ours > 5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("published", [True, False])
def test_steps_learn(published: bool) -> None:
    from steps import StepSettings, build_step

    settings = StepSettings("tiny", batch_size=1, published=published)
    step = build_step(settings)
    period = 1 if published else 4  # ours goes through four batches
    losses = [step() for _ in range(period + 1)]
    assert losses[period] < losses[0]


@pytest.mark.parametrize("folder", PAINTERS)
def test_the_published_loop_paints_easynlps_codes(folder: str) -> None:
    from painters import PublishedPainter
    from steps import build_processor

    model = golden_painter(folder, attn_implementation="eager")
    tokens = PublishedPainter(model, build_processor(model.config), top_k=1).tokens(expected(folder)["text_ids"])
    assert torch.equal(tokens, expected(folder)["greedy_codes"])


def test_the_published_loop_draws_codes_as_they_are_likely() -> None:
    from painters import PublishedPainter
    from steps import build_processor

    model = golden_painter()
    painter = PublishedPainter(model, build_processor(model.config), top_k=3)
    prefix = expected()["text_ids"][:1]
    with torch.no_grad():
        likeliest = model(prefix).logits[0, -1].topk(3)
    torch.manual_seed(0)
    drawn = painter.next_code(prefix.repeat(4000, 1)).flatten()
    shares = torch.stack([(drawn == code).float().mean() for code in likeliest.indices])
    torch.testing.assert_close(shares, likeliest.values.softmax(0), atol=0.03, rtol=0)


def test_both_ways_paint_the_same_pictures() -> None:
    from painters import OurPainter, PublishedPainter
    from steps import StepSettings, build_painter, build_processor, made_up_caption

    from pai_painter import PaiPainterPipeline

    torch.manual_seed(0)
    model = build_painter(StepSettings("tiny")).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_()  # so that captions decide
    processor, captions = build_processor(model.config), [made_up_caption(row) for row in range(3)]
    published = PublishedPainter(model, processor, top_k=1)
    batches: list[int] = []
    handle = model.vqgan.decoder.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    theirs = published.paint(captions)
    assert batches == [3, 3, 3]  # the whole batch for every row
    ours = OurPainter(PaiPainterPipeline(model, processor), 3, top_k=1).paint(captions)
    assert batches[3:] == [3]
    handle.remove()
    pixels = [[np.asarray(Image.open(io.BytesIO(file)), dtype=int) for file in files] for files in (theirs, ours)]
    assert all(abs(a - b).max() <= 1 for a, b in zip(*pixels, strict=True))
    assert abs(pixels[0][0] - pixels[0][1]).max() > 1


def test_what_is_timed_of_the_published_loop() -> None:
    from painters import PublishedPainter
    from steps import StepSettings, build_painter, build_processor, made_up_caption

    model = build_painter(StepSettings("tiny")).eval()
    part = PublishedPainter(model, build_processor(model.config)).part([made_up_caption(row) for row in range(2)])
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(tuple(logits.shape)))
    model.vqgan.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(("decoded", len(inputs[0]))))
    for prefix in (32, 95, None):
        part(prefix)
    assert seen == [(2, 32, 64), (2, 95, 64), ("decoded", 2)]  # logits at all positions


@pytest.mark.parametrize("timed", [2, 3, 5, 255, 256, 1000])
def test_timed_steps_stand_for_all(timed: int) -> None:
    """Exactly so if a step's duration grows evenly with the prefix, and nearly if a tenth of it grows quadratically."""
    from painters import prefix_weights

    weights = prefix_weights(32, 287, timed)
    assert len(weights) == min(timed, 256)
    assert sum(weights.values()) == pytest.approx(256)
    reckoned = sum(weight * (0.3 + 0.006 * length) for length, weight in weights.items())
    assert reckoned == pytest.approx(sum(0.3 + 0.006 * length for length in range(32, 288)))
    if timed >= 5:
        reckoned = sum(weight * (length + length**2 / 2870) for length, weight in weights.items())
        assert reckoned == pytest.approx(sum(length + length**2 / 2870 for length in range(32, 288)), rel=0.003)


def test_memory_is_told_from_what_was_there_before() -> None:
    from measuring import Measured
    from plan_captions import _figures

    megabyte = 10**6
    measured = {
        "survey": Measured(1.0, {"rows": 3}, 110 * megabyte, 10 * megabyte),
        "shards": Measured(2.0, {"shards": 1}, 105 * megabyte, 3 * megabyte),
        "joining": Measured(3.0, {"pictures": 3}, 121 * megabyte, 1 * megabyte),
    }
    figures = _figures(measured)
    assert figures["grown_mb"] == {"survey": 10, "shards": 5, "joining": 21}
    assert (figures["peak_mb"], figures["rows"], figures["pictures"]) == (21, 3, 3)


def test_half_the_precision_is_used() -> None:
    from steps import StepSettings, build_step

    settings = StepSettings("tiny", batch_size=1)
    exact = build_step(settings)()
    forget_precision()
    rounded = build_step(replace(settings, mixed_precision="bf16"))()
    assert exact != rounded
    assert abs(exact - rounded) < 0.01


@pytest.mark.parametrize(("script", "words"), COMMANDS, ids=lambda word: word or "plain")
def test_commands_of_the_readme_are_taken(script: str, words: str) -> None:
    app = typer.Typer()
    app.command()(importlib.import_module(script).main)
    typer.main.get_command(app).make_context(script, shlex.split(words))


def test_every_script_has_a_command_in_the_readme() -> None:
    assert {script for script, _ in COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize(
    ("script", "options", "sentence"),
    [
        ("train_step", {"size": "huge"}, "there is no size 'huge'; it must be one of base, large, tiny."),
        ("training_memory", {"sizes": "base,huge"}, "there is no size 'huge'; it must be one of base, large, tiny."),
        ("training_memory", {"batch_sizes": "1,x"}, "`batch_sizes` must be whole numbers with commas, got '1,x'."),
        ("training_memory", {"batch_sizes": "0"}, "`batch_sizes` must be 1 or more, got '0'."),
        ("predict", {"size": "huge"}, "there is no size 'huge'; it must be one of base, large, tiny."),
        ("generate", {"size": "huge"}, "there is no size 'huge'; it must be one of base, large, tiny."),
        ("generate", {"other_size": "huge"}, "there is no size 'huge'; it must be one of base, large, tiny."),
        ("generate", {"plot": Path("plot.png")}, "`--plot` needs `--part curves`."),
        ("generate", {"part": ["cold"], "check": True}, "`--check` needs `--part table`."),
        ("generate", {"json_file": Path("no/such/a.json")}, "there is no folder no/such for a.json."),
        ("generate", {"markdown": BENCHMARKS / "generate.py"}, "must have the lines <!-- generate.py: figures -->"),
        ("plan_captions", {"rows": "1,x"}, "`rows` must be whole numbers with commas, got '1,x'."),
        ("plan_captions", {"rows": "0"}, "`rows` must be 1 or more, got '0'."),
        ("flat_memory", {"size": "2TB"}, "a size is a number and MB or GB, such as 200MB, got '2TB'."),
        ("flat_memory", {"size": "9000000GB"}, "GB free, but"),
    ],
)
def test_bad_options_are_one_sentence(script: str, options: dict, sentence: str) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(sentence)):
        importlib.import_module(script).main(**options)
