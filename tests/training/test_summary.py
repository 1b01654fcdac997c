# SPDX-License-Identifier: Apache-2.0
"""The facts of a run: from its figures and arguments, without the machine's paths."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pai_painter.training.summary import (
    TrainingFacts,
    gather_facts,
    hub_name_or_none,
    mean_rows_per_second,
    peak_memory,
    read_metrics,
    shown_name,
    write_summary,
)

METRICS = [
    {"step": 10, "loss": 4.0, "rows_per_second": 10.0, "learning_rate": 4e-5},
    {"step": 10, "validation_loss": 3.5},
    {"step": 20, "loss": 3.0, "rows_per_second": 30.0, "learning_rate": 3e-5},
    {"step": 20, "validation_loss": 2.0},
    {"step": 30, "loss": 2.5, "rows_per_second": 20.0, "learning_rate": 2e-5},
    {"step": 30, "validation_loss": 2.25},
]


def write_metrics(folder: Path, lines: list[dict[str, Any]] = METRICS, tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def gather(folder: Path, **changes: Any) -> TrainingFacts:
    model = torch.nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    known: dict[str, Any] = {
        "model": model,
        "base_model": "alibaba-pai/pai-painter-base-zh",
        "data": str(folder / "train.tsv"),
        "data_hash": "0123abcd",
        "rows": 100,
        "rejected_rows": 3,
        "validation_rows": 7,
        "steps": 30,
        "rows_per_step": 16,
        "seconds": 65.4,
        "device": torch.device("cpu"),
        "settings": {"learning_rate": 4e-5},
    }
    return gather_facts(folder, **{**known, **changes})


def test_figures_and_counts(tmp_path: Path) -> None:
    facts = gather(write_metrics(tmp_path / "out"))
    assert (facts.name, facts.data, facts.base_model) == ("out", "train.tsv", "alibaba-pai/pai-painter-base-zh")
    assert facts.base_model_on_hub
    assert (facts.loss, facts.validation_loss) == (2.5, 2.25)
    assert (facts.best_validation_loss, facts.best_step) == (2.0, 20)
    assert facts.perplexity == pytest.approx(9.4877, abs=1e-4)
    assert facts.best_perplexity == pytest.approx(7.3891, abs=1e-4)
    assert (facts.parameters, facts.trained_parameters) == (15, 12)
    assert facts.epochs == 4.8
    assert facts.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts.versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {"pai-painter", "transformers", "datasets", "accelerate"} <= set(facts.versions)


def test_the_mean_speed_is_rows_over_seconds(tmp_path: Path) -> None:
    # 16 rows a step: 160 rows each in 16, 5.33 and 8 seconds.
    facts = gather(write_metrics(tmp_path))
    assert facts.rows_per_second == pytest.approx(480 / (16 + 160 / 30 + 8))
    assert mean_rows_per_second([{"step": 30, "rows_per_second": 5.0}, {"step": 40, "rows_per_second": 1.0}]) == 2.5
    assert mean_rows_per_second([{"step": 10, "loss": 1.0}]) is None


def test_a_run_without_validation(tmp_path: Path) -> None:
    facts = gather(write_metrics(tmp_path, METRICS[:1]), validation_rows=None, base_model=None)
    assert (facts.loss, facts.validation_loss, facts.best_step, facts.perplexity) == (4.0, None, None, None)
    assert not facts.base_model_on_hub
    json.loads(write_summary(tmp_path, facts).read_text())


def test_streamed_rows(tmp_path: Path) -> None:
    facts = gather(write_metrics(tmp_path), rows=None)
    assert (facts.rows, facts.epochs) == (None, None)
    assert json.loads(write_summary(tmp_path, facts).read_text())["epochs"] is None


def test_cut_and_strange_lines_are_left_out_and_steps_done_again_count_once(tmp_path: Path) -> None:
    lines = [
        {"step": 20, "loss": 3.0},
        {"step": 10, "loss": 4.0},
        {"step": 30, "loss": math.nan, "learning_rate": 1e-5},
        {"step": 20, "loss": 2.9},
        {"step": 20, "validation_loss": 2.0},
        {"loss": 1.0},
        {"step": "x", "loss": 1.0},
        {"step": 40, "loss": True},
    ]
    write_metrics(tmp_path, lines, tail='[1]\n\n7\n{"step": 50, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss": 4.0},
        {"step": 20, "loss": 2.9},
        {"step": 20, "validation_loss": 2.0},
        {"step": 30, "learning_rate": 1e-5},
        {"step": 40},
    ]


def test_the_summary_holds_no_path_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "shop").mkdir(parents=True)  # must not turn the repository's name into a path
    folder = write_metrics(tmp_path / "跑")
    settings = {
        "output_dir": str(folder),
        "train_file": [str(tmp_path / "a.tsv"), "data/*.tsv", "C:\\data\\b.tsv", "~/c.tsv"],
        "cache_dir": tmp_path / "cache",
        "nested": {"vqgan": f"{tmp_path}/vqgan/", "none": None},
        "hub_token": "hf_secret",
        "hub_model_id": "me/shop",
        "tokenizer_name": "owner/words",
        "caption_separator": "/",
        "input_schema": "idx:str:1,text:str:1",
        "use_ema": True,
    }
    facts = gather(folder, settings=settings, base_model=str(tmp_path / "painter"), hub_model_id="me/shop")
    path = write_summary(folder, facts)
    text = path.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "hf_secret" not in text
    summary = json.loads(text)
    assert summary["settings"] == {
        "output_dir": "跑",
        "train_file": ["a.tsv", "*.tsv", "b.tsv", "c.tsv"],
        "cache_dir": "cache",
        "nested": {"vqgan": "vqgan", "none": None},
        "hub_model_id": "me/shop",
        "tokenizer_name": "owner/words",
        "caption_separator": "/",
        "input_schema": "idx:str:1,text:str:1",
        "use_ema": True,
    }
    assert (summary["name"], summary["base_model"], summary["base_model_on_hub"]) == ("me/shop", "painter", False)
    assert summary["perplexity"] == pytest.approx(math.exp(2.25))
    assert summary["peak_memory"]["process"] > 2**20


def test_names_on_the_hub_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name_or_none("owner/model") == "owner/model"
    for path in ("model", "/owner/model", "./model", "owner/model/sub", "../model", "画/家", "owner/a--b", ""):
        assert hub_name_or_none(path) is None
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert hub_name_or_none("owner/model") is None
    assert shown_name("owner/model") == "model"
    assert shown_name("/a/b//") == "b"


def test_a_loss_beyond_what_e_can_be_raised_to(tmp_path: Path) -> None:
    facts = replace(gather(write_metrics(tmp_path)), validation_loss=1e6)
    assert facts.perplexity is None
    assert json.loads(write_summary(tmp_path, facts).read_text())["perplexity"] is None


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = gather(write_metrics(tmp_path))
    path = write_summary(tmp_path, facts)
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_summary(tmp_path, replace(facts, seconds=math.inf))
    assert path.read_text() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["metrics.jsonl", "training_summary.json"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it twice")
def test_peak_memory_is_in_bytes() -> None:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    assert peak_memory(torch.device("cpu")) == {"process": pytest.approx(int(line.split()[1]) * 1024, rel=0.05)}
