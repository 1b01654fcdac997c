# SPDX-License-Identifier: Apache-2.0
"""What a finished run knows about itself, gathered once: training_summary.json and the model card tell it."""

import json
import math
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..hub import is_repository_name
from ..imaging.png_files import write_atomically

__all__ = [
    "TrainingFacts",
    "gather_facts",
    "hub_name_or_none",
    "mean_rows_per_second",
    "package_versions",
    "peak_memory",
    "read_metrics",
    "shown_name",
    "write_summary",
]

_PACKAGES = ("pai-painter", "torch", "transformers", "accelerate", "datasets", "peft")
_LONGEST_EXPONENT = 700  # e to the power of more is no float


@dataclass(frozen=True)
class TrainingFacts:
    """
    One finished run. It names no folder of the machine, only last components of paths, and holds no row of the data.

    Args:
        name: the trained model's: its repository on the Hub, or the last component of its folder.
        base_model: what training started from: a Hub name or a folder's last component; `None` for a new painter.
        base_model_on_hub: whether `base_model` is a Hub name.
        lora: whether an adapter was trained rather than the whole.
        parameters, trained_parameters: numbers of weights, the VQGAN's included, and of those that training moved.
        data: name of the training data.
        data_hash: hash of its content.
        rows, rejected_rows, validation_rows: numbers of rows that were used (`None` for a stream), thrown out, and
            validated on.
        steps, epochs: updates, and how often the rows were gone through.
        loss: mean cross-entropy of a code in nats over the last logged steps.
        validation_loss: the same over the validation rows at the last validation.
        best_validation_loss, best_step: the lowest one, and its step.
        rows_per_second: mean over the run, without validation and saving.
        seconds: since the run was started, or last taken up again.
        peak_memory: see [`peak_memory`].
        versions: of Python and of the packages that matter.
        settings: all arguments of the run.
    """

    name: str
    base_model: str | None
    base_model_on_hub: bool
    lora: bool
    parameters: int
    trained_parameters: int
    data: str
    data_hash: str
    rows: int | None
    rejected_rows: int
    validation_rows: int | None
    steps: int
    epochs: float | None
    loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    best_step: int | None
    rows_per_second: float | None
    seconds: float
    peak_memory: dict[str, int]
    versions: dict[str, str]
    settings: dict[str, Any]

    @property
    def perplexity(self) -> float | None:
        """Of the last validation: among how many equally likely codes the painter hesitates."""
        return _perplexity(self.validation_loss)

    @property
    def best_perplexity(self) -> float | None:
        """Of the best validation."""
        return _perplexity(self.best_validation_loss)


def gather_facts(
    output_dir: str | Path,
    *,
    model: torch.nn.Module,
    base_model: str | None,
    data: str,
    data_hash: str,
    rows: int | None,
    rejected_rows: int,
    validation_rows: int | None,
    steps: int,
    rows_per_step: int,
    seconds: float,
    device: torch.device,
    settings: Mapping[str, Any],
    hub_model_id: str | None = None,
    lora: bool = False,
) -> TrainingFacts:
    """
    Gathers the facts of a run that has just ended; losses and speed come from its metrics.jsonl.

    Args:
        output_dir: the trained model's folder.
        model: the trained model with its VQGAN; a parameter that asks for gradients counts as trained.
        base_model: name or folder of the model that training started from.
        data: name of the training data; of a path the last component is kept.
        rows: number of training rows, `None` if they are streamed.
        rows_per_step: rows of one update, over all processes and accumulated batches.
        settings: the run's arguments. Of paths the last component is kept; tokens are left out.
        hub_model_id: the repository that the model goes to.
    """
    metrics = read_metrics(Path(output_dir) / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if "loss" in line]
    validations = [(line["validation_loss"], int(line["step"])) for line in metrics if "validation_loss" in line]
    best_loss, best_step = min(validations, default=(None, None))
    return TrainingFacts(
        name=hub_model_id or Path(output_dir).resolve().name,
        base_model=None if base_model is None else shown_name(base_model),
        base_model_on_hub=base_model is not None and hub_name_or_none(base_model) is not None,
        lora=lora,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained_parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        data=shown_name(data),
        data_hash=data_hash,
        rows=rows,
        rejected_rows=rejected_rows,
        validation_rows=validation_rows,
        steps=steps,
        epochs=None if rows is None else steps * rows_per_step / rows,
        loss=losses[-1] if losses else None,
        validation_loss=validations[-1][0] if validations else None,
        best_validation_loss=best_loss,
        best_step=best_step,
        rows_per_second=mean_rows_per_second(metrics),
        seconds=seconds,
        peak_memory=peak_memory(device),
        versions=package_versions(),
        settings=_without_paths(settings),
    )


