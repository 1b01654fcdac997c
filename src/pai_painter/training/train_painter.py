# SPDX-License-Identifier: Apache-2.0
"""Trains the painter: captions and cached image tokens → a folder that `AutoModel` and the pipeline load."""

from functools import partial
from pathlib import Path

import torch

from ..lora import add_lora, has_lora, save_lora
from ..model_hash import architecture_of, hash_of_model
from .arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
from .command_line import run_from_command_line
from .output_folder import BestModel
from .painter_data import PainterData
from .painter_model import build_painter, take_vqgan, with_vqgan
from .painter_objective import PainterObjective
from .painter_rows import sequences
from .publishing import check_push, describe_run, push_model
from .training_run import begin_run


def train_painter(model: PainterModelArguments, data: DataArguments, training: PainterTrainingArguments) -> Path:
    """
    Trains a painter on captions and the image tokens of their pictures; the VQGAN stays as it is. Saves model,
    processor and generation configuration, or an adapter (`lora_rank`), in `training.output_dir`, and returns that.

    Raises:
        ValueError: if arguments, data or a checkpoint don't fit.
        OSError: if the model can't be saved, or if the Hub refuses it; the error says where it is then.
        Stopped: if SIGTERM or Ctrl-C came while it trained; there is a checkpoint then.
    """
    check_push(model, training)
    with begin_run(training, adapter=model.lora_rank is not None) as run:
        painter, processor = build_painter(model)
        vqgan = take_vqgan(painter).to(run.accelerator.device)
        rows = PainterData(run, vqgan, processor, data, training)
        settings = {  # beside the arguments of the training; weights that are trained are in checkpoints
            "config": architecture_of(painter.config),
            "vqgan": hash_of_model(vqgan),
            "vocabulary": processor.tokenizer.fingerprint,
            "image_processor": processor.image_processor.to_dict(),
            "base": None if model.lora_rank is None else hash_of_model(painter),
            **{name: value for name, value in vars(model).items() if name.startswith(("lora_", "attn_", "gradient_"))},
            **rows.identities,
        }
        if model.lora_rank is not None:
            targets = model.lora_target_modules or None
            add_lora(painter, model.lora_rank, model.lora_alpha, model.lora_dropout, targets, model.revision)
        trained = [parameter for parameter in painter.parameters() if parameter.requires_grad]
        best = BestModel(run.folder / "best", training.early_stopping_patience) if training.keeps_best else None
        run.prepare(PainterObjective(painter, training.pkeep), trained, rows.count, settings, {"data": rows}, best)

        def save(folder: Path, gathered: dict[str, torch.Tensor] | None) -> None:
            if has_lora(painter):
                save_lora(painter, folder, gathered)
                return
            if gathered is not None:  # of a sharded painter: its weights without the VQGAN's
                gathered |= {f"vqgan.{name}": weight for name, weight in vqgan.state_dict().items()}
            with with_vqgan(painter, vqgan):
                painter.save_pretrained(folder, state_dict=gathered)
            processor.save_pretrained(folder)

        run.evaluate, run.sample, run.save = rows.validate, partial(rows.sample, painter), save
        with run.signals:
            for step, batch in rows.batches():
                input_ids, labels = sequences(batch, run.accelerator.device, rows.encoder)
                loss = run.objective(input_ids, labels)
                run.update(loss)
                run.after_batch(step, loss)
            run.finish()

        if run.accelerator.is_main_process:
            with with_vqgan(painter, vqgan):
                describe_run(run, painter, rows, model, data, training)
            push_model(training)
    return run.folder


def main(argv: list[str] | None = None, program: str | None = None) -> None:
    """The command line of `train.py`; see [`~command_line.run_from_command_line`]."""
    types = (PainterModelArguments, DataArguments, PainterTrainingArguments)
    run_from_command_line(types, train_painter, argv, program)
