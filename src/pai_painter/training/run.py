# SPDX-License-Identifier: Apache-2.0
"""What both trainers share around their loops: setting up, one update, logging, checkpoints, taking up again."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from .arguments import TrainingArguments
from .checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from .optimizer import build_optimizer
from .order import StepBatches, seed_of

__all__ = ["TrainingRun"]

# Arguments that say where and how often, but don't change the weights.
_HARMLESS = frozenset(
    ["output_dir", "resume_from_checkpoint", "logging_steps", "save_steps", "save_total_limit", "sample_steps"]
    + ["num_train_epochs", "max_train_steps", "num_samples"]
)


class TrainingRun:
    """
    One training run, on one process or many.

    Args:
        training: its arguments.

    Attributes:
        accelerator: accelerate's handle on processes and devices.
        objective: after [`~TrainingRun.prepare`], the module whose call gives the loss, perhaps wrapped by DDP.
        average: moving average of the trained model's weights.
        steps: updates of the whole run.
    """

    def __init__(self, training: TrainingArguments):
        self.training = training
        self.accelerator = Accelerator(mixed_precision=training.mixed_precision)
        set_seed(training.seed)
        self.objective: nn.Module = nn.Identity()
        self._recent: list[torch.Tensor] = []

    def prepare(
        self, objective: nn.Module, model: nn.Module, rows: int, settings: dict[str, Any], stateful: list[Any]
    ) -> None:
        """
        Builds optimizer and schedule and takes up a checkpoint if asked to.

        Args:
            objective: module that is called in the loop.
            model: the part of it that is averaged and saved in the end.
            rows: number of training rows.
            settings: what the run depends on beside its arguments; kept in checkpoints and compared on resuming.
            stateful: further objects with `state_dict` and `load_state_dict` that checkpoints hold.
        """
        training, accelerator = self.training, self.accelerator
        self.rows, self.steps = rows, training.total_steps(rows, accelerator.num_processes)
        optimizer = build_optimizer(objective, training)
        self.schedule = get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, self.steps)
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay))
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.average.to(accelerator.device)
        accelerator.register_for_checkpointing(self.schedule, self.average, *stateful)
        chosen = {name: value for name, value in vars(training).items() if name not in _HARMLESS}
        self.settings = {**chosen, **settings, "rows": rows, "steps": self.steps}
        self.start = self._resume()

    def batches(self, dataset: Dataset, collate: Callable) -> Iterator[tuple[int, Any]]:
        """(step, batch) from the first step not yet done, with this process's random state set for the step."""
        training, accelerator = self.training, self.accelerator
        batches = StepBatches(
            rows=self.rows,
            batch_size=training.per_device_train_batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            seed=training.seed,
            start=self.start,
            stop=self.steps,
        )
        main = accelerator.is_main_process
        self._bar = tqdm(total=self.steps, initial=self.start, disable=not main, unit="step", mininterval=1)
        self._since = time.monotonic()
        for step, batch in enumerate(DataLoader(dataset, batch_sampler=batches, collate_fn=collate), self.start):
            set_seed(self.seed_at(step) % 2**32)
            yield step, batch
        self._bar.close()

    def seed_at(self, step: int) -> int:
        """A seed for this process's random choices at a step."""
        return seed_of(self.training.seed, 3, step, self.accelerator.process_index)

    def update(self, loss: torch.Tensor) -> None:
        """One step of the weights and of their average."""
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.training.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)

    def finish_step(self, step: int, loss: torch.Tensor, report: Callable[[int], dict[str, float]]) -> None:
        """
        Logs, validates and saves when it is time.

        Args:
            step: the step that has just been done, counted from 0.
            loss: what to log.
            report: called with the number of steps done; validates, draws samples and returns figures.
        """
        training, done = self.training, step + 1
        self._recent.append(loss.detach())
        self._bar.update()
        if done % training.logging_steps == 0 or done == self.steps:
            mean = torch.stack(self._recent).mean().item()
            rows = len(self._recent) * training.per_device_train_batch_size * self.accelerator.num_processes
            now = time.monotonic()
            self._bar.set_postfix(loss=f"{mean:.4f}")
            self._log({"step": done, "loss": mean, "rows_per_second": rows / (now - self._since)})
            self._recent.clear()
            self._since = now
        if done % training.sample_steps == 0 or done == self.steps:
            if self.accelerator.is_main_process:
                self._log({"step": done, **report(done)})
            self.accelerator.wait_for_everyone()
            self._since = time.monotonic()
        if done % training.save_steps == 0 and done < self.steps:
            save_checkpoint(self.accelerator, training.output_dir, done, self.settings, training.save_total_limit)

    def finished_model(self) -> Any:
        """What to save: the average, if asked for, or the last weights."""
        return self.average.module if self.training.use_ema else self.model

    def _log(self, figures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            Path(self.training.output_dir).mkdir(parents=True, exist_ok=True)
            with open(Path(self.training.output_dir) / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")

    def _resume(self) -> int:
        if self.training.resume_from_checkpoint is None:
            return 0
        checkpoint = find_checkpoint(self.training.output_dir, self.training.resume_from_checkpoint)
        return 0 if checkpoint is None else load_checkpoint(self.accelerator, checkpoint, self.settings)
