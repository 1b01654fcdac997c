# SPDX-License-Identifier: Apache-2.0
"""The way to the Hub at the end of a run, checked before it."""

import logging
import os
import re
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in its __all__

from ..hub import push_folder
from ..model.model_files_pai_painter import portable_base_name
from .arguments import PainterModelArguments, PainterTrainingArguments

__all__ = ["check_push", "push_model"]

logger = logging.getLogger(__name__)


def check_push(model: PainterModelArguments, training: PainterTrainingArguments) -> None:
    """Raises `ValueError` for what would keep the model from the Hub in the end, as far as no network is needed."""
    if not training.push_to_hub:
        return
    repository, tag, base = _repository(training), training.hub_tag, training.hub_base_model
    if get_token() is None:
        raise ValueError("`push_to_hub` needs a token: please log in with `hf auth login`, or set HF_TOKEN.")
    validate_repo_id(repository)  # its error is a ValueError
    if tag is not None and not re.fullmatch(r"(?!.*\.\.)[^\s~^:?*\[\\]+", tag):
        raise ValueError(f"`hub_tag` can't be {tag!r}: please give a name without blanks, .. and any of ~^:?*[\\.")
    if base is not None and (model.lora_rank is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", base)):
        raise ValueError(f"`hub_base_model` is for adapters (`lora_rank`), and must be owner/name, got {base!r}.")
    folder = model.model_name_or_path
    if model.lora_rank is not None and base is None and os.path.isabs(portable_base_name(str(folder))):
        raise ValueError(
            f"The base {folder} is a folder: please set `hub_base_model` to its name on the Hub, owner/name."
        )


def push_model(training: PainterTrainingArguments) -> None:
    """Pushes the output folder, if asked to. Raises `OSError` if the Hub refuses it."""
    if training.push_to_hub:
        address = push_folder(
            training.output_dir,
            _repository(training),
            private=training.hub_private,
            tag=training.hub_tag,
            commit_message="Train with pai-painter",
            base=training.hub_base_model,
        )
        logger.info("The model is at %s.", address)


def _repository(training: PainterTrainingArguments) -> str:
    return training.hub_model_id or Path(training.output_dir).resolve().name
