# SPDX-License-Identifier: Apache-2.0
"""README.md of a trained folder: a model card from the run's own numbers."""

import hashlib
import json
import logging
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..imaging.png_files import write_atomically
from .summary import TrainingFacts

__all__ = ["write_model_card"]

logger = logging.getLogger(__name__)

_NAME = "README.md"
_MARK = "<!-- Written by pai-painter's training, which writes it anew only as long as nobody has edited it: {} -->"
_MARKED = re.compile(r"\n" + re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{16})") + r"\s*\Z")
_GIBIBYTE = 2**30


def write_model_card(
    output_dir: str | Path, facts: TrainingFacts, text_length: int, license: str | None = None
) -> Path | None:
    """
    Writes the card of the model that a run has made, with loss.png and the newest of samples/*.png if they are there.

    A card that somebody wrote or edited stays as it is; that is warned about. Ours end in a mark with their hash.

    Args:
        output_dir: the trained model's folder.
        facts: of the run.
        text_length: word pieces of a caption that the model reads.
        license: the model's licence as the Hub calls it, for example `apache-2.0`; without it the card asks for one.

    Returns:
        the card, or `None` if there is one of somebody else.

    Raises:
        OSError: if it can't be written.
    """
    path = Path(output_dir) / _NAME
    if path.exists() and not _is_ours(path.read_text(encoding="utf-8", errors="replace")):
        logger.warning("%s was written or edited by hand and stays as it is; its numbers may be an older run's.", path)
        return None
    template = files(__package__).joinpath("model_card_template.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        _card_data(facts, license), template_str=template, **_fields(Path(output_dir), facts, text_length, license)
    )
    text = str(card).rstrip() + "\n"
    text += f"\n{_MARK.format(_digest(text))}\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")), force=True)
    return path


def _is_ours(text: str) -> bool:
    mark = _MARKED.search(text)
    return mark is not None and _digest(text[: mark.start()]) == mark[1]


def _digest(text: str) -> str:
    """Of the words, not of the kind of line ends that git or an editor gives them."""
    return hashlib.sha256("\n".join(text.splitlines()).encode("utf-8")).hexdigest()[:16]


def _card_data(facts: TrainingFacts, license: str | None) -> ModelCardData:
    tags = ["pai-painter", "vqgan", "chinese", *(["lora"] if facts.lora else [])]
    return ModelCardData(
        language="zh",
        license=license,
        # AutoModel is what loads the whole; the Hub takes the code snippet from here.
        library_name="peft" if facts.lora else "transformers",
        pipeline_tag="text-to-image",
        tags=tags,
        base_model=facts.base_model if facts.base_model_on_hub else None,
        base_model_relation=("adapter" if facts.lora else "finetune") if facts.base_model_on_hub else None,
    )


def _fields(output_dir: Path, facts: TrainingFacts, text_length: int, license: str | None) -> dict[str, Any]:
    samples = sorted((output_dir / "samples").glob("*.png"), key=lambda path: (_number_in(path.stem), path.name))
    base = None
    if facts.base_model is not None:
        address = f"[{_cell(facts.base_model)}](https://huggingface.co/{facts.base_model})"
        base = address if facts.base_model_on_hub else f"`{facts.base_model}`"
    return {
        "name": _cell(facts.name),
        "quoted_name": json.dumps(facts.name, ensure_ascii=False),
        "shell_name": shlex.quote(facts.name),
        "base": base,
        "lora": facts.lora,
        "parameters": f"{facts.parameters:,}",
        "trained_parameters": f"{facts.trained_parameters:,}",
        "samples": f"samples/{samples[-1].name}" if samples else None,
        "loss_curve": "loss.png" if (output_dir / "loss.png").is_file() else None,
        "results": _results(facts),
        "data": _data(facts),
        "rows": None if facts.rows is None else _rows(facts),
        "settings": [
            (f"`{name}`", _cell(value)) for name, value in sorted(facts.settings.items()) if value is not None
        ],
        "versions": list(facts.versions.items()),
        "text_length": text_length,
        "license": license,
    }


def _results(facts: TrainingFacts) -> list[tuple[str, str]]:
    """Label and value of what the run measured; what it did not is left out."""
    rows: list[tuple[str, str | None]] = [
        ("training loss (the last logged mean)", _number(facts.loss)),
        ("validation loss, in the end", _number(facts.validation_loss)),
        ("perplexity, in the end", _number(facts.perplexity)),
        (f"best validation loss, at step {facts.best_step}", _number(facts.best_validation_loss)),
        ("perplexity at that step", _number(facts.best_perplexity)),
        ("steps", f"{facts.steps:,}"),
        ("epochs", None if facts.epochs is None else f"{facts.epochs:.4g}"),
        ("parameters, trained", f"{facts.parameters:,}, {facts.trained_parameters:,}"),
        ("rows per second", None if facts.rows_per_second is None else f"{facts.rows_per_second:.4g}"),
        ("time since it was (last) started", _duration(facts.seconds)),
    ]
    places = {"process": "memory at most", "device": "memory of the device at most"}
    rows += [(places[name], f"{size / _GIBIBYTE:.2f} GiB") for name, size in facts.peak_memory.items()]
    return [(label, value) for label, value in rows if value is not None]


def _data(facts: TrainingFacts) -> list[tuple[str, str]]:
    rows = [
        ("name", _cell(facts.data)),
        ("rows", _rows(facts)),
        ("rejected rows", f"{facts.rejected_rows:,}"),
        ("hash of its content", f"`{facts.data_hash}`"),
    ]
    return rows if facts.validation_rows is None else [*rows, ("validation rows", f"{facts.validation_rows:,}")]


def _rows(facts: TrainingFacts) -> str:
    return "a stream, not counted" if facts.rows is None else f"{facts.rows:,}"


def _cell(value: Any) -> str:
    """Anything as text that neither ends a table's cell nor is markup."""
    text = ", ".join(str(each) for each in value) if isinstance(value, list) else str(value)
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split())) or "(empty)"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _number_in(name: str) -> int:
    """`step-001000` → 1000; a name without a number comes first."""
    found = re.search(r"\d+", name)
    return int(found[0]) if found else -1
