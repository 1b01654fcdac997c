# SPDX-License-Identifier: Apache-2.0
"""What both trainers share around their loops: setting up, one update, metrics, checkpoints, resuming, the end."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..signals import Stopped, StopSignals
from .accelerator import build_accelerator, is_sharded
from .arguments import TrainingArguments
from .checkpoints import attempt, find_checkpoint, hold_only_trained, load_checkpoint, save_checkpoint
from .metrics import Metrics
from .order import seed_of, step_batches
from .output_folder import BestModel, all_checkpoints, check_folder, held_folder, save_whole

logger = logging.getLogger(__name__)

# Arguments that don't change the weights; the number of steps is compared instead of the last two.
_HARMLESS = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "ignore_changed_settings", "report_to"),
    *("logging_steps", "save_steps", "save_total_limit", "sample_steps", "num_samples", "validation_prompts"),
    *("push_to_hub", "hub_model_id", "hub_private", "hub_tag", "hub_base_model", "dataloader_num_workers"),
    *("num_train_epochs", "max_train_steps"),
}


@contextmanager
def begin_run(training: TrainingArguments, adapter: bool = False) -> Iterator["TrainingRun"]:
    """
    A run that ends with a whole model or an `adapter`, and holds the output folder while it lasts. Raises `ValueError`
    if the launcher contradicts the arguments, or if the folder can't be written to, holds another model, or is in use.
    """
    run = TrainingRun(training)
    accelerator = run.accelerator
    check_folder(training, adapter)
    with held_folder(run.folder) if accelerator.is_main_process else nullcontext():
        yield run
        accelerator.wait_for_everyone()
        # DDP's reducer must go before its process group: the other way round, its end, which holds the interpreter's
        # lock, can wait forever for a gloo thread that wants that lock.
        run.objective = nn.Identity()
        accelerator.free_memory()
        accelerator.end_training()


class TrainingRun:
    """
    One training run, on one process or many, made by [`begin_run`].

    Attributes:
        accelerator: accelerate's handle on processes and devices.
        signals: a context for the loop, in which SIGTERM and Ctrl-C end the run after a step, with a checkpoint.
        objective: after `prepare`, the module whose call gives the loss, perhaps wrapped by DDP.
        evaluate: gives metrics, on all processes; `validation_loss` decides which model is best.
        sample: draws pictures, on the first process; takes the number of steps done.
        save: writes the model into a folder, with its gathered weights if no process has all of them.
        start, done, steps: updates when the run was resumed, so far, and of the whole run.
    """

    def __init__(self, training: TrainingArguments):
        self.training, self.folder = training, Path(training.output_dir)
        self.accelerator = build_accelerator(training)
        set_seed(training.seed)
        self.signals, self.metrics = StopSignals(), Metrics(self.accelerator, self.folder)
        self.objective: nn.Module = nn.Identity()
        self.evaluate: Callable[[], dict[str, float]] = dict
        self.sample: Callable[[int], None] = lambda step: None
        self.save: Callable[[Path, dict[str, torch.Tensor] | None], None]
        self._recent: list[torch.Tensor] = []

    def prepare(
        self,
        objective: nn.Module,
        trained: list[nn.Parameter],
        rows: int | None,
        settings: dict[str, Any],
        stateful: dict[str, Any],
        best: BestModel | None = None,
    ) -> None:
        """
        Builds optimizer and schedule for the parameters of `objective` that are `trained`, and resumes if asked to.

        Args:
            rows: number of training rows, `None` if it isn't known.
            settings: what the run depends on beside its arguments; compared on resuming.
            stateful: by name, further objects whose `state_dict` is in checkpoints.
            best: keeps the model of the lowest validation loss.
        """
        training, accelerator = self.training, self.accelerator
        if rows is None and training.max_train_steps is None:
            raise ValueError("The number of rows isn't known (`streaming`): please set `max_train_steps`.")
        self.best, self._trained = best, trained
        self.steps = training.total_steps(rows or 0, accelerator.num_processes)
        objective.train()  # `from_pretrained` gives models in evaluation mode, without dropout
        if training.torch_compile:
            objective.compile()  # in place: no wrapper changes the weights' names
        optimizer = build_optimizer(objective, training)
        # Not prepared: accelerate would step it once for each process.
        self.schedule = get_scheduler(training.lr_scheduler_type, optimizer, training.warmup_steps, self.steps)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if not is_sharded(accelerator):
            hold_only_trained(accelerator, trained)
        self.ema: Any = None
        if training.use_ema:
            from diffusers.training_utils import EMAModel  # takes seconds to import

            # With a least decay as large as the decay there is no warm-up; the first update copies the weights.
            self.ema = EMAModel(trained, decay=training.ema_decay, min_decay=training.ema_decay)
        states = {"schedule": self.schedule, "ema": self.ema, "best": best, **stateful}
        self._states = {name: state for name, state in states.items() if state is not None}
        harmless = _HARMLESS if best is not None else _HARMLESS | {"eval_steps"}  # when the best is looked for counts
        chosen = {name: value for name, value in vars(training).items() if name not in harmless}
        self.settings = {**chosen, **settings, "rows": rows, "steps": self.steps}
        self.start = self.done = self._resume()
        self.metrics.begin(self.start, self.settings)

    def _resume(self) -> int:
        """Loads the checkpoint that was asked for, and gives the number of steps done."""
        training, best = self.training, self.best
        checkpoint = find_checkpoint(self.folder, training.resume_from_checkpoint)
        if checkpoint is None:
            return 0
        ignore = training.ignore_changed_settings
        start = load_checkpoint(self.accelerator, checkpoint, self.settings, self._states, ignore)
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        if start > self.steps:
            raise ValueError(f"{checkpoint} exceeds this run's {self.steps} steps: please raise `max_train_steps`.")
        if best is not None and math.isfinite(best.loss) and not any(best.folder.glob("*.safetensors")):
            raise ValueError(f"The best model, of step {best.step}, isn't in {best.folder}: please copy it there.")
        self.accelerator.step = 0  # a window of accumulation begins here, whatever its length was before
        logger.info("Resuming from %s, %d of %d steps are done.", checkpoint, start, self.steps)
        return start

    def batches(self, dataset: Dataset, rows: int) -> Iterator[tuple[int, Any]]:
        """
        (step, batch) from the first step not yet done, with this process's random state set for the batch. With
        `gradient_accumulation_steps`, several batches have the same step.
        """
        training, accelerator = self.training, self.accelerator
        size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
        rank, processes = accelerator.process_index, accelerator.num_processes
        order = step_batches(rows, size, accumulation, rank, processes, training.seed, self.start, self.steps)
        return self.count(DataLoader(dataset, batch_sampler=order, num_workers=training.dataloader_num_workers))

    def count(self, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The same for batches from elsewhere, perhaps endless."""
        accumulation, accelerator = self.training.gradient_accumulation_steps, self.accelerator
        self._bar = tqdm(total=self.steps, initial=self.start, disable=not accelerator.is_main_process, unit="step")
        self._since = time.monotonic()
        with self._bar:
            for number, batch in enumerate(batches, self.start * accumulation):
                step, part = divmod(number, accumulation)
                if step >= self.steps or self.ended_early:
                    return
                set_seed(seed_of(self.training.seed, 3, step, part, accelerator.process_index) % 2**32)
                with accelerator.accumulate(self.objective):
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

    def after_batch(self, step: int, loss: torch.Tensor) -> None:
        """
        After a step's last batch, logs, validates, samples and saves when it is time; `finish` does so in the end.
        Raises `ValueError` if the loss is no longer a number, and `Stopped`, after a checkpoint, if a signal came.
        """
        self._recent.append(loss.detach())
        if not self.accelerator.sync_gradients:
            return
        training, self.done = self.training, step + 1
        last, saves = self.done == self.steps, self.done % training.save_steps == 0
        self._bar.update()
        logs = last or self.done % training.logging_steps == 0
        if logs or saves:
            self._log_loss(logs)
        if not last and self.done % training.eval_steps == 0:
            self._evaluate()
        if last or self.ended_early:
            return
        if self.done % training.sample_steps == 0:
            self._sample()
        asked = self.signals.number
        if self.accelerator.num_processes > 1:  # all of them end at the same step, whichever got the signal
            asked = int(self.accelerator.gather(torch.tensor([asked], device=loss.device)).max())
        if saves or asked:
            self._save_checkpoint()
        if asked:
            raise Stopped(asked)

    def finish(self) -> None:
        """
        Saves the model first, so that nothing after it can lose the run; then validates, puts the best model in its
        place if that is kept, and samples. Raises `OSError` if it can't be saved, with the checkpoint that was.
        """
        problem = attempt(self.accelerator, self._save, self.folder)
        if problem is not None:
            self._save_checkpoint()
            kept = all_checkpoints(self.folder)
            instead = f"fix this and resume from {kept[-1]}" if kept else "there is no checkpoint either"
            raise OSError(f"The trained model can't be saved in {self.folder} ({problem}); {instead}.") from problem
        if not self.ended_early:
            self._evaluate()
        best = self.best
        if best is not None and math.isfinite(best.loss):
            logger.info("The best model is that of step %d (loss %.4f).", best.step, best.loss)
            if self.accelerator.is_main_process:
                save_whole(lambda scratch: shutil.copytree(best.folder, scratch, dirs_exist_ok=True), self.folder)
        self._sample()
        logger.info("The trained model is in %s.", self.folder)

    @contextmanager
    def finished_model(self) -> Iterator[None]:
        """While it lasts, the weights are those to be saved, perhaps averaged, and the clock stands still."""
        paused = time.monotonic()
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
            self._since += time.monotonic() - paused

    def _save(self, folder: Path) -> None:
        """All processes call it, to give their part of sharded weights."""
        with self.finished_model():
            gathered = None
            if is_sharded(self.accelerator):  # under `painter.` or `vqgan.`, as the objective calls its model
                state = self.accelerator.get_state_dict(self.objective)
                gathered = {name.partition(".")[2]: weight for name, weight in state.items()}
            if self.accelerator.is_main_process:
                save_whole(lambda scratch: self.save(scratch, gathered), folder)

    def _save_checkpoint(self) -> None:
        keep = self.training.save_total_limit
        save_checkpoint(self.accelerator, self.folder, self.done, self.settings, self._states, keep)

    def _log_loss(self, logs: bool) -> None:
        """Raises `ValueError` if the mean since the last line is no number; with `logs` it becomes a line."""
        mean = self.accelerator.reduce(torch.stack(self._recent).mean(), "mean").item()
        if not math.isfinite(mean):
            raise ValueError(
                f"The loss became {mean} in the {len(self._recent)} batches before step {self.done}; please lower "
                f"`learning_rate` or raise `warmup_steps`."
            )
        if logs:
            rows = len(self._recent) * self.training.per_device_train_batch_size * self.accelerator.num_processes
            rate, seconds = self.schedule.get_last_lr()[0], time.monotonic() - self._since
            self._bar.set_postfix(loss=f"{mean:.4f}")
            self.metrics.write(self.done, {"loss": mean, "learning_rate": rate, "rows_per_second": rows / seconds})
            self._recent.clear()
            self._since += seconds

    def _evaluate(self) -> None:
        with self.finished_model():
            metrics = self.evaluate()
        if metrics:
            self.metrics.write(self.done, metrics)
        if self.best is not None:
            loss = metrics["validation_loss"]
            better = loss < self.best.loss
            problem = attempt(self.accelerator, self._save, self.best.folder) if better else None
            if problem is not None:
                logger.warning("The best model, of step %d, can't be saved (%s).", self.done, problem)
            self.best.take(loss, self.done, better and problem is None)

    def _sample(self) -> None:
        if self.accelerator.is_main_process and not is_sharded(self.accelerator):
            try:
                with self.finished_model():
                    self.sample(self.done)
            except (OSError, RuntimeError) as error:  # a full disk, or a full device
                logger.warning("The samples of step %d can't be drawn (%s). Training continues.", self.done, error)
        self.accelerator.wait_for_everyone()


def build_optimizer(model: nn.Module, training: TrainingArguments) -> torch.optim.AdamW:
    """AdamW with minGPT's groups: matrices and kernels decay; embeddings, norms and biases don't."""
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight in matrices], "weight_decay": training.weight_decay},
        {"params": [weight for weight in trained if weight not in matrices], "weight_decay": 0.0},
    ]
    betas = (training.adam_beta1, training.adam_beta2)
    return torch.optim.AdamW(groups, training.learning_rate, betas, training.adam_epsilon, fused=True)
