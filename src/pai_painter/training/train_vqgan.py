# SPDX-License-Identifier: Apache-2.0
"""Trains the VQGAN: pictures → a folder that `PaiPainterVQModel.from_pretrained` loads."""

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from accelerate.utils import broadcast
from PIL import Image
from torch.utils.data import DataLoader

from ..data.augment import shift_and_flip
from ..data.row_cache import PictureRows
from ..imaging.grids import draw_grid
from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model_hash import architecture_of
from .arguments import DataArguments, VQGANModelArguments, VQGANTrainingArguments
from .codebook import CodebookLearner
from .command_line import run_from_command_line
from .order import seed_of
from .painter_model import naming_damaged_files
from .rows import find_training_source, load_training_rows, load_validation_rows
from .training_run import TrainingRun
from .vqgan_objective import VQGANObjective, blank_patches

__all__ = ["main", "train_vqgan", "validate_vqgan"]

_LATENTS_PER_ENTRY = 40  # what k-means starts from; more changes little


def train_vqgan(model: VQGANModelArguments, data: DataArguments, training: VQGANTrainingArguments) -> Path:
    """
    Trains a VQGAN and saves it, with its image processor, into `training.output_dir`, which is returned.

    Raises:
        ValueError, OSError, Stopped: see [`~train_painter.train_painter`].
    """
    if data.streaming:
        raise ValueError("The VQGAN can't be trained on a stream: please leave `streaming` out.")
    with TrainingRun(training) as run:
        accelerator = run.accelerator
        vqgan = _build_vqgan(model).to(accelerator.device)
        processor = PaiPainterImageProcessor(size=vqgan.config.resolution)
        train_rows = load_training_rows(data, find_training_source(data), training.output_dir, accelerator)
        valid_rows = load_validation_rows(data, training.output_dir, accelerator)
        learner = CodebookLearner(vqgan.quantize, training)
        if model.model_name_or_path is not None:
            learner.go_on_from(learner.entries)
        settings = {"config": architecture_of(vqgan.config), "data": train_rows._fingerprint}
        run.prepare(VQGANObjective(vqgan, training), list(vqgan.parameters()), len(train_rows), settings, [learner])
        start, entries = training.codebook_start_step, vqgan.config.num_embeddings
        # Said at once rather than hundreds of steps later.
        if not learner.started and start >= run.steps:
            raise ValueError(f"`codebook_start_step` ({start}) must be below the {run.steps} steps of the run.")
        if not learner.started and len(train_rows) * vqgan.config.num_image_tokens < entries:
            raise ValueError(
                f"{len(train_rows)} training pictures have too few patches for {entries} `num_embeddings`."
            )

        all_pictures = PictureRows(train_rows, processor)
        if valid_rows is not None and accelerator.is_main_process:
            run.evaluate = partial(validate_vqgan, vqgan, valid_rows, processor)
        run.sample = partial(_draw_samples, vqgan, valid_rows, processor, training)
        run.save = partial(_save, vqgan, processor)
        with run.signals:
            for step, pictures in run.batches(all_pictures, len(all_pictures), torch.stack):
                # The generator that the run has set for this batch.
                pictures = shift_and_flip(pictures, training.max_shift, training.flip, torch.default_generator)
                pictures = pictures.to(accelerator.device)
                if not learner.started and step >= training.codebook_start_step:
                    _start_codebook(run, learner, vqgan, all_pictures)
                outputs = run.objective(pictures, quantise=learner.started)
                if learner.started:
                    latents, image_tokens, errors = accelerator.gather(
                        (outputs["latents"], outputs["image_tokens"], outputs["errors"])
                    )
                    learner.update(latents, image_tokens, errors, step)
                run.update(outputs["loss"])  # after the codebook, which the average copies
                run.after_batch(step, outputs["pixels_loss"])
            run.finish()
    return Path(training.output_dir)


