# SPDX-License-Identifier: Apache-2.0
"""Trains the VQGAN to reconstruct pictures from their image tokens → a folder that `from_pretrained` loads."""

import math
from functools import partial
from pathlib import Path
from typing import cast

import datasets
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from PIL import Image
from torch import nn
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
from .rows import find_rows, load_run_rows, load_validation_rows
from .training_run import TrainingRun, begin_run

_LATENTS_PER_ENTRY = 40  # what k-means starts from; more changes little
_WHITE = 0.995  # of 1.0: an 8-bit picture's next level is 0.992


def train_vqgan(model: VQGANModelArguments, data: DataArguments, training: VQGANTrainingArguments) -> Path:
    """
    Trains a VQGAN and saves it, with its image processor, into `training.output_dir`, which is returned. Raises what
    [`~train_painter.train_painter`] raises.
    """
    if data.streaming:
        raise ValueError("The VQGAN can't be trained on a stream: please leave `streaming` out.")
    with begin_run(training) as run:
        accelerator = run.accelerator
        vqgan = _build_vqgan(model).to(accelerator.device)
        processor = PaiPainterImageProcessor(size=vqgan.config.resolution)
        train_rows = load_run_rows(find_rows(data), data, run.folder, accelerator)
        valid_rows = load_validation_rows(data, run.folder, accelerator)
        pictures = PictureRows(train_rows, processor)
        learner = CodebookLearner(vqgan.quantize, training)
        if model.model_name_or_path is not None:
            learner.go_on_from(learner.entries)
        settings = {"config": architecture_of(vqgan.config), "data": train_rows._fingerprint}
        start, count = training.codebook_start_step, len(pictures)
        run.prepare(VQGANObjective(vqgan, training), list(vqgan.parameters()), count, settings, {"codebook": learner})
        if not learner.started:  # what is wrong is said now rather than hundreds of steps later
            if start >= run.steps:
                raise ValueError(f"`codebook_start_step` ({start}) must be below the {run.steps} steps of the run.")
            if count * vqgan.config.num_image_tokens < (entries := vqgan.config.num_embeddings):
                raise ValueError(f"{count} training pictures have too few patches for {entries} `num_embeddings`.")

        def save(folder: Path, gathered: dict[str, torch.Tensor] | None) -> None:
            vqgan.save_pretrained(folder, state_dict=gathered)
            processor.save_pretrained(folder)

        run.save = save
        if valid_rows is not None:
            shown = PictureRows(valid_rows, processor)
            run.sample = partial(_draw_samples, vqgan, shown, training.num_samples, run.folder)
            if accelerator.is_main_process:
                run.evaluate = partial(validate_vqgan, vqgan, valid_rows, processor)
        with run.signals:
            for step, pixel_values in run.batches(pictures, count):
                # The generator that the run has set for this batch.
                pixel_values = shift_and_flip(pixel_values, training.max_shift, training.flip, torch.default_generator)
                pixel_values = pixel_values.to(accelerator.device)
                if not learner.started and step >= start:
                    _start_codebook(run, learner, vqgan, pictures)
                outputs = run.objective(pixel_values, quantise=learner.started)
                if learner.started:
                    chosen = (outputs["latents"], outputs["image_tokens"], outputs["errors"])
                    latents, image_tokens, errors = accelerator.gather(chosen)
                    learner.update(latents, image_tokens, errors, step)
                run.update(outputs["loss"])  # after the codebook, which the average copies
                run.after_batch(step, outputs["pixels_loss"])
            run.finish()
    return run.folder


class VQGANObjective(nn.Module):
    """
    One training step's forward, as a module so that DDP sees it.

    The loss is L1 + `l2_weight`·L2 + `gradient_weight`·L1 of the differences of neighbouring pixels, plus
    `commitment_weight`·squared distance of the latents to their codebook entries. No gradient reaches the codebook.
    """

    def __init__(self, vqgan: PaiPainterVQModel, arguments: VQGANTrainingArguments):
        super().__init__()
        self.vqgan, self.arguments = vqgan, arguments

    def forward(self, pixel_values: torch.Tensor, quantise: bool) -> dict[str, torch.Tensor]:
        """
        Takes pixels (batch, channels, resolution, resolution) in [-1, 1]; before the codebook has started, latents are
        not quantised. Gives `loss` and `pixels_loss`, scalars, and for the codebook `latents` (n, embed_dim),
        `image_tokens` (n,) and `errors` (n,), where n = batch × image tokens of a picture.
        """
        vqgan = self.vqgan
        latents = vqgan.encode_latents(pixel_values).float()  # (B, D, g, g)
        vectors = latents.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (B*g*g, D)
        if not quantise:
            reconstruction = vqgan.decode_latents(latents).float()
            commitment = latents.new_zeros(())
            image_tokens = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
        else:
            image_tokens = vqgan.quantize.nearest(latents.detach())  # (B, g*g)
            if self.arguments.blank_code:
                blank = blank_patches(pixel_values, vqgan.config.image_grid)
                image_tokens = image_tokens.masked_fill(blank.flatten(1), 0)
            quantized = vqgan.quantize(image_tokens, vqgan.config.image_grid)
            commitment = F.mse_loss(latents, quantized)
            # Straight through: the decoder sees the entries, the encoder gets the decoder's gradient.
            reconstruction = vqgan.decode_latents(latents + (quantized - latents).detach()).float()
        error = reconstruction - pixel_values
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        pixels_loss = error.abs().mean() + self.arguments.l2_weight * error.pow(2).mean()
        pixels_loss = pixels_loss + self.arguments.gradient_weight * edges
        patch_errors = F.adaptive_avg_pool2d(error.abs().detach(), vqgan.config.image_grid)
        return {
            "loss": pixels_loss + self.arguments.commitment_weight * commitment,
            "pixels_loss": pixels_loss.detach(),
            "latents": vectors,
            "image_tokens": image_tokens.flatten(),
            "errors": patch_errors.mean(1).flatten(),
        }


