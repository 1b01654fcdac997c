# SPDX-License-Identifier: Apache-2.0
"""What both trainers share around their loops."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from pai_painter.training.arguments import TrainingArguments
from pai_painter.training.training_run import TrainingRun, begin_run


class Numbers(Dataset[torch.Tensor]):
    """Row n is the number n."""

    def __getitem__(self, item: tuple[int, int]) -> torch.Tensor:
        return torch.tensor([float(item[1])])


class Model(torch.nn.Module):
    """One weight, a dropout, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Linear(1, 1).requires_grad_(False)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return (self.dropout(self.layer(numbers)) + self.frozen(numbers)).square().mean()

    def save_pretrained(self, folder: str) -> None:
        save_file(self.state_dict(), Path(folder) / "model.safetensors")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., tuple[TrainingRun, Model]]]:
    def make(**options: Any) -> tuple[TrainingRun, Model]:
        settings = {
            "max_train_steps": 6,
            "per_device_train_batch_size": 2,
            "logging_steps": 2,
            "sample_steps": 2,
            "eval_steps": 2,
        }
        training = TrainingArguments(output_dir=str(tmp_path / "out"), **{**settings, **options})
        held.close()
        run = held.enter_context(begin_run(training))
        model = Model().eval()  # as `from_pretrained` gives it
        run.prepare(model, list(model.layer.parameters()), 5, {}, {})
        return run, model

    with ExitStack() as held:
        yield make


def no_sample(step: int) -> None:
    pass


def keep_nothing(*_: object) -> None:
    pass


def save(model: Model, folder: Path, gathered: None) -> None:
    assert gathered is None
    model.save_pretrained(folder)


def train(
    run: TrainingRun,
    evaluate: Callable = dict,
    sample: Callable = no_sample,
    factor: float = 1.0,
    keep: Callable = keep_nothing,
) -> None:
    run.evaluate, run.sample, run.save = evaluate, sample, keep
    with run.signals:
        for step, numbers in run.batches(Numbers(), 5):
            loss = run.objective(numbers) * factor
            run.update(loss)
            run.after_batch(step, loss)
        run.finish()


