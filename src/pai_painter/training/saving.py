# SPDX-License-Identifier: Apache-2.0
"""The model of a run on its way to a folder: whole or not at all; and the best one so far."""

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["BestModel", "save_whole"]


def save_whole(save: Callable[[Path], None], folder: Path) -> None:
    """Saves beside and moves into place, weights last: who finds weights in the folder finds all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as scratch:
        save(Path(scratch))
        for file in sorted(Path(scratch).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            file.replace(folder / file.name)


class BestModel:
    """
    Remembers the lowest validation loss, and keeps its model.

    Args:
        folder: where that model is kept.
        patience: after so many validations in a row without a lower loss, [`~BestModel.exhausted`] is true; `None`
            for never.
    """

    def __init__(self, folder: Path, patience: int | None):
        self.folder, self.patience = folder, patience
        self.loss, self.step, self.worse = math.inf, 0, 0

    def is_better(self, loss: float) -> bool:
        """Whether a validation was the best so far, whose model is to be kept."""
        return loss < self.loss

    def take(self, loss: float, step: int, kept: bool) -> None:
        """Takes a validation into account; `kept` says that its model is now the one in the folder."""
        if kept:
            self.loss, self.step, self.worse = loss, step, 0
        else:
            self.worse += 1

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.worse >= self.patience

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
