# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints that are whole or not there.

`Accelerator.save_state` writes several files one after the other; killed in between, it leaves new weights beside an
old optimizer, and loading doesn't notice. So a checkpoint is written under a temporary name, synced, given a manifest
of its files' sizes, and only then renamed; old ones are removed after the new one is whole.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

__all__ = ["all_well", "find_checkpoint", "hold_only_trained", "load_checkpoint", "save_checkpoint"]

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"


def save_checkpoint(
    accelerator: Accelerator, output_dir: str | Path, step: int, settings: dict[str, Any], keep: int
) -> Path | None:
    """
    Saves everything that `accelerator` holds as `output_dir/checkpoint-<step>`. All processes call it.

    A disk that is full is no reason to lose the run: it is warned about, older checkpoints stay, and training goes on.

    Args:
        step: updates done so far.
        settings: what the run depends on; compared on resuming.
        keep: number of newest checkpoints that stay.

    Returns:
        the checkpoint, or `None` if it could not be written.
    """
    final = Path(output_dir) / f"{_PREFIX}{step}"
    partial = final.with_name(f".{final.name}.partial")
    problem: Exception | None = None
    if accelerator.is_main_process:
        for left_over in Path(output_dir).glob(f".{_PREFIX}*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors have their own for ENOSPC
        problem = error
    if not all_well(accelerator, problem):
        _give_up(accelerator, final, partial, problem)
        return None
    try:
        if accelerator.is_main_process:
            _publish(partial, final, {"step": step, "processes": accelerator.num_processes, "settings": settings})
    except OSError as error:
        problem = error
    if not all_well(accelerator, problem):
        _give_up(accelerator, final, partial, problem)
        return None
    if accelerator.is_main_process:
        # Later ones are left over from a run that was taken up again at an earlier step.
        for old in [path for path in _whole_checkpoints(Path(output_dir)) if _step_of(path) <= step][:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def _publish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Syncs the files, writes the manifest and gives the folder its name."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest["files"] = {str(path.relative_to(partial)): path.stat().st_size for path in files}
    (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    for path in (*files, partial / _MANIFEST, partial):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(final.parent)


def all_well(accelerator: Accelerator, problem: Exception | None) -> bool:
    """Whether no process has a problem. All call it: they must not wait for each other at different places."""
    flag = torch.tensor(int(problem is not None), device=accelerator.device)
    return not accelerator.reduce(flag, "sum").item()


def hold_only_trained(accelerator: Accelerator, trained: list[nn.Parameter]) -> None:
    """
    From now on, checkpoints leave frozen weights out: those of the base beside an adapter are a hundred times as large.

    Args:
        accelerator: after the model is prepared.
        trained: the parameters to hold; buffers are held, too.
    """
    wanted = {id(parameter) for parameter in trained}

    def held(model: nn.Module) -> dict[str, torch.Tensor]:
        frozen = {name for name, parameter in model.named_parameters() if id(parameter) not in wanted}
        return {name: weight for name, weight in model.state_dict().items() if name not in frozen}

    def leave_out(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        for model, state in zip(models, weights, strict=True):
            for name in state.keys() - held(model).keys():
                del state[name]

    def put_back(models: list[nn.Module], folder: str) -> None:
        model = models.pop()  # accelerate would want all weights for it
        state, own = load_file(Path(folder) / SAFE_WEIGHTS_NAME), held(model)
        if state.keys() != own.keys():
            raise ValueError(f"{folder} holds other weights than this run trains; please start in a new output folder.")
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(state[name])

    accelerator.register_save_state_pre_hook(leave_out)
    accelerator.register_load_state_pre_hook(put_back)


def _give_up(accelerator: Accelerator, final: Path, partial: Path, problem: Exception | None) -> None:
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        reason = "another process failed" if problem is None else " ".join(str(problem).split())
        whole = _whole_checkpoints(final.parent)
        newest = f"the newest is {whole[-1].name}" if whole else "there is none yet"
        logger.warning("%s could not be saved (%s). Training goes on; %s.", final.name, reason, newest)
    accelerator.wait_for_everyone()


def find_checkpoint(output_dir: str | Path, which: str) -> Path | None:
    """
    The checkpoint folder that `which` names: a path, or `latest` for the newest whole one (`None` if there is none).

    Raises:
        ValueError: if a folder named by its path isn't there or is not a whole checkpoint.
    """
    if which == "latest":
        for checkpoint in reversed(_all_checkpoints(Path(output_dir))):
            if _is_whole(checkpoint):
                return checkpoint
            logger.warning("%s is not whole (its manifest doesn't fit its files) and is passed over.", checkpoint)
        return None
    if not Path(which).is_dir():
        raise ValueError(f"There is no checkpoint {which}; use `latest` to take the newest one in the output folder.")
    if not _is_whole(Path(which)):
        raise ValueError(
            f"{which} is not a whole checkpoint of ours (its manifest doesn't fit its files); use `latest` to take the "
            f"newest whole one in the output folder."
        )
    return Path(which)


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, settings: dict[str, Any], ignore_changes: bool = False
) -> int:
    """
    Puts everything back and returns the number of steps done.

    Args:
        settings: what the run depends on.
        ignore_changes: go on even if that has changed, with a warning.

    Raises:
        ValueError: if the run that wrote it had other settings or another number of processes, or can't be taken up
            for another reason.
    """
    manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
    then = _flat({**manifest["settings"], "processes": manifest["processes"]})
    now = _flat(json.loads(json.dumps({**settings, "processes": accelerator.num_processes})))
    differences = [
        f"{name} was {then.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if differences and not ignore_changes:
        raise ValueError(
            f"{checkpoint.name} belongs to a run with other settings, so going on would not be the same run: "
            f"{'; '.join(differences)}. Set them back, or start in a new output folder (or go on all the same with "
            f"`ignore_changed_settings`)."
        )
    if differences:
        logger.warning("Going on as another run than %s: %s.", checkpoint.name, "; ".join(differences))
    try:
        accelerator.load_state(str(checkpoint))
    except (RuntimeError, UnpicklingError) as error:  # other shapes or states, damage of the same size
        raise ValueError(f"{checkpoint} can't be taken up by this run: {error}") from error
    return manifest["step"]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, so that a difference is named where it is."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _all_checkpoints(output_dir: Path) -> list[Path]:
    found = [path for path in output_dir.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=_step_of)


def _whole_checkpoints(output_dir: Path) -> list[Path]:
    return [path for path in _all_checkpoints(output_dir) if _is_whole(path)]


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):  # no manifest, a damaged one, a file that is missing
        return False


def _sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
