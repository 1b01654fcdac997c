# SPDX-License-Identifier: Apache-2.0
"""Runs that are asked to stop, or are killed, and go on as if nothing had been."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from kill_driver import POINTS
from safetensors.torch import load_file
from tiny_world import launch

from pai_painter.signals import Stopped, StopSignals
from pai_painter.training import train_painter as painter_module
from pai_painter.training.arguments import DataArguments, PainterModelArguments
from pai_painter.training.train_painter import train_painter


def equal_weights(one: Path, other: Path) -> bool:
    names = [name for name in ("model.safetensors", "adapter_model.safetensors") if (one / name).is_file()]
    first, second = load_file(one / names[0]), load_file(other / names[0])
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_step_saves_at_its_end(
    number: int,
    trained_painter: Path,
    data: DataArguments,
    painter_arguments: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    model = PainterModelArguments(model_name_or_path=str(trained_painter))
    whole = train_painter(model, data, painter_arguments(tmp_path / "whole", save_steps=999))
    before = signal.getsignal(number)
    sequences, batches = painter_module.sequences, []

    def stop_in_the_second_batch_of_step_3(*arguments: object) -> object:
        batches.append(arguments)
        if len(batches) == 6:
            os.kill(os.getpid(), number)
        return sequences(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(painter_module, "sequences", stop_in_the_second_batch_of_step_3)
        with pytest.raises(Stopped) as stop:
            train_painter(model, data, painter_arguments(tmp_path / "stopped", save_steps=999))
    assert stop.value.number == number
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    arguments = painter_arguments(tmp_path / "stopped", save_steps=999, resume_from_checkpoint="latest")
    assert equal_weights(train_painter(model, data, arguments), whole)


def test_a_signal_in_the_last_step_lets_the_run_end(
    trained_painter: Path,
    data: DataArguments,
    painter_arguments: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(StopSignals, "number", signal.SIGTERM)
    model = PainterModelArguments(model_name_or_path=str(trained_painter))
    folder = train_painter(model, data, painter_arguments(tmp_path / "out", max_train_steps=1))
    assert (folder / "model.safetensors").is_file()


def test_the_second_signal_does_not_wait() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.number == signal.SIGINT
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def settings(trained_painter: Path, data: DataArguments, painter_options: dict, tmp_path: Path) -> Callable[..., str]:
    def write(**options: object) -> str:
        chosen = {"model_name_or_path": str(trained_painter), **vars(data), **painter_options, **options}
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in chosen.items() if value not in (None, [])}))
        return str(path)

    return write


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_stopped_as_a_user_or_a_cluster_does(processes: int, number: int, settings: Callable, tmp_path: Path) -> None:
    file = settings(max_train_steps=400, save_steps=999, num_crops=1, max_shift=0)
    words = ("train.py", file, "--resume_from_checkpoint", "latest", "--output_dir")
    whole = launch(*words, str(tmp_path / "whole"), processes=processes)
    assert whole.returncode == 0, whole.stderr
    stopped = tmp_path / "stopped"
    run = launch(*words, str(stopped), processes=processes, wait=False)
    while not (stopped / "metrics.jsonl").is_file() and run.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    if processes == 1:  # torchrun itself exits with 1
        assert run.returncode == 128 + number, said
        assert "Traceback" not in said
    assert "train.py: Stopped; resume from " in said
    (checkpoint,) = stopped.glob("checkpoint-*")
    assert 0 < int(checkpoint.name.partition("-")[2]) < 400
    resumed = launch(*words, str(stopped), processes=processes)
    assert resumed.returncode == 0, resumed.stderr
    assert equal_weights(stopped, tmp_path / "whole")


@pytest.mark.slow
def test_the_second_signal_ends_what_waits_for_a_peer_that_stands_still(settings: Callable, tmp_path: Path) -> None:
    """The first asks for a checkpoint after the step, which never ends without the other process's gradients."""
    words = ("train.py", settings(max_train_steps=100_000, save_steps=99_999), "--output_dir", str(tmp_path / "out"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    runs = [launch(*words, wait=False, environment=rank) for rank in ranks]
    try:
        while not (tmp_path / "out" / "metrics.jsonl").is_file():
            assert runs[0].poll() is runs[1].poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        runs[1].send_signal(signal.SIGSTOP)
        time.sleep(1)
        runs[0].send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            runs[0].wait(4)
        runs[0].send_signal(signal.SIGTERM)
        assert runs[0].wait(20) == 143
        assert runs[0].stderr.read().endswith("Stopped while it waited; what was saved before is complete.\n")
    finally:
        for run in runs:
            run.kill()
            run.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, {"lora_rank": 2}], ids=["full", "lora"])
def test_killed_at_the_worst_moments(lora: dict, settings: Callable, tmp_path: Path) -> None:
    """SIGKILL at each of them in turn, in one and the same run: with an average, accumulation and mixed precision."""
    file = settings(max_train_steps=14, save_steps=2, save_total_limit=1, **lora)
    words = [file, "--resume_from_checkpoint", "latest", "--output_dir"]
    killed = tmp_path / "killed"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    driver = str(Path(__file__).with_name("kill_driver.py"))
    # Saving: the first two calls write the optimizer and the schedule.
    for point, times in zip(POINTS, (6, 2, 1, 1, 2), strict=True):
        before = steps_done(killed)
        command = [sys.executable, driver, point, str(times), *words, str(killed)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == -signal.SIGKILL, (point, run.stderr)
        assert not (killed / "config.json").exists()
        assert steps_done(killed) >= before
    assert steps_done(killed) >= 4
    assert launch("train.py", *words, str(killed)).returncode == 0
    assert launch("train.py", *words, str(tmp_path / "whole")).returncode == 0
    assert equal_weights(killed, tmp_path / "whole")
    assert [path.name for path in killed.iterdir() if path.name.startswith(".")] == []


def steps_done(folder: Path) -> int:
    whole = [int(path.parent.name.partition("-")[2]) for path in folder.glob("checkpoint-*/manifest.json")]
    return max(whole, default=0)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(settings: Callable, tmp_path: Path) -> None:
    """The same global batch in one process, in two, and in one that accumulates: the same losses, but for rounding."""
    common = {"pkeep": 1.0, "dropout": 0.0, "mixed_precision": "no", "num_crops": 1, "max_shift": 0, "use_ema": False}
    common |= {"max_train_steps": 30, "learning_rate": 0.01, "save_steps": 999}
    curves = {}
    for name, processes, batch_size, accumulation in [("one", 1, 6, 1), ("two", 2, 3, 1), ("accumulating", 1, 2, 3)]:
        divided = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        file = settings(**common, **divided)
        run = launch("train.py", file, "--output_dir", str(tmp_path / name), processes=processes)
        assert run.returncode == 0, run.stderr
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        curves[name] = torch.tensor([line["loss"] for line in metrics if "loss" in line])
    assert len(curves["one"]) == 30
    assert curves["one"][-1] < 0.8 * curves["one"][0]
    torch.testing.assert_close(curves["two"], curves["one"], rtol=2e-5, atol=0)
    torch.testing.assert_close(curves["accumulating"], curves["one"], rtol=2e-5, atol=0)
