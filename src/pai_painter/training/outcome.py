# SPDX-License-Identifier: Apache-2.0
"""What a painter's run leaves beside the model: loss curve, summary and card; and the way to the Hub."""

import logging
from pathlib import Path

from ..hub import check_login, is_base_name, is_repository_name, push_folder
from ..model.folder_pai_painter import portable_base_name
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from .arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
from .loss_curve import draw_loss_curve
from .model_card import write_model_card
from .painter_data import PainterData
from .rows import rejected_rows
from .run import TrainingRun
from .summary import gather_facts, write_summary

__all__ = ["check_push", "tell_outcome"]

logger = logging.getLogger(__name__)


def check_push(model: PainterModelArguments, training: PainterTrainingArguments) -> None:
    """
    Finds out before the training, without a network, what would keep its model from the Hub in the end.

    Raises:
        ValueError: if there is no token, if the name can't be a repository's, or if an adapter's base has no name on
            the Hub.
    """
    if not training.push_to_hub:
        return
    check_login()
    repository = _repository(training)
    if not is_repository_name(repository):
        raise ValueError(f"{repository!r} can be no repository on the Hub: please set `hub_model_id` to owner/name.")
    if model.lora_rank is None:
        if training.hub_base_model is not None:
            raise ValueError("`hub_base_model` is for adapters (`lora_rank`): please leave it out.")
        return
    given = training.hub_base_model
    if given is not None and ("/" not in given or not is_repository_name(given)):
        raise ValueError(f"`hub_base_model` must be a repository of the Hub, owner/name, got {given!r}.")
    if given is None and not is_base_name(portable_base_name(str(model.model_name_or_path))):
        raise ValueError(
            f"The adapter is to go to the Hub, but its base {model.model_name_or_path} is a folder of this machine: "
            f"please set `hub_base_model` to what that model is called on the Hub, owner/name."
        )


def tell_outcome(
    run: TrainingRun,
    painter: PaiPainterForImageGeneration,
    rows: PainterData,
    model: PainterModelArguments,
    data: DataArguments,
    training: PainterTrainingArguments,
    seconds: float,
) -> None:
    """
    Writes loss.png, training_summary.json and README.md beside the saved model and pushes all of it, if asked to. The
    first process calls it.

    Args:
        painter: whole, with its VQGAN.
        seconds: since the run began, or was taken up again.

    Raises:
        OSError: if the Hub refuses the model; it is in the output folder then.
    """
    folder = Path(training.output_dir)
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    rows_per_step *= run.accelerator.num_processes
    try:
        draw_loss_curve(folder / "metrics.jsonl", folder / "loss.png")
        facts = gather_facts(
            folder,
            model=painter,
            base_model=model.model_name_or_path,
            data=rows.name,
            data_hash=rows.identity,
            rows=rows.count,
            rejected_rows=rejected_rows(folder, run.accelerator.num_processes),
            validation_rows=None if rows.validation_rows is None else len(rows.validation_rows),
            steps=run.done,
            rows_per_step=rows_per_step,
            seconds=seconds,
            device=run.accelerator.device,
            settings={**vars(model), **vars(data), **vars(training)},
            hub_model_id=training.hub_model_id,
            lora=model.lora_rank is not None,
        )
        write_summary(folder, facts)
        write_model_card(folder, facts, painter.config.text_length)
    except (OSError, ModuleNotFoundError) as error:  # a full disk, no matplotlib
        logger.warning("The model is saved, but what tells of its training isn't (%s).", error)
    if training.push_to_hub:
        address = push_folder(
            folder,
            _repository(training),
            private=training.hub_private,
            tag=training.hub_tag,
            commit_message="Train with pai-painter",
            base=training.hub_base_model,
        )
        logger.info("The model is at %s.", address)


def _repository(training: PainterTrainingArguments) -> str:
    return training.hub_model_id or Path(training.output_dir).resolve().name