def metrics(tmp_path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("use_ema", [False, True])
def test_reports_see_what_would_be_saved(run: Callable, use_ema: bool, tmp_path: Path) -> None:
    running, model = run(use_ema=use_ema, ema_decay=0.5, learning_rate=0.1)
    seen, sampled = [], {}

    def evaluate() -> dict[str, float]:
        assert not model.training
        assert not model.dropout.training
        seen.append(model.layer.weight.item())
        return {"figure": float(len(seen))}

    def sample(done: int) -> None:
        assert not model.dropout.training
        sampled[done] = model.layer.weight.item()

    weights = []
    update = running.update

    def update_and_look(loss: torch.Tensor) -> None:
        assert model.training
        update(loss)
        weights.append(model.layer.weight.item())

    running.update = update_and_look
    train(running, evaluate, sample, keep=partial(save, model))
    average = weights[0]
    expected = [average]
    for weight in weights[1:]:
        average = 0.5 * average + 0.5 * weight
        expected.append(average)
    wanted = expected if use_ema else weights
    assert sampled == {done: pytest.approx(wanted[done - 1], abs=1e-6) for done in (2, 4, 6)}
    assert seen == list(sampled.values())
    assert model.layer.weight.item() == weights[-1]
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved["layer.weight"].item() == pytest.approx(wanted[-1], abs=1e-6)
    assert torch.equal(saved["frozen.weight"], model.frozen.weight)
    assert [line["step"] for line in metrics(tmp_path) if "figure" in line] == [2, 4, 6]
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [2, 4, 6]


def test_a_model_that_cannot_be_saved_leaves_a_checkpoint(run: Callable, tmp_path: Path) -> None:
    running, model = run()

    def save_half(folder: Path, gathered: None) -> None:
        model.save_pretrained(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(
        OSError, match=r"can't be saved in \S+out \(.*No space left.*\); fix this and resume from \S+-6\."
    ):
        train(running, keep=save_half)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "checkpoint-6", "metrics.jsonl"]
    assert model.training
    running, model = run(resume_from_checkpoint="latest")
    train(running, keep=partial(save, model))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_model_is_saved_before_anything_else_can_fail(run: Callable, tmp_path: Path) -> None:
    running, model = run()
    order = []

    def fail(*_: object) -> dict[str, float]:
        order.append((tmp_path / "out" / "model.safetensors").exists())
        if running.done == running.steps:
            raise RuntimeError("out of memory")
        return {}

    with pytest.raises(RuntimeError, match="out of memory"):
        train(running, evaluate=fail, keep=partial(save, model))
    assert order == [False, False, True]
    running, model = run(overwrite_output_dir=True)
    train(running, sample=fail, keep=partial(save, model))  # samples are no reason to end


def test_only_what_trains_is_held_twice(run: Callable) -> None:
    running, _ = run(use_ema=True)
    assert [weight.shape for weight in running.ema.shadow_params] == [(1, 1), (1,)]
    assert run(use_ema=False)[0].ema is None


def test_clipping(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    running, model = run(max_grad_norm=0.25, mixed_precision="bf16")
    lengths = []
    step = running.optimizer.step

    def look_and_step() -> None:
        gradients = [p.grad for p in model.layer.parameters()]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        lengths.append(torch.stack([g.norm() for g in gradients]).norm().item())
        step()

    monkeypatch.setattr(running.optimizer, "step", look_and_step)
    train(running, factor=1000.0)
    assert max(lengths) == pytest.approx(0.25, rel=1e-3)


def test_a_loss_that_is_no_number_ends_the_run(run: Callable, tmp_path: Path) -> None:
    running, _ = run(logging_steps=100, save_steps=3)
    with pytest.raises(ValueError, match=r"The loss became (nan|inf) in the 3 batches before step 3; please lower"):
        train(running, factor=float("nan"))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_saving_does_not_disturb_the_log(run: Callable, tmp_path: Path) -> None:
    train(run(logging_steps=4, save_steps=3, max_train_steps=5)[0])
    assert [line["step"] for line in metrics(tmp_path)] == [4, 5]


def test_a_full_disk_does_not_end_the_run(run: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    running, model = run()
    (tmp_path / "out" / "metrics.jsonl").mkdir(parents=True)  # cannot be written to

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    train(running, sample=full)
    assert model.training
    assert len([m for m in caplog.messages if m.startswith("The samples of step") and "No space left" in m]) == 3
    assert len([m for m in caplog.messages if m.startswith("The metrics of step")]) == 3


def test_the_launcher_must_not_contradict(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="launched with mixed precision bf16, but `mixed_precision` is no: please"):
        run(mixed_precision="no")
    assert run()[0].training.mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match=r"mixed precision fp8.* to no, bf16 or fp16"):
        run()


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({}, {"mixed_precision": "fp16"}, "fp16 needs an accelerator; on the CPU please set `mixed_precision` to bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {}, "fp16 needs an accelerator"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "FSDP needs accelerators, and this machine trains on cpu: please launch"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed is not installed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "Megatron is not installed"),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            {"gradient_accumulation_steps": 2},
            "launched with 4 `gradient_accumulation_steps`, but here it is 2.",
        ),
        ({}, {"report_to": ["tensorbord"]}, "The tracker tensorbord .*; accelerate knows aim, clearml"),
        ({}, {"report_to": ["wandb"]}, "The tracker wandb .* isn't installed"),
    ],
)
def test_what_would_be_ignored_in_silence_is_refused(
    run: Callable, monkeypatch: pytest.MonkeyPatch, environment: dict, options: dict, message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, ImportError), match=message):
        run(**options)


