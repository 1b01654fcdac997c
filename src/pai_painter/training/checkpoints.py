# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints that are whole or not there.

`Accelerator.save_state` writes several files one after the other; killed in between, it leaves new weights beside an
old optimizer, and loading doesn't notice. So a checkpoint is written under a temporary name, synced, given a manifest
of its files' sizes, and only then renamed; old ones are removed after the new one is whole.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

__all__ = ["find_checkpoint", "load_checkpoint", "save_checkpoint"]

_MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"


def save_checkpoint(
    accelerator: Accelerator, output_dir: str | Path, step: int, settings: dict[str, Any], keep: int
) -> Path:
    """
    Saves everything that `accelerator` holds as `output_dir/checkpoint-<step>`. All processes call it.

    Args:
        step: updates done so far.
        settings: what the run depends on; compared on resuming.
        keep: number of newest checkpoints that stay.
    """
    final = Path(output_dir) / f"{_PREFIX}{step}"
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {
            "step": step,
            "processes": accelerator.num_processes,
            "settings": settings,
            "files": {str(path.relative_to(partial)): path.stat().st_size for path in files},
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        for path in (*files, partial / _MANIFEST, partial):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(final.parent)
        for old in _whole_checkpoints(Path(output_dir))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def find_checkpoint(output_dir: str | Path, which: str) -> Path | None:
    """
    The checkpoint folder that `which` names: a path, or `latest` for the newest whole one (`None` if there is none).

    Raises:
        ValueError: if a folder named by its path is not a whole checkpoint.
    """
    if which == "latest":
        whole = _whole_checkpoints(Path(output_dir))
        return whole[-1] if whole else None
    if not _is_whole(Path(which)):
        raise ValueError(
            f"{which} is not a whole checkpoint of ours (its manifest doesn't fit its files); use `latest` to take the "
            f"newest whole one in the output folder."
        )
    return Path(which)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, settings: dict[str, Any]) -> int:
    """
    Puts everything back and returns the number of steps done.

    Raises:
        ValueError: if the run that wrote it had other settings or another number of processes.
    """
    manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
    then = {**manifest["settings"], "processes": manifest["processes"]}
    now = {**json.loads(json.dumps(settings)), "processes": accelerator.num_processes}
    differences = [
        f"{name} was {then.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(
            f"{checkpoint.name} belongs to a run with other settings, so going on would not be the same run: "
            f"{'; '.join(differences)}. Set them back, or start in a new output folder."
        )
    accelerator.load_state(str(checkpoint))
    return manifest["step"]


def _whole_checkpoints(output_dir: Path) -> list[Path]:
    found = [path for path in output_dir.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(filter(_is_whole, found), key=lambda path: int(path.name.removeprefix(_PREFIX)))


def _is_whole(checkpoint: Path) -> bool:
    if not (checkpoint / _MANIFEST).is_file():
        return False
    files = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))["files"]
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size for name, size in files.items()
    )


def _sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
