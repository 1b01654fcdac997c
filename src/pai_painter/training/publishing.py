# SPDX-License-Identifier: Apache-2.0
"""What a painter's run tells about itself: loss.png, training_summary.json and a model card; and its way to the Hub."""

import hashlib
import json
import logging
import os
import platform
import re
import shlex
from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, get_token
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in its __all__

from ..hub import push_folder
from ..model.model_files_pai_painter import portable_base_name
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..whole_files import write_whole
from .arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
from .metrics import draw_loss_curve, read_metrics
from .painter_data import PainterData
from .rows import REJECTED
from .training_run import TrainingRun

logger = logging.getLogger(__name__)

_MARK = "<!-- Written by pai-painter's training, which overwrites it only if nobody has edited it: {} -->\n"
_PACKAGES = ("pai-painter", "torch", "transformers", "accelerate", "datasets")
_RESULTS = ("loss", "validation_loss", "perplexity", "best_validation_loss", "best_step", "steps", "epochs")
_DATA = ("data", "rows", "rejected_rows", "validation_rows", "data_hash")


def check_push(model: PainterModelArguments, training: PainterTrainingArguments) -> None:
    """Raises `ValueError` for what would keep the model from the Hub in the end, as far as no network is needed."""
    if not training.push_to_hub:
        return
    if get_token() is None:
        raise ValueError("`push_to_hub` needs a token: please log in with `hf auth login`, or set HF_TOKEN.")
    validate_repo_id(_repository(training))  # its error is a ValueError
    base, folder, is_adapter = training.hub_base_model, model.model_name_or_path, model.lora_rank is not None
    if base is not None and not (is_adapter and re.fullmatch(r"[\w.-]+/[\w.-]+", base)):
        raise ValueError(f"`hub_base_model` is for adapters (`lora_rank`), and must be owner/name, got {base!r}.")
    if is_adapter and base is None and os.path.isabs(portable_base_name(str(folder))):
        raise ValueError(f"The base {folder} is a folder: please set `hub_base_model` to its name on the Hub.")


def push_model(training: PainterTrainingArguments) -> None:
    """Pushes the output folder, if asked to. Raises `OSError` if the Hub refuses it."""
    if training.push_to_hub:
        options: Any = {"private": training.hub_private, "tag": training.hub_tag, "base": training.hub_base_model}
        message = "Train with pai-painter"
        address = push_folder(training.output_dir, _repository(training), commit_message=message, **options)
        logger.info("The model is at %s.", address)


def _repository(training: PainterTrainingArguments) -> str:
    return training.hub_model_id or Path(training.output_dir).resolve().name


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
        "name": _repository(training),
        "base_model": _public(model.model_name_or_path),
        "lora": model.lora_rank is not None,
        "parameters": sum(parameter.numel() for parameter in painter.parameters()),
        "trained_parameters": sum(weight.numel() for weight in painter.parameters() if weight.requires_grad),
        "text_length": painter.config.text_length,
        "data": _public(rows.name),
        "data_hash": rows.identities["data"],
        "rows": rows.count,
        "rejected_rows": sum(path.read_bytes().count(b"\n") for path in folder.glob(f"{Path(REJECTED).stem}*.jsonl")),
        "validation_rows": None if rows.validation_rows is None else len(rows.validation_rows),
        "steps": run.done,
        "epochs": None if rows.count is None else run.done * rows_per_step / rows.count,
        "settings": _public({**vars(model), **vars(data), **vars(training)}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    try:
        metrics = read_metrics(folder / "metrics.jsonl")
        facts |= _losses(metrics)
        draw_loss_curve(metrics, folder / "loss.png")
        summary = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        write_whole(folder / "training_summary.json", lambda partial: partial.write_text(summary, encoding="utf-8"))
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
    write_whole(path, lambda partial: partial.write_text(f"{text}\n{_mark(text)}", encoding="utf-8"))


def _losses(metrics: list[dict[str, float]]) -> dict[str, float | None]:
    """The last and the best ones."""
    validations = [line for line in metrics if "validation_loss" in line]
    last = {name: value for line in metrics for name, value in line.items()}
    best = min(validations, key=lambda line: line["validation_loss"], default={})
    return {
        "loss": last.get("loss"),
        "validation_loss": last.get("validation_loss"),
        "perplexity": last.get("validation_perplexity"),
        "best_validation_loss": best.get("validation_loss"),
        "best_step": best.get("step"),
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
