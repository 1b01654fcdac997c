# SPDX-License-Identifier: Apache-2.0
"""What a painter's run tells about itself: loss.png, training_summary.json and README.md, a model card."""

import hashlib
import json
import logging
import math
import platform
import re
import shlex
from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..whole_files import write_whole
from .arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
from .loss_curve import draw_loss_curve
from .metrics import read_metrics
from .painter_data import PainterData
from .rows import rejected_rows
from .training_run import TrainingRun

__all__ = ["describe_run", "write_model_card"]

logger = logging.getLogger(__name__)

_MARK = "<!-- Written by pai-painter's training, which overwrites it only if nobody has edited it: {} -->\n"
_PACKAGES = ("pai-painter", "torch", "transformers", "accelerate", "datasets")
_RESULTS = ("loss", "validation_loss", "perplexity", "best_validation_loss", "best_step", "steps", "epochs")
_DATA = ("data", "rows", "rejected_rows", "validation_rows", "data_hash")


def describe_run(
    run: TrainingRun,
    painter: PaiPainterForImageGeneration,
    rows: PainterData,
    model: PainterModelArguments,
    data: DataArguments,
    training: PainterTrainingArguments,
) -> None:
    """Writes the three files beside the saved model. They name no folder of the machine and hold no row of the data."""
    folder, processes = run.folder, run.accelerator.num_processes
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
    facts: dict[str, Any] = {
        "name": training.hub_model_id or folder.resolve().name,
        "base_model": None if model.model_name_or_path is None else _public(model.model_name_or_path),
        "lora": model.lora_rank is not None,
        "parameters": sum(parameter.numel() for parameter in painter.parameters()),
        "trained_parameters": sum(weight.numel() for weight in painter.parameters() if weight.requires_grad),
        "text_length": painter.config.text_length,
        "data": _public(rows.name),
        "data_hash": rows.identity,
        "rows": rows.count,
        "rejected_rows": rejected_rows(folder, processes),
        "validation_rows": None if rows.validation_rows is None else len(rows.validation_rows),
        "steps": run.done,
        "epochs": None if rows.count is None else run.done * rows_per_step / rows.count,
        "settings": _public({**vars(model), **vars(data), **vars(training)}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    try:
        facts |= _losses(folder)
        draw_loss_curve(folder / "metrics.jsonl", folder / "loss.png")
        _write(folder / "training_summary.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_model_card(folder, facts)
    except (OSError, ModuleNotFoundError) as error:  # a full disk, no matplotlib
        logger.warning("The model is saved, but not what describes its training (%s).", error)


def write_model_card(folder: Path, facts: dict[str, Any]) -> None:
    """
    Writes README.md, with loss.png and the newest of samples/*.png if they are there. A card that somebody wrote or
    edited stays: ours end in a mark with their hash.
    """
    path = folder / "README.md"
    body, *mark = path.read_text("utf-8", "replace").rpartition("<!--") if path.exists() else ("",)
    if path.exists() and "".join(mark) != _mark(body):
        logger.warning("%s was written or edited by hand and stays as it is; its numbers may be an older run's.", path)
        return
    base, lora = facts["base_model"], facts["lora"]
    on_hub = base is not None and "/" in base  # of paths, only the last component is left
    samples = sorted((folder / "samples").glob("step-*.png"), key=lambda path: (len(path.name), path.name))
    card_data = ModelCardData(
        language="zh",
        library_name="peft" if lora else "transformers",  # whose code snippet the Hub shows
        pipeline_tag="text-to-image",
        tags=["pai-painter", "vqgan", "chinese", *(["lora"] if lora else [])],
        base_model=base if on_hub else None,
        base_model_relation=("adapter" if lora else "finetune") if on_hub else None,
    )
    settings = _section(facts["settings"], facts["settings"])
    shown: dict[str, Any] = {
        "quoted_name": json.dumps(facts["name"], ensure_ascii=False),
        "shell_name": shlex.quote(facts["name"]),
        "base": f"[{base}](https://huggingface.co/{base})" if on_hub else base and f"`{base}`",
        "samples": f"samples/{samples[-1].name}" if samples else None,
        "loss_curve": "loss.png" if (folder / "loss.png").is_file() else None,
        "sections": {"Results": _section(facts, _RESULTS), "Data": _section(facts, _DATA), "Hyperparameters": settings},
    }
    template = files(__package__).joinpath("model_card_template.md").read_text(encoding="utf-8")
    text = str(ModelCard.from_template(card_data, template_str=template, **facts, **shown)).rstrip() + "\n"
    _write(path, f"{text}\n{_mark(text)}")


def _losses(folder: Path) -> dict[str, float | None]:
    """Of the last and of the best lines of metrics.jsonl."""
    metrics = read_metrics(folder / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if "loss" in line]
    validations = [(line["validation_loss"], line["step"]) for line in metrics if "validation_loss" in line]
    best_loss, best_step = min(validations, default=(None, None))
    last = validations[-1][0] if validations else None
    return {
        "loss": losses[-1] if losses else None,
        "validation_loss": last,
        "perplexity": math.exp(last) if last is not None and last < 700 else None,  # e to the power of more is no float
        "best_validation_loss": best_loss,
        "best_step": best_step,
    }


def _public(value: Any) -> Any:
    """Settings without the machine's folders: of a path the last component, a name on the Hub as it is."""
    if isinstance(value, dict):
        return {name: _public(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_public(each) for each in value]
    if not isinstance(value, str) or (re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value) and not Path(value).exists()):
        return value
    return re.split(r"[/\\]+", value.rstrip("/\\"))[-1] or value


def _section(values: dict[str, Any], names: Iterable[str]) -> str:
    known = {name: values[name] for name in names if values[name] not in (None, [])}
    return yaml.safe_dump(known, allow_unicode=True, sort_keys=False)


def _mark(text: str) -> str:
    return _MARK.format(hashlib.sha256(text.strip().encode()).hexdigest()[:16])


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_bytes(text.encode()))
