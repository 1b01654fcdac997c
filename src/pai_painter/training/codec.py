# SPDX-License-Identifier: Apache-2.0
"""Trains the codec: pictures from a TSV → a folder that `PaiPainterVQModel.from_pretrained` loads."""

import math
from pathlib import Path
from typing import cast

import datasets
import torch
from accelerate.utils import broadcast
from PIL import Image
from torch.utils.data import DataLoader

from ..configuration_pai_painter import PaiPainterVQConfig
from ..data.augment import shift_and_flip
from ..data.codes import architecture_of
from ..data.rows import PictureRows
from ..grids import draw_grid
from ..image_processing_pai_painter import PaiPainterImageProcessor
from ..modeling_vqgan import PaiPainterVQModel
from .arguments import CodecModelArguments, CodecTrainingArguments, DataArguments
from .codebook import CodebookLearner
from .codec_objective import CodecObjective, blank_patches
from .command_line import run_from_command_line
from .order import seed_of
from .rows import load_both
from .run import TrainingRun

__all__ = ["main", "train_codec", "validate_codec"]

# What k-means starts from; more changes little.
_LATENTS_PER_CODE = 40


def train_codec(model: CodecModelArguments, data: DataArguments, training: CodecTrainingArguments) -> Path:
    """
    Trains a codec and saves it, with its image processor, into `training.output_dir`.

    Returns:
        the folder.

    Raises:
        ValueError: if arguments, data or a checkpoint don't fit.
    """
    run = TrainingRun(training)
    accelerator = run.accelerator
    codec = _build_codec(model).to(accelerator.device)
    processor = PaiPainterImageProcessor(size=codec.config.resolution)
    train_rows, valid_rows = load_both(data, training.output_dir, accelerator)
    learner = CodebookLearner(
        codec.quantize, training.codebook_decay, training.restart_below, training.blank_code, training.seed
    )
    if model.model_name_or_path is not None:
        learner.go_on_from(learner.entries)
    settings = {"config": architecture_of(codec.config), "data": train_rows._fingerprint}
    run.prepare(CodecObjective(codec, training), codec, list(codec.parameters()), len(train_rows), settings, [learner])
    _check_codebook_start(run, learner, codec, training)

    for step, pictures in run.batches(PictureRows(train_rows, processor), torch.stack):
        generator = torch.Generator().manual_seed(run.seed_at(step))
        pictures = shift_and_flip(pictures, training.max_shift, training.flip, generator).to(accelerator.device)
        if not learner.started and step >= training.codebook_start_step:
            _start_codebook(run, learner, codec, train_rows, processor)
        outputs = run.objective(pictures, quantise=learner.started)
        run.update(outputs["loss"])
        if learner.started:
            latents, codes, errors = accelerator.gather((outputs["latents"], outputs["codes"], outputs["errors"]))
            learner.update(latents, codes, errors, step)
        run.finish_step(
            step, outputs["pixels_loss"], lambda codec, done: _report(codec, valid_rows, processor, training, done)
        )
    return run.save_model(processor)


@torch.no_grad()
def validate_codec(
    codec: PaiPainterVQModel, rows: datasets.Dataset, processor: PaiPainterImageProcessor, batch_size: int = 32
) -> dict[str, float]:
    """
    What the codec loses on pictures: `psnr` (dB, mean over pictures of 8-bit range), `codes_used` (share of the
    codebook) and `perplexity` (of the codes' distribution).
    """
    codec.eval()
    device = codec.quantize.embedding.weight.device
    counts = torch.zeros(codec.config.num_embeddings, device=device)
    psnr: list[torch.Tensor] = []
    for pictures in DataLoader(PictureRows(rows, processor), batch_size=batch_size, collate_fn=torch.stack):
        pictures = pictures.to(device)
        outputs = codec(pictures)
        error = (outputs.pixel_values.clamp(-1, 1) - pictures).div(2).pow(2).mean((1, 2, 3))
        psnr.append(-10 * error.clamp_min(1e-10).log10())
        counts += torch.bincount(outputs.image_codes.flatten(), minlength=len(counts))
    shares = counts / counts.sum()
    return {
        "psnr": torch.cat(psnr).mean().item(),
        "codes_used": (counts > 0).float().mean().item(),
        "perplexity": math.exp(-(shares * shares.clamp_min(1e-12).log()).sum().item()),
    }


