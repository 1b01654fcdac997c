# SPDX-License-Identifier: Apache-2.0
"""What both trainers share around their loops: setting up, one update, metrics, checkpoints, resuming, the end."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from .accelerator import build_accelerator, is_sharded
from .arguments import TrainingArguments
from .callbacks import BestModel, Stopped, StopSignals
from .checkpoints import all_well, find_checkpoint, hold_only_trained, load_checkpoint, save_checkpoint
from .metrics import Metrics
from .optimizer import build_optimizer
from .order import StepBatches, read_batches, seed_of
from .output_folder import all_checkpoints, check_folder, check_models, locked, remove_left_overs, save_whole

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

__all__ = ["TrainingRun"]

logger = logging.getLogger(__name__)

Evaluate = Callable[[], dict[str, float]]  # called on all processes; `validation_loss` decides which model is best
Sample = Callable[[int], None]  # draws pictures; called on the first process with the number of steps done
# Writes the model into a folder: with the objective's gathered weights, if no process has all of them.
Save = Callable[[Path, dict[str, torch.Tensor] | None], None]

# Arguments that don't change the weights.
_HARMLESS = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "ignore_changed_settings", "report_to"),
    *("logging_steps", "save_steps", "save_total_limit", "sample_steps", "num_samples", "validation_prompts"),
    *("push_to_hub", "hub_model_id", "hub_private", "hub_tag", "hub_base_model", "dataloader_num_workers"),
    *("num_train_epochs", "max_train_steps"),  # compared as `steps`
}
_FAILED_SAVES = (OSError, RuntimeError, SafetensorError)  # a full disk has many names


class TrainingRun:
    """
    One training run, on one process or many; a context that holds the output folder.

    Args:
        training: its arguments.
        adapter: whether it ends with an adapter rather than a whole model.

    Attributes:
        accelerator: accelerate's handle on processes and devices.
        signals: a context for the loop, in which SIGTERM and Ctrl-C end the run after a step, with a checkpoint.
        objective: after `prepare`, the module whose call gives the loss, perhaps wrapped by DDP.
        ema: moving average of the trained weights, if asked for.
        best: the best model so far, if it is to be kept.
        start, done, steps: updates when the run was resumed, so far, and of the whole run.

    Raises:
        ValueError: if `accelerate launch` contradicts the arguments, or if the output folder can't be written to.
    """

    def __init__(self, training: TrainingArguments, adapter: bool = False):
        self.training, self.adapter, self.folder = training, adapter, Path(training.output_dir)
        self.accelerator = build_accelerator(training)
        check_folder(self.folder)
        set_seed(training.seed)
        self.signals = StopSignals()
        self.metrics = Metrics(self.accelerator, self.folder)
        self.objective: nn.Module = nn.Identity()
        self.ema: EMAModel | None = None
        self.best: BestModel | None = None
        self.done = 0
        self._recent: list[torch.Tensor] = []
        self._held = ExitStack()

    def __enter__(self) -> "TrainingRun":
        """
        Raises:
            ValueError: if another run trains in the folder, or if it holds what this one would overwrite.
        """
        with ExitStack() as held:
            if self.accelerator.is_main_process:
                held.enter_context(locked(self.folder))
                remove_left_overs(self.folder)
            self.accelerator.wait_for_everyone()
            found = all_checkpoints(self.folder)
            if found and self.training.resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.folder} holds {found[-1].name} of an earlier run: please set `resume_from_checkpoint` to "
                    f"`latest` to continue it, or take another `output_dir` (or remove it) to start from the beginning."
                )
            check_models(self.folder, self.adapter, self.training.overwrite_output_dir)
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """Ends the run on all processes, unless one of them failed."""
        with self._held:
            if kind is None:
                self.accelerator.wait_for_everyone()
                # DDP's reducer must go before its process group: the other way round, its end, which holds the
                # interpreter's lock, can wait forever for a gloo thread that wants that lock.
                self.objective = nn.Identity()
                self.accelerator.free_memory()
                self.accelerator.end_training()

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
        Builds optimizer and schedule and resumes from a checkpoint if asked to.

        Args:
            objective: module that is called in the loop.
            trained: those of its parameters that training moves.
            rows: number of training rows, `None` if it isn't known.
            settings: what the run depends on beside its arguments; kept in checkpoints and compared on resuming.
            stateful: further objects with `state_dict` and `load_state_dict` for checkpoints.
            best: keeps the model of the lowest validation loss.

        Raises:
            ValueError: if the checkpoint is another run's or damaged, or if the number of steps can't be known.
        """
        training, accelerator = self.training, self.accelerator
        if rows is None and training.max_train_steps is None:
            raise ValueError("The number of rows isn't known (`streaming`): please set `max_train_steps`.")
        self.best, self.steps = best, training.total_steps(rows or 0, accelerator.num_processes)
        objective.train()  # `from_pretrained` gives models in evaluation mode, without dropout
        if training.torch_compile:
            objective.compile()  # in place: no wrapper changes the weights' names
        optimizer = build_optimizer(objective, training)
        self.schedule = get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, self.steps)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if not is_sharded(accelerator):
            hold_only_trained(accelerator, trained)
        self._trained = trained
        if training.use_ema:
            from diffusers.training_utils import EMAModel  # takes seconds to import

            # With a least decay as large as the decay there is no warm-up; the first update copies the weights.
            self.ema = EMAModel(trained, decay=training.ema_decay, min_decay=training.ema_decay)
        # The schedule isn't prepared: accelerate would step it once for each process.
        states = {
            "schedule": self.schedule,
            "ema": self.ema,
            "best": best,
            **{str(n): each for n, each in enumerate(stateful)},
        }
        self._states = {name: state for name, state in states.items() if state is not None}
        harmless = _HARMLESS if best is not None else _HARMLESS | {"eval_steps"}  # when the best is looked for counts
        chosen = {name: value for name, value in vars(training).items() if name not in harmless}
        self.settings = {**chosen, **settings, "rows": rows, "steps": self.steps}
        self.start = self.done = self._resume()
        self.metrics.begin(self.start, self.settings)

    def _resume(self) -> int:
        """Loads the checkpoint that was asked for, and gives the number of steps done."""
        training = self.training
        if training.resume_from_checkpoint is None:
            return 0
        checkpoint = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
        if checkpoint is None:
            logger.info("%s holds no checkpoint; starting from the beginning.", training.output_dir)
            return 0
        ignore = training.ignore_changed_settings
        start = load_checkpoint(self.accelerator, checkpoint, self.settings, self._states, ignore)
        if start > self.steps:
            raise ValueError(f"{checkpoint} is beyond the {self.steps} steps of this run: please make it longer.")
        if self.best is not None and self.best.is_missing:
            raise ValueError(
                f"The best model so far, of step {self.best.step}, isn't in {self.best.folder}: please copy it there "
                f"from the run that made {checkpoint}."
            )
        self.accelerator.step = 0  # a window of accumulation begins here, whatever its length was before
        logger.info("Resuming from %s, %d of %d steps are done.", checkpoint, start, self.steps)
        return start

    def batches(self, dataset: Dataset, rows: int, collate: Callable) -> Iterator[tuple[int, Any]]:
        """
        (step, batch) from the first step not yet done, with this process's random state set for the batch. With
        `gradient_accumulation_steps`, several batches have the same step.
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
        """The same for batches from elsewhere, perhaps endless."""
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
        """Whether validation has not improved for too long."""
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
        if self.ema is not None:
            self.ema.step(self._trained)

    def after_batch(self, step: int, loss: torch.Tensor, evaluate: Evaluate, sample: Sample, save: Save) -> None:
        """
        After a step's last batch, logs, validates, samples and saves when it is time; the last step is `finish`'s.

        Args:
            step: the batch's step, counted from 0.
            loss: what to log.

        Raises:
            ValueError: if the loss is no longer a number.
            Stopped: after the checkpoint, if a signal asked for it.
        """
        self._recent.append(loss.detach())
        if not self.accelerator.sync_gradients:
            return
        training, self.done = self.training, step + 1
        last, saves = self.done == self.steps, self.done % training.save_steps == 0
        logs = last or self.done % training.logging_steps == 0
        self._bar.update()
        if logs or saves:
            self._log_loss(logs)
        if last:
            return
        if self.done % training.eval_steps == 0:
            self._evaluate(evaluate, save)
            if self.ended_early:
                return
        if self.done % training.sample_steps == 0:
            self._sample(sample)
        asked = self.signals.anywhere(self.accelerator)
        if saves or asked:
            self._save_checkpoint()
        if asked:
            raise Stopped(asked)

    def finish(self, evaluate: Evaluate, sample: Sample, save: Save) -> None:
        """
        Saves the model first, so that nothing after it can lose the run; then validates, puts the best model in its
        place if that is kept, and samples.

        Raises:
            OSError: if the model can't be saved; the error names what was saved instead.
        """
        if not self.ended_early:
            self._save_last(save)
            self._evaluate(evaluate, save)
        best = self.best
        if best is not None and best.found and (self.ended_early or best.step != self.done):
            logger.info("The best model is that of step %d (loss %.4f).", best.step, best.loss)
            try:
                if self.accelerator.is_main_process:
                    save_whole(best.copy_to, self.folder)
            except OSError as error:
                raise OSError(
                    f"The best model is whole in {best.folder}, but can't be copied from there: {error}."
                ) from error
        elif self.ended_early:
            self._save_last(save)
        self._sample(sample)
        logger.info("The trained model is in %s.", self.folder)

    @contextmanager
    def finished_model(self) -> Iterator[None]:
        """While it lasts, the weights are those to be saved, averaged if asked for. Training isn't disturbed."""
        if self.ema is not None:
            self.ema.store(self._trained)
            self.ema.copy_to(self._trained)
        self.objective.eval()
        try:
            yield
        finally:
            self.objective.train()
            if self.ema is not None:
                self.ema.restore(self._trained)

    def _save(self, save: Save, folder: Path) -> None:
        """All processes call it, to give their part of sharded weights."""
        with self.finished_model():
            gathered = self.accelerator.get_state_dict(self.objective) if is_sharded(self.accelerator) else None
            if self.accelerator.is_main_process:
                save_whole(lambda scratch: save(scratch, gathered), folder)

    def _save_last(self, save: Save) -> None:
        problem: Exception | None = None
        try:
            self._save(save, self.folder)
        except _FAILED_SAVES as error:
            problem = error
        if all_well(self.accelerator, problem):
            return
        self._save_checkpoint()
        kept = all_checkpoints(self.folder)
        instead = f"fix this and resume from {kept[-1]}" if kept else "there is no checkpoint either"
        raise OSError(f"The trained model can't be saved in {self.folder} ({problem}); {instead}.") from problem

    def _save_checkpoint(self) -> None:
        limit = self.training.save_total_limit
        save_checkpoint(self.accelerator, self.folder, self.done, self.settings, self._states, limit)

    def _log_loss(self, logs: bool) -> None:
        """Looks at the mean since the last line; with `logs` it becomes a line."""
        mean = self.accelerator.reduce(torch.stack(self._recent).mean(), "mean").item()
        if not math.isfinite(mean):
            raise ValueError(
                f"The loss became {mean} within the {len(self._recent)} batches before step {self.done}; please lower "
                f"`learning_rate` or raise `warmup_steps`."
            )
        if not logs:
            return
        rows = len(self._recent) * self.training.per_device_train_batch_size * self.accelerator.num_processes
        now = time.monotonic()
        self._bar.set_postfix(loss=f"{mean:.4f}")
        rate, speed = self.schedule.get_last_lr()[0], rows / (now - self._since)
        self.metrics.write(self.done, {"loss": mean, "learning_rate": rate, "rows_per_second": speed})
        self._recent.clear()
        self._since = now

    def _evaluate(self, evaluate: Evaluate, save: Save) -> None:
        paused = time.monotonic()
        with self.finished_model():
            metrics = evaluate()
        if metrics:
            self.metrics.write(self.done, metrics)
        if self.best is not None:
            self._keep_if_best(self.best, metrics["validation_loss"], save)
        self._since += time.monotonic() - paused

    def _keep_if_best(self, best: BestModel, loss: float, save: Save) -> None:
        problem: Exception | None = None
        better = best.is_better(loss)
        if better:
            try:
                self._save(save, best.folder)
            except _FAILED_SAVES as error:
                problem = error
                logger.warning("The best model, of step %d, can't be saved (%s). Training continues.", self.done, error)
        best.take(loss, self.done, better and all_well(self.accelerator, problem))

    def _sample(self, sample: Sample) -> None:
        paused = time.monotonic()
        if self.accelerator.is_main_process and not is_sharded(self.accelerator):
            try:
                with self.finished_model():
                    sample(self.done)
            except (OSError, RuntimeError) as error:  # a full disk, or a full device
                logger.warning("The samples of step %d can't be drawn (%s). Training continues.", self.done, error)
        self.accelerator.wait_for_everyone()
        self._since += time.monotonic() - paused
