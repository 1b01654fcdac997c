# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its output folder."""

import dataclasses
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hub_stand_in import HubStandIn
from PIL import Image
from safetensors.torch import load_file
from tiny_world import launch
from transformers import AutoModel

from pai_painter import PaiPainterPipeline
from pai_painter.training import painter_data
from pai_painter.training.arguments import DataArguments, PainterModelArguments
from pai_painter.training.train_painter import train_painter


@pytest.fixture
def model(trained_painter: Path) -> PainterModelArguments:
    return PainterModelArguments(model_name_or_path=str(trained_painter))


def validations(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]


def test_a_whole_folder(
    model: PainterModelArguments, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    prompts = ["红色的方", "绿色的叉"]
    folder = train_painter(
        model, data, painter_arguments(tmp_path / "out", sample_steps=4, eval_steps=4, validation_prompts=prompts)
    )
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(
        [
            *(
                ".lock",
                "README.md",
                "checkpoint-4",
                "config.json",
                "generation_config.json",
                "loss.png",
                "metrics.jsonl",
            ),
            *("model.safetensors", "processor_config.json", "samples", "tokenizer.json", "tokenizer_config.json"),
            "training_summary.json",
        ]
    )
    # Two validation rows and two prompts; original, VQGAN and painted side by side.
    grid = Image.open(folder / "samples" / "step-000008.png")
    assert grid.width > 3 * 128
    assert grid.height > 4 * 128
    summary = json.loads((folder / "training_summary.json").read_text())
    assert (summary["steps"], summary["rows"], summary["validation_rows"]) == (8, 12, 12)
    assert summary["epochs"] == pytest.approx(8 * 5 * 2 / 12)
    assert summary["validation_loss"] == pytest.approx(validations(folder)[-1][1])
    assert summary["trained_parameters"] < summary["parameters"]  # the VQGAN is frozen
    card = (folder / "README.md").read_text()
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (folder / "training_summary.json").read_text()
    assert "samples/step-000008.png" in card
    # A checkpoint doesn't hold what isn't trained.
    held = load_file(folder / "checkpoint-4" / "model.safetensors")
    assert not any("vqgan" in name for name in held)


def test_a_folder_with_an_adapter(
    trained_painter: Path, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    model = PainterModelArguments(model_name_or_path=str(trained_painter), lora_rank=2)
    folder = train_painter(model, data, painter_arguments(tmp_path / "out"))
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    held = load_file(folder / "checkpoint-4" / "model.safetensors")
    assert held
    assert all("lora_" in name for name in held)
    painted, plain = (
        PaiPainterPipeline.from_pretrained(name)("红色的圆", seed=0).images[0] for name in (folder, trained_painter)
    )
    assert painted.size == plain.size
    trained = load_file(folder / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in trained.items() if "lora_B" in name)


def test_the_best_model_is_the_one_that_is_kept(
    model: PainterModelArguments,
    data: DataArguments,
    painter_arguments: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 2.1, 1.0, 1.0, 1.0])
    monkeypatch.setattr(painter_data, "validation_loss", lambda *_: {"validation_loss": next(losses)})
    often = {"eval_steps": 1, "sample_steps": 8, "save_steps": 99}
    folder = train_painter(model, data, painter_arguments(tmp_path / "out", early_stopping_patience=3, **often))
    assert validations(folder) == [(1, 3.0), (2, 2.0), (3, 2.5), (4, 2.0), (5, 2.1)]
    monkeypatch.undo()
    # The same run of two steps; its last rate of learning isn't 0 then, so the schedule must not know.
    short = {"max_train_steps": 2, "lr_scheduler_type": "constant", **often}
    constant = painter_arguments(tmp_path / "long", lr_scheduler_type="constant", load_best_model_at_end=True, **often)
    losses = iter([3.0, 2.0, *[2.5] * 6])
    monkeypatch.setattr(painter_data, "validation_loss", lambda *_: {"validation_loss": next(losses)})
    best = load_file(train_painter(model, data, constant) / "model.safetensors")
    monkeypatch.undo()
    second = load_file(train_painter(model, data, painter_arguments(tmp_path / "short", **short)) / "model.safetensors")
    assert best.keys() == second.keys()
    assert all(torch.equal(best[name], second[name]) for name in best)
    assert AutoModel.from_pretrained(tmp_path / "long").vqgan is not None


def test_without_validation_there_is_no_best(
    model: PainterModelArguments, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    data = dataclasses.replace(data, validation_file=[])
    with pytest.raises(ValueError, match=r"need a validation loss: please set `validation_file`\."):
        train_painter(model, data, painter_arguments(tmp_path / "out", early_stopping_patience=3))
    folder = train_painter(
        model, data, painter_arguments(tmp_path / "out", validation_prompts=["红色的圆"], sample_steps=8)
    )
    assert Image.open(folder / "samples" / "step-000008.png").height < 2 * 128 + 64
    assert validations(folder) == []


def test_streams_need_steps(
    model: PainterModelArguments, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    data = dataclasses.replace(data, streaming=True)
    endless = painter_arguments(tmp_path / "out", max_train_steps=None, num_crops=0)
    with pytest.raises(ValueError, match=r"The number of rows isn't known .*: please set `max_train_steps`\."):
        train_painter(model, data, endless)
    with pytest.raises(ValueError, match=r"A stream keeps no image tokens: please set `num_crops` to 0"):
        train_painter(model, data, painter_arguments(tmp_path / "out"))


def test_to_the_hub(
    model: PainterModelArguments,
    data: DataArguments,
    painter_arguments: Callable,
    hub: HubStandIn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    options = {"push_to_hub": True, "hub_model_id": "painter/mine", "hub_private": True, "hub_tag": "v1.0"}
    folder = train_painter(model, data, painter_arguments(tmp_path / "out", **options, sample_steps=8))
    repository = hub.repositories["painter/mine"]
    assert repository.private
    assert set(repository.tags) == {"v1.0"}
    files = repository.files()
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "loss.png", "training_summary.json", "samples/step-000008.png"} <= files.keys()
    assert not [name for name in files if "checkpoint" in name or "jsonl" in name]


def test_an_adapter_to_the_hub(
    model: PainterModelArguments,
    data: DataArguments,
    painter_arguments: Callable,
    hub: HubStandIn,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The base is a folder; on the Hub the adapter and its card name it as the Hub does, and no folder."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    adapter = dataclasses.replace(model, lora_rank=2)
    options = {"push_to_hub": True, "hub_model_id": "painter/style", "hub_base_model": "painter/base"}
    train_painter(adapter, data, painter_arguments(tmp_path / "out", **options))
    files = hub.repositories["painter/style"].files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "painter/base"
    assert "base_model: painter/base" in files["README.md"].decode()
    folders = (str(tmp_path).encode(), str(model.model_name_or_path).encode())
    assert not [name for name, content in files.items() if any(folder in content for folder in folders)]


@pytest.mark.parametrize(
    ("options", "lora_rank", "sentence"),
    [
        ({"hub_model_id": "painter/style"}, 2, "please set `hub_base_model` to its name on the Hub"),
        ({"hub_base_model": "painter/base"}, None, "`hub_base_model` is for adapters"),
        ({"hub_model_id": "a/b/c"}, None, "namespace/repo_name': 'a/b/c'"),
        ({}, None, "needs a token"),
    ],
)
def test_what_cannot_be_pushed_is_not_trained(
    model: PainterModelArguments,
    data: DataArguments,
    painter_arguments: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: dict,
    lora_rank: int | None,
    sentence: str,
) -> None:
    if options:
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(ValueError, match=sentence):
        train_painter(
            dataclasses.replace(model, lora_rank=lora_rank),
            data,
            painter_arguments(tmp_path / "out", push_to_hub=True, **options),
        )
    assert not (tmp_path / "out").exists()


def test_trackio(trained_painter: Path, data: DataArguments, painter_options: dict, tmp_path: Path) -> None:
    chosen = {**vars(data), **painter_options, "model_name_or_path": str(trained_painter), "report_to": ["trackio"]}
    chosen |= {"output_dir": str(tmp_path / "mine"), "max_train_steps": 3}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({k: v for k, v in chosen.items() if v not in (None, [])}))
    done = launch("train.py", str(tmp_path / "settings.yaml"), environment={"TRACKIO_DIR": str(tmp_path / "trackio")})
    assert done.returncode == 0, done.stderr
    (table,) = (tmp_path / "trackio").glob("pai-painter*.db")
    with sqlite3.connect(table) as connection:
        rows = connection.execute("SELECT run_name, step, CAST(metrics AS TEXT) FROM metrics ORDER BY step").fetchall()
    assert {name for name, *_ in rows} == {"mine"}
    assert [step for _, step, metrics in rows if "learning_rate" in metrics] == [1, 2, 3]


def test_tensorboard(
    model: PainterModelArguments, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_painter(model, data, painter_arguments(tmp_path / "out", report_to=["tensorboard"], eval_steps=4))
    found = EventAccumulator(str(folder / "pai-painter")).Reload()
    written = [(event.step, pytest.approx(event.value)) for event in found.Scalars("validation_loss")]
    assert written == validations(folder)
    assert len(found.Scalars("loss")) == 8
