# SPDX-License-Identifier: Apache-2.0
"""What both trainers share around their loops: setting up, one update, logging, checkpoints, taking up again."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from .arguments import TrainingArguments
from .average import WeightAverage
from .checkpoints import all_well, find_checkpoint, hold_only_trained, load_checkpoint, save_checkpoint
from .figures import Figures
from .launch import build_accelerator, is_sharded
from .optimizer import build_optimizer
from .order import StepBatches, read_batches, seed_of
from .saving import BestModel, check_folder, remove_left_overs, save_whole
from .stopping import Stopped, StopSignals

__all__ = ["TrainingRun"]

logger = logging.getLogger(__name__)

# Writes the model into a folder: with the objective's gathered weights, if no process has all of them.
Save = Callable[[Path, dict[str, torch.Tensor] | None], None]

# Arguments that say where and how often, but don't change the weights.
_HARMLESS = {
    *("output_dir", "resume_from_checkpoint", "ignore_changed_settings", "dataloader_num_workers", "report_to"),
    *("logging_steps", "save_steps", "save_total_limit", "sample_steps", "num_samples", "validation_prompts"),
    *("push_to_hub", "hub_model_id", "hub_private", "hub_tag", "hub_base_model"),
    *("num_train_epochs", "max_train_steps"),  # compared as `steps`
}


class TrainingRun:
    """
    One training run, on one process or many.

    Args:
        training: its arguments.

    Attributes:
        accelerator: accelerate's handle on processes and devices.
        signals: a context for the loop, in which SIGTERM and Ctrl-C end the run after a step, with a checkpoint.
        objective: after [`~TrainingRun.prepare`], the module whose call gives the loss, perhaps wrapped by DDP.
        average: moving average of the trained weights, if asked for.
        best: the best model so far, if it is to be kept.
        start, done, steps: updates when the run was taken up, so far, and of the whole run.

    Raises:
        ValueError: if `accelerate launch` was told something else than the arguments, or what isn't supported, or if
            the output folder can't be written to.
    """

    def __init__(self, training: TrainingArguments):
        self.training = training
        self.accelerator = build_accelerator(training)
        check_folder(Path(training.output_dir))
        if self.accelerator.is_main_process:
            remove_left_overs(Path(training.output_dir))
        set_seed(training.seed)
        self.signals = StopSignals()
        self.figures = Figures(self.accelerator, training.output_dir)
        self.objective: nn.Module = nn.Identity()
        self.average: WeightAverage | None = None
        self.best: BestModel | None = None
        self.done = 0
        self._recent: list[torch.Tensor] = []

    def prepare(
        self,
        objective: nn.Module,
        trained: list[nn.Parameter],
        rows: int | None,
        settings: dict[str, Any],
        stateful: list[Any],
        best: BestModel | None = None,
    ) -> None:
        """
        Builds optimizer and schedule and takes up a checkpoint if asked to.

        Args:
            objective: module that is called in the loop.
            trained: those of its parameters that training moves.
            rows: number of training rows, `None` if it isn't known.
            settings: what the run depends on beside its arguments; kept in checkpoints and compared on resuming.
            stateful: further objects with `state_dict` and `load_state_dict` that checkpoints hold.
            best: keeps the model of the lowest validation loss.

        Raises:
            ValueError: if the checkpoint to go on from is another run's, or the output folder is and none was named, or
                if the number of steps can't be known.
        """
        training, accelerator = self.training, self.accelerator
        if rows is None and training.max_train_steps is None:
            raise ValueError("The number of rows isn't known (`streaming`): please set `max_train_steps`.")
        self.best = best
        self.steps = training.total_steps(rows or 0, accelerator.num_processes)
        objective.train()  # `from_pretrained` gives models in evaluation mode, without dropout
        if training.torch_compile:
            objective.compile()  # in place: no wrapper changes the weights' names
        optimizer = build_optimizer(objective, training)
        self.schedule = get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, self.steps)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if not is_sharded(accelerator):
            hold_only_trained(accelerator, trained)
        if training.use_ema:
            self.average = WeightAverage(trained, training.ema_decay)
        # The schedule isn't prepared: accelerate would step it once for each process.
        states = [self.schedule, self.average, best, *stateful]
        accelerator.register_for_checkpointing(*(state for state in states if state is not None))
        # With a best model, when it is looked for counts, too.
        harmless = _HARMLESS if best is not None else _HARMLESS | {"eval_steps"}
        chosen = {name: value for name, value in vars(training).items() if name not in harmless}
        self.settings = {**chosen, **settings, "rows": rows, "steps": self.steps}
        self.start = self.done = self._resume()
        self.figures.begin(self.start, self.settings)

    def batches(self, dataset: Dataset, rows: int, collate: Callable) -> Iterator[tuple[int, Any]]:
        """
        (step, batch) from the first step not yet done, with this process's random state set for the batch. With
        `gradient_accumulation_steps`, so many batches have the same step.
        """
        training, accelerator = self.training, self.accelerator
        order = StepBatches(
            rows=rows,
            batch_size=training.per_device_train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            seed=training.seed,
            start=self.start,
            stop=self.steps,
        )
        workers = training.dataloader_num_workers
        loader = DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=workers)
        return self.count(read_batches(loader))

    def count(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The same for batches that come from elsewhere, perhaps endlessly."""
        accumulation, main = self.training.gradient_accumulation_steps, self.accelerator.is_main_process
        self._bar = tqdm(total=self.steps, initial=self.start, disable=not main, unit="step", mininterval=1)
        self._since = time.monotonic()
        with self._bar:
            for number, batch in enumerate(batches, self.start * accumulation):
                step, part = divmod(number, accumulation)
                if step >= self.steps or self.ended_early:
                    return
                set_seed(seed_of(self.training.seed, 3, step, part, self.accelerator.process_index) % 2**32)
                with self.accelerator.accumulate(self.objective):
                    yield step, batch

    @property
    def ended_early(self) -> bool:
        """Whether validation has not become better for too long."""
        return self.best is not None and self.best.exhausted

    def update(self, loss: torch.Tensor) -> None:
        """One batch's gradients and, after the last of a step, one step of the weights and of their average."""
        self.accelerator.backward(loss)
        if not self.accelerator.sync_gradients:
            return
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:  # fp16: the gradients were too large for its range
            return
        self.schedule.step()
        if self.average is not None:
            self.average.update()

    def finish_step(
        self,
        step: int,
        loss: torch.Tensor,
        evaluate: Callable[[], dict[str, float]],
        sample: Callable[[int], None],
        save: Save,
    ) -> None:
        """
        Logs, validates, samples and saves when it is time.

        Args:
            step: the step of the batch, counted from 0.
            loss: what to log.
            evaluate: called on all processes; gives figures, of which `validation_loss` decides which model is best.
            sample: called on the first process with the number of steps done; draws pictures.
            save: writes the model as it is into a folder.

        Raises:
            ValueError: if the loss is no longer a number.
            Stopped: after the checkpoint, if a signal asked for it.
        """
        self._recent.append(loss.detach())
        if not self.accelerator.sync_gradients:
            return
        training, done = self.training, step + 1
        self.done = done
        last, saves = done == self.steps, done % training.save_steps == 0
        self._bar.update()
        if done % training.logging_steps == 0 or last or saves:
            self._log_loss(done, finished=done % training.logging_steps == 0 or last)
        if done % training.eval_steps == 0 or last:
            self._evaluate(done, evaluate, save)
        if done % training.sample_steps == 0 or last or self.ended_early:
            self._sample(done, sample)
        asked = self.signals.anywhere(self.accelerator)
        if last or self.ended_early:
            return
        if saves or asked:
            save_checkpoint(self.accelerator, training.output_dir, done, self.settings, training.save_total_limit)
        if asked:
            raise Stopped(asked)

    @contextmanager
    def finished_model(self) -> Iterator[None]:
        """While it lasts, the weights are those to be saved, averaged if asked for. Training isn't disturbed."""
        with nullcontext() if self.average is None else self.average.in_place():
            self.objective.eval()
            try:
                yield
            finally:
                self.objective.train()

    def save_model(self, save: Save) -> Path:
        """Saves the finished model, or the best one, into the output folder."""
        if self.best is not None and math.isfinite(self.best.loss):
            logger.info("The best model is that of step %d (loss %.4f).", self.best.step, self.best.loss)
            best = self.best
            save = lambda folder, _: best.copy_to(folder)  # noqa: E731 - shaped like the other one
        self._save(save, Path(self.training.output_dir))
        if self.accelerator.is_main_process:
            logger.info("The trained model is in %s.", self.training.output_dir)
        return Path(self.training.output_dir)

    def end(self) -> None:
        """Ends the run on all processes."""
        self.accelerator.wait_for_everyone()
        # DDP's reducer must go before its process group: the other way round, its end, which holds the interpreter's
        # lock, can wait for ever for a gloo thread that wants that lock.
        self.objective = nn.Identity()
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _save(self, save: Save, folder: Path) -> None:
        """All processes call it, to give their part of weights that are spread over them."""
        with self.finished_model():
            gathered = self.accelerator.get_state_dict(self.objective) if is_sharded(self.accelerator) else None
            if self.accelerator.is_main_process:
                save_whole(lambda scratch: save(scratch, gathered), folder)

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
        rate = self.schedule.get_last_lr()[0]
        self.figures.write(done, {"loss": mean, "learning_rate": rate, "rows_per_second": rows / (now - self._since)})
        self._recent.clear()
        self._since = now

    def _evaluate(self, done: int, evaluate: Callable[[], dict[str, float]], save: Save) -> None:
        paused = time.monotonic()
        with self.finished_model():
            figures = evaluate()
        if figures:
            self.figures.write(done, figures)
        if self.best is not None:
            self._keep_if_best(self.best, figures["validation_loss"], done, save)
        self._since += time.monotonic() - paused

    def _keep_if_best(self, best: BestModel, loss: float, done: int, save: Save) -> None:
        problem: Exception | None = None
        better = best.is_better(loss)
        if better:
            try:
                self._save(save, best.folder)
            except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has many names
                problem = error
                logger.warning("The best model, of step %d, could not be saved (%s). Training goes on.", done, error)
        best.take(loss, done, better and all_well(self.accelerator, problem))

    def _sample(self, done: int, sample: Callable[[int], None]) -> None:
        paused = time.monotonic()
        if self.accelerator.is_main_process and not is_sharded(self.accelerator):
            try:
                with self.finished_model():
                    sample(done)
            except OSError as error:  # such as a full disk: no reason to lose the run
                logger.warning("The samples of step %d could not be written (%s). Training goes on.", done, error)
        self.accelerator.wait_for_everyone()
        self._since += time.monotonic() - paused

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
        start = load_checkpoint(self.accelerator, checkpoint, self.settings, training.ignore_changed_settings)
        if start > self.steps:
            raise ValueError(f"{checkpoint} is beyond the {self.steps} steps of this run: please make it longer.")
        if self.best is not None and self.best.is_missing:
            raise ValueError(
                f"The best model so far, of step {self.best.step}, isn't in {self.best.folder}: please copy it there "
                f"from the run that made {checkpoint}."
            )
        self.accelerator.step = 0  # a window of accumulation begins here, be it of another length than before
        logger.info("Going on from %s, %d of %d steps are done.", checkpoint, start, self.steps)
        return start
