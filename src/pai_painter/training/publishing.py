# SPDX-License-Identifier: Apache-2.0
"""The way to the Hub at the end of a run, checked before it."""

import logging
import os
import re
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..hub import push_folder
from ..painter_folder import portable_base_name
from .arguments import PainterModelArguments, PainterTrainingArguments

__all__ = ["check_push", "is_repository_name", "push_model"]

logger = logging.getLogger(__name__)


def is_repository_name(name: str) -> bool:
    """Whether a repository on the Hub can be called so."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_push(model: PainterModelArguments, training: PainterTrainingArguments) -> None:
    """
    Finds out before the training, without a network, what would keep its model from the Hub in the end.

    Raises:
        ValueError: if there is no token, if the name or the tag can't be one, or if an adapter's base has no name on
            the Hub.
    """
    if not training.push_to_hub:
        return
    if get_token() is None:
        raise ValueError("`push_to_hub` needs a token: please log in with `hf auth login`, or set HF_TOKEN.")
    repository, base = _repository(training), training.hub_base_model
    if not is_repository_name(repository):
        raise ValueError(f"{repository!r} can't be a repository on the Hub: please set `hub_model_id` to owner/name.")
    # What git allows, as far as the usual slips go.
    if training.hub_tag is not None and not re.fullmatch(r"(?!.*\.\.)[^\s~^:?*\[\\]+", training.hub_tag):
        raise ValueError(
            f"`hub_tag` can't be {training.hub_tag!r}: please give a name without blanks, .. and any of ~^:?*[\\."
        )
    if base is not None and model.lora_rank is None:
        raise ValueError("`hub_base_model` is for adapters (`lora_rank`): please leave it out.")
    if base is not None and ("/" not in base or not is_repository_name(base)):
        raise ValueError(f"`hub_base_model` must be a repository of the Hub, owner/name, got {base!r}.")
    if (
        model.lora_rank is not None
        and base is None
        and os.path.isabs(portable_base_name(str(model.model_name_or_path)))
    ):
        raise ValueError(
            f"The adapter's base {model.model_name_or_path} is a folder of this machine: please set `hub_base_model` to "
            f"what that model is called on the Hub, owner/name."
        )


def push_model(training: PainterTrainingArguments) -> None:
    """
    Pushes the output folder, if asked to.

    Raises:
        OSError: if the Hub refuses it; the model is in the output folder then.
    """
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
