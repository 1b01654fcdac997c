# SPDX-License-Identifier: Apache-2.0
"""What a painter's run leaves beside the model: loss curve, summary and card; and the way to the Hub."""

import logging
from pathlib import Path

from ..hub import push_folder
from ..modeling_pai_painter import PaiPainterForImageGeneration
from .arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
from .loss_curve import draw_loss_curve
from .model_card import write_model_card
from .painter_data import PainterData
from .rows import rejected_rows
from .run import TrainingRun
from .summary import gather_facts, write_summary

__all__ = ["tell_outcome"]

logger = logging.getLogger(__name__)


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
        painter: whole, with its codec.
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
        repository = training.hub_model_id or folder.resolve().name
        address = push_folder(folder, repository, private=training.hub_private, commit_message="Train with pai-painter")
        logger.info("The model is at %s.", address)