def blank_patches(pixel_values: torch.Tensor, grid: int) -> torch.Tensor:
    """Which of the grid's patches are plain white: (batch, channels, height, width) → bool (batch, grid, grid)."""
    darkest = -F.adaptive_max_pool2d(-pixel_values.amin(1, keepdim=True), grid)
    return darkest.squeeze(1) > _WHITE


@torch.no_grad()
def validate_vqgan(
    vqgan: PaiPainterVQModel, rows: datasets.Dataset, processor: PaiPainterImageProcessor, batch_size: int = 32
) -> dict[str, float]:
    """
    What the VQGAN loses on pictures: `psnr` (dB, mean over pictures of 8-bit range), `codes_used` (share of the
    codebook) and `perplexity` (of the image tokens' distribution).
    """
    vqgan.eval()
    counts = torch.zeros(vqgan.config.num_embeddings, device=vqgan.device)
    psnr: list[torch.Tensor] = []
    for pixel_values in DataLoader(PictureRows(rows, processor), batch_size=batch_size):
        pixel_values = pixel_values.to(vqgan.device)
        outputs = vqgan(pixel_values)
        error = (outputs.pixel_values.clamp(-1, 1) - pixel_values).div(2).pow(2).mean((1, 2, 3))
        psnr.append(-10 * error.clamp_min(1e-10).log10())
        counts += torch.bincount(outputs.image_tokens.flatten(), minlength=len(counts))
    shares = counts / counts.sum()
    return {
        "psnr": torch.cat(psnr).mean().item(),
        "codes_used": (counts > 0).float().mean().item(),
        "perplexity": math.exp(-(shares * shares.clamp_min(1e-12).log()).sum().item()),
    }


def _build_vqgan(model: VQGANModelArguments) -> PaiPainterVQModel:
    name = str(model.model_name_or_path or model.config_name)
    with naming_damaged_files(name):
        if model.model_name_or_path is None:
            return PaiPainterVQModel(PaiPainterVQConfig.from_pretrained(name, revision=model.revision))
        return PaiPainterVQModel.from_pretrained(name, dtype=torch.float32, revision=model.revision)


@torch.no_grad()
def _start_codebook(run: TrainingRun, learner: CodebookLearner, vqgan: PaiPainterVQModel, rows: PictureRows) -> None:
    """k-means over latents of training pictures; all processes take the first one's result."""
    wanted = math.ceil(_LATENTS_PER_ENTRY * vqgan.config.num_embeddings / vqgan.config.num_image_tokens)
    generator = torch.Generator().manual_seed(seed_of(run.training.seed, 5))
    chosen = torch.randperm(len(rows), generator=generator)[:wanted].tolist()
    latents, blank = [], []
    vqgan.eval()
    for pixel_values in DataLoader(rows, batch_size=32, sampler=chosen):
        pixel_values = pixel_values.to(vqgan.device)
        with run.accelerator.autocast():
            found = vqgan.encode_latents(pixel_values).float()
        latents.append(found.permute(0, 2, 3, 1).flatten(0, 2))
        blank.append(blank_patches(pixel_values, vqgan.config.image_grid).flatten())
    vqgan.train()
    learner.start(torch.cat(latents), torch.cat(blank))
    learner.go_on_from(broadcast(learner.entries.detach().clone()))


@torch.no_grad()
def _draw_samples(vqgan: PaiPainterVQModel, rows: PictureRows, count: int, output_dir: Path, step: int) -> None:
    """Originals beside reconstructions as samples/step-N.png."""
    pictures = torch.stack([rows[row] for row in range(min(count, len(rows)))])
    painted = vqgan(pictures.to(vqgan.device)).pixel_values.cpu()
    pairs = torch.stack([pictures, painted], dim=1).flatten(0, 1)  # original, reconstruction, original, …
    path = output_dir / "samples" / f"step-{step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(cast(list[Image.Image], rows.processor.postprocess(pairs)), columns=8).save(path)


def main(argv: list[str] | None = None, program: str | None = None) -> None:
    """The command line of `train_vqgan.py`; see [`~command_line.run_from_command_line`]."""
    run_from_command_line((VQGANModelArguments, DataArguments, VQGANTrainingArguments), train_vqgan, argv, program)