def test_noise_of_a_step_is_a_function_of_seed_step_and_process(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(**options: Any) -> list[float]:
        running, _ = run(**options)
        found = []
        for _ in running.batches(Numbers(), 5):
            found.append(torch.rand(()).item())
            torch.rand(len(found))  # what a step draws doesn't matter to the next
        return found

    assert drawn() == drawn()
    assert len(set(drawn())) == 6
    assert drawn(seed=1) != drawn()
    parts = drawn(gradient_accumulation_steps=2)
    assert len(set(parts)) == 12
    assert parts[::2] == drawn()
    first = drawn()
    monkeypatch.setattr(Accelerator, "process_index", 1)
    assert not {*drawn()} & {*first}


def test_a_line_of_the_log_is_the_mean_since_the_last(run: Callable, tmp_path: Path) -> None:
    running, _ = run(gradient_accumulation_steps=2, logging_steps=3, save_steps=2)
    running.sample = no_sample
    losses = []
    for step, _numbers in running.batches(Numbers(), 5):
        losses.append(float(len(losses)))
        loss = torch.tensor(losses[-1], requires_grad=True)
        running.update(loss)
        running.after_batch(step, loss)
    assert [line["loss"] for line in metrics(tmp_path)] == [sum(range(6)) / 6, sum(range(6, 12)) / 6]


def test_a_step_that_fp16_skips_moves_nothing(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    running, _ = run(use_ema=True, lr_scheduler_type="linear")
    seen = []
    for step, numbers in running.batches(Numbers(), 5):
        with monkeypatch.context() as patch:
            patch.setattr(Accelerator, "optimizer_step_was_skipped", step == 1)
            running.update(running.objective(numbers))
        seen.append((running.ema.optimization_step, running.schedule.last_epoch))
    assert seen == [(1, 1), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]


def test_steps_of_a_run() -> None:
    training = TrainingArguments(output_dir="unused", num_train_epochs=2.5, per_device_train_batch_size=4)
    assert training.total_steps(rows=100, processes=1) == 62
    assert training.total_steps(rows=100, processes=2) == 31
    assert training.total_steps(rows=1, processes=8) == 1
    training.max_train_steps = 7
    assert training.total_steps(rows=100, processes=1) == 7


def test_news_of_a_run_taken_up(run: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pai_painter"):
        train(run(save_steps=4)[0])
        caplog.clear()
        run(save_steps=4, resume_from_checkpoint="latest")
    assert f"Resuming from {tmp_path / 'out' / 'checkpoint-4'}, 4 of 6 steps are done." in caplog.messages


def test_processes_that_would_each_train_alone_are_refused(
    run: Callable[..., tuple[TrainingRun, Model]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(num_processes=1, gradient_accumulation_steps=1, device=torch.device("cpu"))
    monkeypatch.setattr("pai_painter.training.accelerator.Accelerator", lambda **_: found)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="ACCELERATE_USE_CPU=true"):
        run()


def test_what_a_killed_run_left_half_written_goes(run: Callable, tmp_path: Path) -> None:
    folders = [tmp_path / "out" / name for name in (".checkpoint-3.partial", ".model-x", "best/.model-y", "mine")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "file").write_text("")
    run()
    assert [folder.name for folder in folders if folder.exists()] == ["mine"]


def test_a_window_of_another_length_begins_at_the_checkpoint(run: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """5 windows of 2 batches are no whole number of windows of 3."""
    train(run(gradient_accumulation_steps=2, save_steps=5)[0])
    options = {"resume_from_checkpoint": "latest", "ignore_changed_settings": True, "max_train_steps": 8}
    running, _ = run(gradient_accumulation_steps=3, save_steps=5, **options)
    assert "gradient_accumulation_steps was 2 and is now 3" in caplog.text
    updates = []
    for number, (step, numbers) in enumerate(running.batches(Numbers(), 5)):
        running.update(running.objective(numbers))
        if running.accelerator.sync_gradients:
            updates.append((number, step))
    assert updates == [(2, 5), (5, 6), (8, 7)]


def test_a_checkpoint_beyond_the_end(run: Callable) -> None:
    train(run(save_steps=4)[0])
    options = {"resume_from_checkpoint": "latest", "ignore_changed_settings": True}
    with pytest.raises(ValueError, match=r"checkpoint-4 exceeds this run's 3 steps: please raise `max_train_steps`\."):
        run(max_train_steps=3, **options)
    running, _ = run(max_train_steps=4, **options)
    assert list(running.count(iter([torch.zeros(1)] * 3))) == []
    assert list(running.batches(Numbers(), 5)) == []