def _build_codec(model: CodecModelArguments) -> PaiPainterVQModel:
    if model.model_name_or_path is not None:
        return PaiPainterVQModel.from_pretrained(model.model_name_or_path, dtype=torch.float32)
    return PaiPainterVQModel(PaiPainterVQConfig.from_pretrained(model.config_name))


def _check_codebook_start(
    run: TrainingRun, learner: CodebookLearner, codec: PaiPainterVQModel, training: CodecTrainingArguments
) -> None:
    """Says at once what would otherwise come out hundreds of steps later."""
    if learner.started:
        return
    if training.codebook_start_step >= run.steps:
        raise ValueError(
            f"`codebook_start_step` ({training.codebook_start_step}) must be below the {run.steps} steps of the run, "
            f"or the codec never learns its codes."
        )
    patches = run.rows * codec.config.num_image_codes
    if patches < codec.config.num_embeddings:
        raise ValueError(
            f"{run.rows} training pictures have {patches} patches, too few for {codec.config.num_embeddings} codes "
            f"(`num_embeddings`)."
        )


@torch.no_grad()
def _start_codebook(
    run: TrainingRun,
    learner: CodebookLearner,
    codec: PaiPainterVQModel,
    rows: datasets.Dataset,
    processor: PaiPainterImageProcessor,
) -> None:
    """k-means over the latents of some hundred training pictures; all processes take the first one's result."""
    wanted = math.ceil(_LATENTS_PER_CODE * codec.config.num_embeddings / codec.config.num_image_codes)
    generator = torch.Generator().manual_seed(seed_of(run.training.seed, 5))
    chosen = torch.randperm(len(rows), generator=generator)[:wanted].tolist()
    latents, blank = [], []
    codec.eval()
    for pictures in DataLoader(PictureRows(rows.select(chosen), processor), batch_size=32, collate_fn=torch.stack):
        pictures = pictures.to(run.accelerator.device)
        with run.accelerator.autocast():
            found = codec.encode_latents(pictures).float()
        latents.append(found.permute(0, 2, 3, 1).flatten(0, 2))
        blank.append(blank_patches(pictures, codec.config.image_grid).flatten())
    codec.train()
    learner.start(torch.cat(latents), torch.cat(blank))
    learner.go_on_from(broadcast(learner.entries.detach().clone()))


@torch.no_grad()
def _report(
    codec: PaiPainterVQModel,
    rows: datasets.Dataset | None,
    processor: PaiPainterImageProcessor,
    training: CodecTrainingArguments,
    step: int,
) -> dict[str, float]:
    """Validation figures, and originals beside reconstructions as samples/step-N.png."""
    if rows is None:
        return {}
    shown = PictureRows(rows.select(range(min(training.num_samples, len(rows)))), processor)
    pictures = torch.stack([shown[row] for row in range(len(shown))])
    painted = codec(pictures.to(codec.device)).pixel_values.cpu()
    pairs = torch.stack([pictures, painted], dim=1).flatten(0, 1)  # original, reconstruction, original, …
    folder = Path(training.output_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    images = cast(list[Image.Image], processor.postprocess(pairs, output_type="pil"))
    draw_grid(images, columns=8).save(folder / f"step-{step:06d}.png")
    return validate_codec(codec, rows, processor)


def main(argv: list[str] | None = None) -> None:
    """The command line of `train_codec.py`; errors are one sentence on stderr and status 2."""
    run_from_command_line((CodecModelArguments, DataArguments, CodecTrainingArguments), train_codec, argv)
