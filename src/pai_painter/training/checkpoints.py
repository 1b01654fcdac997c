# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints that are whole or not there: written under a temporary name, synced, given a manifest with checksums, and
only then renamed; old ones are removed afterwards. (`Accelerator.save_state` alone, when it is killed, leaves new
weights beside an old optimizer.) Nothing in a checkpoint is executed: accelerate reads its own files with safetensors
and `weights_only=True`. What is registered with it would be unpickled, so our states are in a file of their own.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..whole_files import sync
from .output_folder import all_checkpoints

logger = logging.getLogger(__name__)

_FAILED_SAVES = (OSError, RuntimeError, SafetensorError)  # torch.save and safetensors have their own for a full disk
_UNREADABLE = (*_FAILED_SAVES, UnpicklingError, EOFError, KeyError)  # other shapes, damage
_MANIFEST, _STATES = "manifest.json", "states.pt"


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, settings: dict[str, Any], states: dict[str, Any], keep: int
) -> None:
    """
    Saves everything that `accelerator` holds as `folder/checkpoint-<step>`, with the `settings` that the run depends on
    and the first process's `state_dict`s, of tensors and plain values, of `states`. The `keep` newest checkpoints stay.
    All processes call it. A full disk doesn't end the run: it is warned about, and older checkpoints stay.
    """
    final, main = folder / f"checkpoint-{step}", accelerator.is_main_process
    partial = folder / f".{final.name}.partial"
    held = {name: state.state_dict() for name, state in states.items()}  # on all processes: some gather it from all

    def write() -> None:
        accelerator.save_state(str(partial))
        if main:
            torch.save(held, partial / _STATES)

    def publish() -> None:
        if main:
            _publish(partial, final, {"step": step, "processes": accelerator.num_processes, "settings": settings})

    if main:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    problem = attempt(accelerator, write) or attempt(accelerator, publish)  # all files, before they are listed
    if main:
        found = all_checkpoints(folder)
        if problem is None:  # later ones are left from a run that was resumed at an earlier step
            for old in found[: found.index(final) + 1][:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            newest = f"the newest is {found[-1].name}" if found else "there is none yet"
            logger.warning("%s could not be saved (%s); %s.", final, " ".join(str(problem).split()), newest)
    accelerator.wait_for_everyone()


def _publish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Syncs the files, writes the manifest and gives the folder its name."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest["files"] = {str(path.relative_to(partial)): _checksum(path) for path in files}
    (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    for path in (*files, partial / _MANIFEST, partial):
        sync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync(final.parent)


def attempt(accelerator: Accelerator, save: Callable[..., None], *arguments: Any) -> Exception | None:
    """
    Calls `save`, and gives the reason if that failed on any process. All call it, so that none of them waits for
    another one that has failed.
    """
    problem: Exception | None = None
    try:
        save(*arguments)
    except _FAILED_SAVES as error:
        problem = error
    failed = torch.tensor(int(problem is not None), device=accelerator.device)
    return problem or (OSError("another process failed") if accelerator.reduce(failed, "sum").item() else None)


def hold_only_trained(accelerator: Accelerator, trained: list[nn.Parameter]) -> None:
    """From now on, checkpoints leave out parameters that aren't among `trained`, such as an adapter's large base."""
    wanted = {id(parameter) for parameter in trained}

    def frozen(model: nn.Module) -> set[str]:
        return {name for name, parameter in model.named_parameters() if id(parameter) not in wanted}

    def leave_out(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        for name in frozen(models[0]):
            del weights[0][name]

    def put_back(models: list[nn.Module], folder: str) -> None:
        model = models.pop()  # accelerate would want all weights for it
        state, whole = load_file(Path(folder) / SAFE_WEIGHTS_NAME), model.state_dict()
        if state.keys() != whole.keys() - frozen(model):
            raise ValueError(f"{folder} has different weights than this run trains; please take a new output folder.")
        model.load_state_dict(whole | state)

    accelerator.register_save_state_pre_hook(leave_out)
    accelerator.register_load_state_pre_hook(put_back)


def find_checkpoint(folder: Path, which: str | None) -> Path | None:
    """
    The checkpoint that `which` names: a path, or `latest` for the newest whole one (`None` if there is none at all).
    Raises `ValueError` if it isn't there or is damaged, or if all of the folder's are.
    """
    if which is None:
        return None
    found = all_checkpoints(folder) if which == "latest" else [Path(which)]
    for checkpoint in reversed(found):
        reason = _damage(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("%s is damaged: %s.", checkpoint, reason)
    if found:
        raise ValueError(
            f"{found[-1]} isn't a complete checkpoint: {_damage(found[-1])}. Please use `latest`, or take another "
            f"folder to start from the beginning."
        )
    return None


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, settings: dict[str, Any], states: dict[str, Any], ignore: bool = False
) -> int:
    """
    Restores everything and returns the number of steps done. Raises `ValueError` if it doesn't fit, or if the run that
    wrote it had other settings or another number of processes; with `ignore`, the latter is only warned about.
    """
    manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
    then = _flat({**manifest["settings"], "processes": manifest["processes"]})
    now = _flat(json.loads(json.dumps({**settings, "processes": accelerator.num_processes})))
    differences = "; ".join(
        f"{name} was {then.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    )
    if differences and not ignore:
        raise ValueError(
            f"{checkpoint.name} belongs to a run with other settings: {differences}. Set them back, take a new output "
            f"folder, or set `ignore_changed_settings` to continue as a different run."
        )
    if differences:
        logger.warning("Continuing as a different run than %s: %s.", checkpoint.name, differences)
    try:
        accelerator.load_state(str(checkpoint))
        saved = torch.load(checkpoint / _STATES, map_location="cpu", weights_only=True)
        for name, state in states.items():
            state.load_state_dict(saved[name])
    except _UNREADABLE as error:
        raise ValueError(f"{checkpoint} can't be resumed by this run: {error}") from error
    return manifest["step"]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, so that a difference is named where it is."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, as far as its manifest tells."""
    try:
        files = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, checksum in files.items():
            if _checksum(checkpoint / name) != checksum:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "a file is missing, or its manifest is damaged"
    return None


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