def write_summary(output_dir: str | Path, facts: TrainingFacts) -> Path:
    """
    Writes training_summary.json, whole or not at all.

    Raises:
        OSError: if it can't be written.
    """
    path = Path(output_dir) / "training_summary.json"
    content = {**asdict(facts), "perplexity": facts.perplexity, "best_perplexity": facts.best_perplexity}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")), force=True)
    return path


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """
    The lines of a metrics.jsonl in the order of their steps, without figures that aren't finite numbers.

    A line that a kill or a full disk has cut is left out: it stands for one point of a curve. A step that was done
    again after a restart counts with its later figures.

    Raises:
        OSError: if the file can't be read.
    """
    lines: dict[tuple[float, bool], dict[str, float]] = {}
    for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict):
            continue
        figures = {name: value for name, value in line.items() if _is_finite_number(value)}
        if "step" in figures:
            # Loss and validation of a step are two lines.
            lines[figures["step"], "validation_loss" in figures] = figures
    return [lines[key] for key in sorted(lines)]


def mean_rows_per_second(metrics: list[dict[str, float]]) -> float | None:
    """
    Rows over seconds of the whole run, from the speed of each logged stretch of steps.

    Args:
        metrics: lines as [`read_metrics`] gives them.
    """
    stretches, before = [], 0.0
    for line in metrics:
        if line.get("rows_per_second", 0) > 0:
            stretches.append((line["step"] - before, line["rows_per_second"]))
            before = line["step"]
    steps = sum(length for length, _ in stretches)
    # A stretch takes a time of length / speed, in units of rows per step.
    return steps / sum(length / speed for length, speed in stretches) if steps else None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on; one that isn't installed had no part in it."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def peak_memory(device: torch.device) -> dict[str, int]:
    """
    Bytes at the worst moment so far: `process`, what of this process was in the machine's memory, mapped files such
    as data tables included, and on CUDA `device`, what torch had allocated there. Windows tells nothing of the first.
    """
    peaks: dict[str, int] = {}
    if sys.platform != "win32":
        import resource  # POSIX only

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device)
    return peaks


def shown_name(name: str) -> str:
    """A Hub name, or any text without a path, as it is; of a path the last component."""
    if not re.search(r"[/\\]", name) or hub_name_or_none(name) is not None:
        return name
    return re.split(r"[/\\]+", name.rstrip("/\\"))[-1] or name


def hub_name_or_none(name: str) -> str | None:
    """`name` if it can only be a repository on the Hub: owner/name, and no file or folder here is called so."""
    return name if name.count("/") == 1 and is_repository_name(name) and not Path(name).exists() else None


def _without_paths(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(each, str(key)) for key, each in value.items() if not _is_secret(str(key))}
    if isinstance(value, list | tuple):
        return [_without_paths(each, name) for each in value]
    if isinstance(value, Path):
        return shown_name(str(value))
    if isinstance(value, str) and name != "hub_model_id":
        return shown_name(value)
    return value


def _is_secret(name: str) -> bool:
    return "token" in name.split("_")


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _perplexity(loss: float | None) -> float | None:
    return math.exp(loss) if loss is not None and loss < _LONGEST_EXPONENT else None
