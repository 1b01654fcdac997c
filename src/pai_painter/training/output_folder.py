# SPDX-License-Identifier: Apache-2.0
"""A run's folder: one run at a time, nothing of others overwritten, and a model that is whole or not there."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["all_checkpoints", "check_folder", "check_models", "locked", "remove_left_overs", "save_whole"]

logger = logging.getLogger(__name__)

_SCRATCH = ".model-"
_WAIT = 10  # seconds: the loader workers of a killed run hold its lock a little longer
_MODELS = ("config.json", "adapter_config.json", "model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    While it lasts, no other run trains in `folder`. The lock is on the folder itself and ends with the process.

    Raises:
        ValueError: if another run trains there.
    """
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else -1
    deadline = time.monotonic() + _WAIT
    try:
        while fcntl:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"Another training runs in {folder} (`output_dir`): please wait for its end or stop it (its "
                        f"processes may have outlived a launcher that was killed), or take another folder."
                    ) from None
                time.sleep(0.2)
            except OSError as error:
                logger.warning("%s can't be locked (%s): please run one training at a time there.", folder, error)
                break
        yield
    finally:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # forked workers have the descriptor, too
            os.close(descriptor)


def check_models(folder: Path, adapter: bool, overwrite: bool) -> None:
    """
    Finds a model that is not this run's before it is overwritten.

    Args:
        adapter: whether the run ends with an adapter rather than a whole model.
        overwrite: whether a model of the same kind may be overwritten.

    Raises:
        ValueError: if the folder holds one, or if it, or `best` in it, holds one of the other kind.
    """
    name, other = ("config.json", "a whole model") if adapter else ("adapter_config.json", "an adapter")
    for place in (folder, folder / "best"):
        if (place / name).exists():
            raise ValueError(
                f"{place} holds {other} ({name}), but this run ends with {'an adapter' if adapter else 'a whole model'}"
                f": please take another `output_dir`."
            )
    found = [name for name in _MODELS if os.path.lexists(folder / name)]
    if found and not overwrite and not all_checkpoints(folder):
        raise ValueError(
            f"{folder} holds a model ({found[0]}) and no checkpoint to resume from: please take another `output_dir`, "
            f"or set `overwrite_output_dir` to replace that model."
        )


def all_checkpoints(folder: Path) -> list[Path]:
    """The folders called `checkpoint-N`, by N, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def remove_left_overs(folder: Path) -> None:
    """Removes what a run that was killed while it saved has left half-written."""
    for pattern in (f"{_SCRATCH}*", f"best/{_SCRATCH}*", ".checkpoint-*.partial"):
        for left_over in folder.glob(pattern):
            shutil.rmtree(left_over, ignore_errors=True)


def save_whole(save: Callable[[Path], None], folder: Path) -> None:
    """Saves beside and moves into place, weights last: a folder with weights has all of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
        save(Path(scratch))
        for file in sorted(Path(scratch).iterdir(), key=lambda path: path.suffix == ".safetensors"):
            file.replace(folder / file.name)
