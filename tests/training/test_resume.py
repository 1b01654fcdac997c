# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped and taken up again is the run that wasn't."""

import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_world import launch

from pai_painter.training import checkpoints
from pai_painter.training.arguments import DataArguments, PainterModelArguments
from pai_painter.training.train_painter import train_painter


class Stop(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def stop_at_4() -> Callable:
    """Runs a training that ends right after its checkpoint of step 4 is saved."""
    save = checkpoints.save_checkpoint

    def save_and_stop(*arguments: Any) -> None:
        save(*arguments)
        if arguments[2] == 4:
            raise Stop

    def run(train: Callable, *arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pai_painter.training.training_run.save_checkpoint", save_and_stop)
            with pytest.raises(Stop):
                train(*arguments)

    return run


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else folder / "model.safetensors")


def equal_weights(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def lines(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "rows_per_second"} for line in found]


def test_vqgan(vqgan_run: Callable, stop_at_4: Callable, tmp_path: Path) -> None:
    whole = vqgan_run(tmp_path / "whole")
    stop_at_4(vqgan_run, tmp_path / "stopped")
    # Killed a little later: figures of steps that the checkpoint doesn't know, the last line cut.
    with open(tmp_path / "stopped" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')
    resumed = vqgan_run(tmp_path / "stopped", resume_from_checkpoint="latest")
    assert equal_weights(whole, resumed)
    assert lines(whole) == lines(resumed)
    assert [line["step"] for line in lines(resumed) if "loss" in line] == list(range(1, 9))


@pytest.mark.parametrize(
    ("model_options", "data_options", "options"),
    [
        ({}, {}, {}),
        ({"lora_rank": 2, "lora_dropout": 0.2}, {}, {}),
        ({"gradient_checkpointing": True}, {}, {"num_crops": 0, "random_crop": True, "random_flip": True}),
        ({}, {"streaming": True, "shuffle_buffer": 5}, {"num_crops": 0, "mixed_precision": "no"}),
        ({}, {}, {"load_best_model_at_end": True, "eval_steps": 1}),
        ({}, {}, {"dataloader_num_workers": 2}),
        pytest.param({}, {}, {"torch_compile": True}, marks=pytest.mark.slow),
    ],
    ids=["everything", "lora", "encoded-anew", "streaming", "best", "workers", "compiled"],
)
def test_painter(
    model_options: dict,
    data_options: dict,
    options: dict,
    trained_painter: Path,
    data: DataArguments,
    painter_arguments: Callable,
    stop_at_4: Callable,
    tmp_path: Path,
) -> None:
    model = PainterModelArguments(model_name_or_path=str(trained_painter), **model_options)
    data = dataclasses.replace(data, **data_options)
    whole = train_painter(model, data, painter_arguments(tmp_path / "whole", **options))
    stop_at_4(train_painter, model, data, painter_arguments(tmp_path / "stopped", **options))
    # Samples in the meantime draw random numbers, and must not change what comes after.
    again = {**options, "resume_from_checkpoint": "latest", "sample_steps": 1}
    resumed = train_painter(model, data, painter_arguments(tmp_path / "stopped", **again))
    assert equal_weights(whole, resumed)
    assert lines(whole) == lines(resumed)
    other = train_painter(model, data, painter_arguments(tmp_path / "other", **options, seed=1))
    assert not equal_weights(whole, other)


def test_another_run_is_not_taken_up(vqgan_run: Callable, tmp_path: Path) -> None:
    vqgan_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds checkpoint-4 of an earlier run.*`latest`"):
        vqgan_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"checkpoint-4 .*: learning_rate was 0\.002 and is now 0\.005\. Set"):
        vqgan_run(tmp_path / "run", resume_from_checkpoint="latest", learning_rate=5e-3)
    with pytest.raises(ValueError, match=r"steps was 8 and is now 9\."):
        vqgan_run(tmp_path / "run", resume_from_checkpoint="latest", max_train_steps=9)


def test_the_other_model_and_other_data_are_named(
    vqgan_run: Callable, shapes: Path, data: DataArguments, tmp_path: Path
) -> None:
    vqgan_run(tmp_path / "run")
    table = shapes / "shapes.tsv"
    content, config = table.read_bytes(), (shapes / "vqgan" / "config.json").read_text()
    try:
        table.write_bytes(content.replace("红".encode(), "绿".encode()))
        with pytest.raises(ValueError, match=r"data was '\w+' and is now '\w+'\. Set"):
            vqgan_run(tmp_path / "run", resume_from_checkpoint="latest")
        table.write_bytes(content)
        (shapes / "vqgan" / "config.json").write_text(json.dumps({**json.loads(config), "dropout": 0.1}))
        with pytest.raises(ValueError, match=r"config\.dropout was 0\.0 and is now 0\.1\. Set"):
            vqgan_run(tmp_path / "run", resume_from_checkpoint="latest")
    finally:
        table.write_bytes(content)
        (shapes / "vqgan" / "config.json").write_text(config)


def test_nothing_to_take_up_is_the_beginning(vqgan_run: Callable, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    vqgan_run(tmp_path / "run", resume_from_checkpoint="latest", max_train_steps=3)
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2, 3]
    assert 9.0 not in [line.get("loss") for line in lines(tmp_path / "run")]


def write_settings(path: Path, model: dict, data: DataArguments, training: dict) -> str:
    settings = {**model, **vars(data), **training}
    path.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_vqgan.py", "train.py"])
def test_two_processes(
    script: str,
    shapes: Path,
    vqgan_folder: Path,
    data: DataArguments,
    painter_options: dict,
    tmp_path: Path,
) -> None:
    if script == "train.py":
        model = {"config_name": str(shapes / "painter"), "vqgan": str(vqgan_folder)}
        training = painter_options
    else:
        model = {"config_name": str(shapes / "vqgan")}
        training = {
            "max_train_steps": 8,
            "per_device_train_batch_size": 5,
            "codebook_start_step": 2,
            "save_steps": 4,
            "use_ema": True,
            "restart_below": 0.5,
            "blank_code": True,
            "mixed_precision": "bf16",
        }
    settings = write_settings(tmp_path / "settings.yaml", model, data, training)
    whole = launch(script, settings, "--output_dir", str(tmp_path / "whole"), processes=2)
    assert whole.returncode == 0, whole.stderr
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", stopped / "checkpoint-4")
    resumed = launch(script, settings, "--output_dir", str(stopped), "--resume_from_checkpoint", "latest", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert equal_weights(tmp_path / "whole", stopped)
    alone = launch(script, settings, "--output_dir", str(stopped), "--resume_from_checkpoint", "latest")
    assert alone.returncode == 2
    assert "processes was 2 and is now 1" in alone.stderr


@pytest.mark.slow
def test_kills_at_any_time(shapes: Path, data: DataArguments, tmp_path: Path) -> None:
    """SIGKILL after 1, 2, 3 … new checkpoints, wherever the run then is; in the end all is as if nothing had been."""
    model = {"config_name": str(shapes / "vqgan")}
    training = {
        "max_train_steps": 60,
        "per_device_train_batch_size": 5,
        "codebook_start_step": 2,
        "save_steps": 1,
        "use_ema": True,
        "save_total_limit": 2,
    }
    settings = write_settings(tmp_path / "settings.yaml", model, data, training)
    words = ("train_vqgan.py", settings, "--resume_from_checkpoint", "latest", "--output_dir")
    killed = tmp_path / "killed"
    for number in range(4):
        before = checkpoints.find_checkpoint(killed, "latest")
        run = launch(*words, str(killed), wait=False)
        while checkpoints.find_checkpoint(killed, "latest") == before and run.poll() is None:
            time.sleep(0.01)
        time.sleep(0.017 * number)
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stderr.close()
    assert launch(*words, str(killed)).returncode == 0
    assert launch(*words, str(tmp_path / "whole")).returncode == 0
    assert equal_weights(killed, tmp_path / "whole")
