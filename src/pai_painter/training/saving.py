# SPDX-License-Identifier: Apache-2.0
"""The model of a run on its way to a folder: whole or not at all; and the best one so far."""

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["BestModel", "check_folder", "check_kind", "remove_left_overs", "save_whole"]

_BEST, _SCRATCH = "best", ".model-"


def check_folder(folder: Path) -> None:
    """
    Makes a run's folder.

    Raises:
        ValueError: if nothing can be written there, which is better known before training than after it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        raise ValueError(f"Nothing can be written to {folder} (`output_dir`): {error.strerror}.") from error


def check_kind(folder: Path, adapter: bool) -> None:
    """
    A whole model and an adapter in one folder can't be told apart by who loads it.

    Args:
        adapter: whether an adapter will be saved there.

    Raises:
        ValueError: if the folder, or the best model in it, is of the other kind.
    """
    name, other = ("config.json", "a whole model") if adapter else ("adapter_config.json", "an adapter")
    for place in (folder, folder / _BEST):
        if (place / name).exists():
            raise ValueError(
                f"{place} holds {other} ({name}), but this run ends with {'an adapter' if adapter else 'a whole model'}"
                f": please take another `output_dir`."
            )


def remove_left_overs(folder: Path) -> None:
    """Removes what a run that was killed while it saved has left half-written."""
    for pattern in (f"{_SCRATCH}*", f"{_BEST}/{_SCRATCH}*", ".checkpoint-*.partial"):
        for left_over in folder.glob(pattern):
            shutil.rmtree(left_over, ignore_errors=True)


def save_whole(save: Callable[[Path], None], folder: Path) -> None:
    """Saves beside and moves into place, weights last: who finds weights in the folder finds all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
        save(Path(scratch))
        for file in sorted(Path(scratch).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            file.replace(folder / file.name)


class BestModel:
    """
    Remembers the lowest validation loss, and keeps its model.

    Args:
        output_dir: the run's; that model is kept in `best` in it.
        patience: after so many validations in a row without a lower loss, [`~BestModel.exhausted`] is true; `None`
            for never.
    """

    def __init__(self, output_dir: Path, patience: int | None):
        self.folder, self.patience = output_dir / _BEST, patience
        self.loss, self.step, self.worse = math.inf, 0, 0

    def is_better(self, loss: float) -> bool:
        """Whether a validation was the best so far, whose model is to be kept."""
        return loss < self.loss

    def take(self, loss: float, step: int, kept: bool) -> None:
        """Takes a validation into account; `kept` says that its model is now the one in the folder."""
        self.worse = 0 if self.is_better(loss) else self.worse + 1
        if kept:
            self.loss, self.step = loss, step

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.worse >= self.patience

    @property
    def is_missing(self) -> bool:
        """Whether the folder no longer holds the model that is remembered."""
        return math.isfinite(self.loss) and not any(self.folder.glob("*.safetensors"))

    def copy_to(self, folder: Path) -> None:
        """Copies the kept model's files."""
        for file in self.folder.iterdir():
            shutil.copy2(file, folder / file.name)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints. The kept model isn't in them: on the way from a checkpoint, it is made again."""
        return {"loss": self.loss, "step": self.step, "worse": self.worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a checkpoint's state back."""
        self.loss, self.step, self.worse = state["loss"], state["step"], state["worse"]