@torch.no_grad()
def validate_vqgan(
    vqgan: PaiPainterVQModel, rows: datasets.Dataset, processor: PaiPainterImageProcessor, batch_size: int = 32
) -> dict[str, float]:
    """
    What the VQGAN loses on pictures: `psnr` (dB, mean over pictures of 8-bit range), `codes_used` (share of the
    codebook) and `perplexity` (of the image tokens' distribution).
    """
    vqgan.eval()
    device = vqgan.quantize.embedding.weight.device
    counts = torch.zeros(vqgan.config.num_embeddings, device=device)
    psnr: list[torch.Tensor] = []
    for pictures in DataLoader(PictureRows(rows, processor), batch_size=batch_size, collate_fn=torch.stack):
        pictures = pictures.to(device)
        outputs = vqgan(pictures)
        error = (outputs.pixel_values.clamp(-1, 1) - pictures).div(2).pow(2).mean((1, 2, 3))
        psnr.append(-10 * error.clamp_min(1e-10).log10())
        counts += torch.bincount(outputs.image_tokens.flatten(), minlength=len(counts))
    shares = counts / counts.sum()
    return {
        "psnr": torch.cat(psnr).mean().item(),
        "codes_used": (counts > 0).float().mean().item(),
        "perplexity": math.exp(-(shares * shares.clamp_min(1e-12).log()).sum().item()),
    }


def _build_vqgan(model: VQGANModelArguments) -> PaiPainterVQModel:
    with naming_damaged_files(str(model.model_name_or_path or model.config_name)):
        if model.model_name_or_path is None:
            return PaiPainterVQModel(PaiPainterVQConfig.from_pretrained(model.config_name, revision=model.revision))
        name, revision = model.model_name_or_path, model.revision
        return PaiPainterVQModel.from_pretrained(name, dtype=torch.float32, revision=revision)


@torch.no_grad()
def _start_codebook(run: TrainingRun, learner: CodebookLearner, vqgan: PaiPainterVQModel, rows: PictureRows) -> None:
    """k-means over latents of training pictures; all processes take the first one's result."""
    wanted = math.ceil(_LATENTS_PER_ENTRY * vqgan.config.num_embeddings / vqgan.config.num_image_tokens)
    generator = torch.Generator().manual_seed(seed_of(run.training.seed, 5))
    chosen = torch.randperm(len(rows), generator=generator)[:wanted].tolist()
    latents, blank = [], []
    vqgan.eval()
    for pictures in DataLoader(rows, batch_size=32, sampler=chosen, collate_fn=torch.stack):
        pictures = pictures.to(run.accelerator.device)
        with run.accelerator.autocast():
            found = vqgan.encode_latents(pictures).float()
        latents.append(found.permute(0, 2, 3, 1).flatten(0, 2))
        blank.append(blank_patches(pictures, vqgan.config.image_grid).flatten())
    vqgan.train()
    learner.start(torch.cat(latents), torch.cat(blank))
    learner.go_on_from(broadcast(learner.entries.detach().clone()))


@torch.no_grad()
def _draw_samples(
    vqgan: PaiPainterVQModel,
    rows: datasets.Dataset | None,
    processor: PaiPainterImageProcessor,
    training: VQGANTrainingArguments,
    step: int,
) -> None:
    """Originals beside reconstructions as samples/step-N.png."""
    if rows is None:
        return
    shown = PictureRows(rows, processor)
    pictures = torch.stack([shown[row] for row in range(min(training.num_samples, len(rows)))])
    painted = vqgan(pictures.to(vqgan.device)).pixel_values.cpu()
    pairs = torch.stack([pictures, painted], dim=1).flatten(0, 1)  # original, reconstruction, original, …
    folder = Path(training.output_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    images = cast(list[Image.Image], processor.postprocess(pairs, output_type="pil"))
    draw_grid(images, columns=8).save(folder / f"step-{step:06d}.png")


def _save(
    vqgan: PaiPainterVQModel, processor: PaiPainterImageProcessor, folder: Path, gathered: dict[str, Any] | None
) -> None:
    vqgan.save_pretrained(folder, state_dict=gathered)
    processor.save_pretrained(folder)


def main(argv: list[str] | None = None, program: str | None = None) -> None:
    """The command line of `train_vqgan.py`; see [`~command_line.run_from_command_line`]."""
    run_from_command_line((VQGANModelArguments, DataArguments, VQGANTrainingArguments), train_vqgan, argv, program)
