# SPDX-License-Identifier: Apache-2.0
"""What both trainers share around their loops: setting up, one update, logging, checkpoints, taking up again."""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from .arguments import TrainingArguments
from .average import WeightAverage
from .checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from .optimizer import build_optimizer
from .order import StepBatches, seed_of

__all__ = ["TrainingRun"]

logger = logging.getLogger(__name__)

# Arguments that say where and how often, but don't change the weights.
_HARMLESS = {
    *("output_dir", "resume_from_checkpoint", "logging_steps", "save_steps", "save_total_limit", "sample_steps"),
    *("num_samples", "num_train_epochs", "max_train_steps"),  # the last two are compared as `steps`
}


class TrainingRun:
    """
    One training run, on one process or many.

    Args:
        training: its arguments.

    Attributes:
        accelerator: accelerate's handle on processes and devices.
        objective: after [`~TrainingRun.prepare`], the module whose call gives the loss, perhaps wrapped by DDP.
        average: moving average of the trained weights, if asked for.
        steps: updates of the whole run.

    Raises:
        ValueError: if `accelerate launch` was told something else than the arguments, or what isn't supported.
    """

    def __init__(self, training: TrainingArguments):
        _check_environment(training)
        self.training = training
        self.accelerator = Accelerator(mixed_precision=training.mixed_precision)
        _check_processes(self.accelerator.num_processes)
        set_seed(training.seed)
        self.objective: nn.Module = nn.Identity()
        self.average: WeightAverage | None = None
        self._recent: list[torch.Tensor] = []

    def prepare(
        self,
        objective: nn.Module,
        model: nn.Module,
        averaged: list[nn.Parameter],
        rows: int,
        settings: dict[str, Any],
        stateful: list[Any],
    ) -> None:
        """
        Builds optimizer and schedule and takes up a checkpoint if asked to.

        Args:
            objective: module that is called in the loop.
            model: the part of it that is saved in the end.
            averaged: those of its parameters that training moves.
            rows: number of training rows.
            settings: what the run depends on beside its arguments; kept in checkpoints and compared on resuming.
            stateful: further objects with `state_dict` and `load_state_dict` that checkpoints hold.

        Raises:
            ValueError: if the checkpoint to go on from is another run's, or the output folder is and none was named.
        """
        training, accelerator = self.training, self.accelerator
        self.rows, self.steps = rows, training.total_steps(rows, accelerator.num_processes)
        objective.train()  # `from_pretrained` gives models in evaluation mode, without dropout
        optimizer = build_optimizer(objective, training)
        self.schedule = get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, self.steps)
        self.model = model
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if training.use_ema:
            self.average = WeightAverage(averaged, training.ema_decay)
            stateful = [self.average, *stateful]
        # The schedule isn't prepared: accelerate would step it once for each process.
        accelerator.register_for_checkpointing(self.schedule, *stateful)
        chosen = {name: value for name, value in vars(training).items() if name not in _HARMLESS}
        self.settings = {**chosen, **settings, "rows": rows, "steps": self.steps}
        self.start = self._resume()
        if accelerator.is_main_process:
            _drop_figures_after(Path(training.output_dir) / "metrics.jsonl", self.start)

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
        with self._bar:
            for step, batch in enumerate(DataLoader(dataset, batch_sampler=batches, collate_fn=collate), self.start):
                set_seed(self.seed_at(step) % 2**32)
                yield step, batch

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
        if self.average is not None:
            self.average.update()

    def finish_step(self, step: int, loss: torch.Tensor, report: Callable[[Any, int], dict[str, float]]) -> None:
        """
        Logs, validates and saves when it is time.

        Args:
            step: the step that has just been done, counted from 0.
            loss: what to log.
            report: called with the model as it would be saved and the number of steps done; validates, draws samples
                and returns figures.

        Raises:
            ValueError: if the loss is no longer a number.
        """
        training, done = self.training, step + 1
        last, saves = done == self.steps, done % training.save_steps == 0
        self._recent.append(loss.detach())
        self._bar.update()
        if done % training.logging_steps == 0 or last or saves:
            self._log_loss(done, finished=done % training.logging_steps == 0 or last)
        if done % training.sample_steps == 0 or last:
            if self.accelerator.is_main_process:
                self._report(done, report)
            self.accelerator.wait_for_everyone()
            self._since = time.monotonic()
        if saves and not last:
            save_checkpoint(self.accelerator, training.output_dir, done, self.settings, training.save_total_limit)

    @contextmanager
    def finished_model(self) -> Iterator[Any]:
        """The model as it would be saved now, averaged if asked for, in evaluation mode. Training isn't disturbed."""
        with nullcontext() if self.average is None else self.average.in_place():
            self.model.eval()
            try:
                yield self.model
            finally:
                self.objective.train()

    def save_model(self, *processors: Any) -> Path:
        """Saves the finished model and its processors into the output folder, and ends the run on all processes."""
        if self.accelerator.is_main_process:
            with self.finished_model() as model:
                _save_whole([model, *processors], Path(self.training.output_dir))
            logger.info("The trained model is in %s.", self.training.output_dir)
        self.accelerator.wait_for_everyone()
        # DDP's reducer must go before its process group: the other way round, its end, which holds the interpreter's
        # lock, can wait for ever for a gloo thread that wants that lock.
        self.objective = nn.Identity()
        self.accelerator.free_memory()
        self.accelerator.end_training()
        return Path(self.training.output_dir)

    def _log_loss(self, done: int, finished: bool) -> None:
        """Looks at the mean since the last line; with `finished` it becomes a line."""
        mean = self.accelerator.reduce(torch.stack(self._recent).mean(), "mean").item()
        if not math.isfinite(mean):
            raise ValueError(
                f"The loss became {mean} within the {len(self._recent)} steps before step {done}; please lower "
                f"`learning_rate` or lengthen `warmup_steps`."
            )
        if not finished:
            return
        rows = len(self._recent) * self.training.per_device_train_batch_size * self.accelerator.num_processes
        now = time.monotonic()
        self._bar.set_postfix(loss=f"{mean:.4f}")
        self._log({"step": done, "loss": mean, "rows_per_second": rows / (now - self._since)})
        self._recent.clear()
        self._since = now

    def _report(self, done: int, report: Callable[[Any, int], dict[str, float]]) -> None:
        try:
            with self.finished_model() as model:
                figures = report(model, done)
        except OSError as error:  # such as a full disk: no reason to lose the run
            logger.warning("The samples of step %d could not be written (%s). Training goes on.", done, error)
        else:
            if figures:
                self._log({"step": done, **figures})

    def _log(self, figures: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        try:
            Path(self.training.output_dir).mkdir(parents=True, exist_ok=True)
            with open(Path(self.training.output_dir) / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
        except OSError as error:
            logger.warning("The figures %s could not be written (%s). Training goes on.", figures, error)

    def _resume(self) -> int:
        training = self.training
        if training.resume_from_checkpoint is None:
            found = find_checkpoint(training.output_dir, "latest")
            if found is not None:
                raise ValueError(
                    f"{training.output_dir} holds {found.name} of an earlier run: please set `resume_from_checkpoint` "
                    f"to `latest` to go on with it, or take another `output_dir` (or remove it) to start anew."
                )
            return 0
        checkpoint = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
        if checkpoint is None:
            logger.info("%s holds no checkpoint; starting from the beginning.", training.output_dir)
            return 0
        start = load_checkpoint(self.accelerator, checkpoint, self.settings)
        logger.info("Going on from %s, %d of %d steps are done.", checkpoint, start, self.steps)
        return start


def _save_whole(parts: list[Any], folder: Path) -> None:
    """Saves beside and moves into place, weights last: who finds weights in the folder finds all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as scratch:
        for part in parts:
            part.save_pretrained(scratch)
        for file in sorted(Path(scratch).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            file.replace(folder / file.name)


def _drop_figures_after(path: Path, step: int) -> None:
    """Lines of steps that are done again now would stand twice, and a line may have been cut by a kill."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    rewritten = path.with_suffix(".rewritten")
    rewritten.write_text("".join(kept) if step else "", encoding="utf-8")
    rewritten.replace(path)


def _check_processes(found: int) -> None:
    """torchrun on a machine without accelerators gives accelerate no hint: each process would train for itself."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != found:
        raise ValueError(
            f"{started} processes were started, but accelerate runs each alone; on the CPU please set "
            f"ACCELERATE_USE_CPU=true."
        )


def _check_environment(training: TrainingArguments) -> None:
    """What `accelerate launch` was told arrives as environment variables; contradictions must not pass silently."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", training.mixed_precision):
        raise ValueError(
            f"accelerate was launched with mixed precision {told}, but `mixed_precision` is "
            f"{training.mixed_precision}: please set `mixed_precision` (no or bf16) and leave the launcher's out."
        )
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(f"{name} is not supported; please launch without it (several processes use DDP).")
