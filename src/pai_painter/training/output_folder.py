# SPDX-License-Identifier: Apache-2.0
"""A run's folder: one run at a time, no other model overwritten, and models that are whole or not there."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .arguments import TrainingArguments

_MODELS = ("config.json", "adapter_config.json", "model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """
    While it lasts, no other run trains in `folder`: that would be a `ValueError`. What a killed run left half-written
    is removed.
    """
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Another run is using {folder}: please stop it (processes can outlive a launcher that was killed), or "
            f"take another `output_dir`."
        ) from None
    with lock:
        for pattern in (".model-*", "best/.model-*", ".checkpoint-*.partial"):
            for left_over in folder.glob(pattern):
                shutil.rmtree(left_over, ignore_errors=True)
        yield


def check_folder(training: TrainingArguments, adapter: bool) -> None:
    """
    Makes the output folder. Raises `ValueError` if nothing can be written there, or if it holds a model or checkpoints
    that this run (which ends with an `adapter` or a whole model) would overwrite.
    """
    folder = Path(training.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        raise ValueError(f"Nothing can be written to {folder} (`output_dir`): {error.strerror}.") from error
    other, kind = ("config.json", "a whole model") if adapter else ("adapter_config.json", "an adapter")
    for place in (folder, folder / "best"):
        if (place / other).exists():  # both kinds in one folder are a model that can't be loaded
            raise ValueError(f"{place} holds {kind} ({other}) already: please take another `output_dir`.")
    checkpoints, models = all_checkpoints(folder), [name for name in _MODELS if os.path.lexists(folder / name)]
    if checkpoints and training.resume_from_checkpoint is None:
        raise ValueError(
            f"{folder} holds {checkpoints[-1].name} of an earlier run: please set `resume_from_checkpoint` to `latest` "
            f"to continue it, or take another `output_dir`."
        )
    if models and not checkpoints and not training.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds a model ({models[0]}) and no checkpoint to resume from: please take another `output_dir`, "
            f"or set `overwrite_output_dir` to replace that model."
        )


def all_checkpoints(folder: Path) -> list[Path]:
    """The folders called `checkpoint-N`, by N, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def save_whole(save: Callable[[Path], object], folder: Path) -> None:
    """Saves beside and moves into place, weights last: a folder with weights has all of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as scratch:
        save(Path(scratch))
        for file in sorted(Path(scratch).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            file.replace(folder / file.name)


@dataclass
class BestModel:
    """
    Remembers the lowest validation `loss` and its `step`, and how many validations since then were `worse`. Its model
    is kept in `folder`.
    """

    folder: Path
    patience: int | None
    loss: float = math.inf
    step: int = 0
    worse: int = 0

    def take(self, loss: float, step: int, kept: bool) -> None:
        """Takes a validation into account; `kept` says that its model is now in the folder."""
        self.worse = 0 if loss < self.loss else self.worse + 1
        if kept:
            self.loss, self.step = loss, step

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations in a row weren't lower."""
        return self.patience is not None and self.worse >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints. The kept model isn't in them: a resumed run keeps it again."""
        return {"loss": self.loss, "step": self.step, "worse": self.worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a checkpoint's state."""
        self.loss, self.step, self.worse = state["loss"], state["step"], state["worse"]
