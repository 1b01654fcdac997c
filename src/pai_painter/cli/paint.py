# SPDX-License-Identifier: Apache-2.0
"""The commands that paint and that look at pictures and models."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .common import command, counted, echo, show_table, shown_name

if TYPE_CHECKING:
    from ..model.pipeline_pai_painter import PaiPainterPipeline

Output = Annotated[Path, typer.Option(help="A folder, or a .png file for a single picture.")]


@command(group=options.SAMPLING)
def paint(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPTS...", help="Captions in Chinese.")],
    num_images: Annotated[int, typer.Option(min=1, help="Pictures per caption.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The same seed paints the same picture; random by default.")] = None,
    output: Output = Path("."),
    grid: Annotated[Path | None, typer.Option(help="Also save a grid of all pictures as this .png file.")] = None,
    size: Annotated[int | None, typer.Option(help="Enlarge the pictures to this many pixels.")] = None,
    model: options.Model = options.DEMO,
    revision: options.Revision = "main",
    device: options.Device = None,
    speed: options.Speed = "exact",
    force: options.Force = False,
    **sampling: Any,
) -> None:
    """
    Paint captions and save PNG files, named after the caption and the seed.

    Options that you leave out take the model's recommended values. A file's metadata records how it was painted.

    Example: pai-painter paint 红苹果 一只熊猫 --num-images 4 --seed 0 --output pictures --grid grid.png
    """
    from ..imaging.painting import PaintingOptions, paint_files, random_seed

    start = time.perf_counter()
    pipe = load_pipeline(model, revision, device)
    painting = PaintingOptions.for_model(pipe, size=size, speed=speed, **sampling)
    seed = random_seed() if seed is None else seed
    name = shown_name(model, revision)
    for picture in paint_files(pipe, prompts, num_images, seed, painting, output, grid, name, force):
        score = "" if picture.score is None else f", score {picture.score:.3f}"
        alone = f", best of {painting.best_of} (this candidate alone: --seed {picture.candidate_seed} --best-of 1)"
        echo(f"{picture.path}: seed {picture.seed}{score}{alone if painting.best_of > 1 else ''}")
    if grid is not None:
        echo(f"{grid}: all pictures in a grid")
    if size is not None:
        side = pipe.model.config.vq_config.resolution
        echo(f"The model paints {side}×{side} pixels; they were enlarged to {size}×{size} (Lanczos).")
    pictures, seconds = counted(len(prompts) * num_images, "picture"), time.perf_counter() - start
    echo(f"Painted {pictures} in {seconds:.1f} s, including loading the model.")


@command()
def encode(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURES...", help="Picture files (PNG, JPEG, WebP, …).")],
    output: Annotated[Path, typer.Option(help="The JSON file for the image tokens.")] = Path("image_tokens.json"),
    model: options.Model = options.DEMO,
    revision: options.Revision = "main",
    force: options.Force = False,
) -> None:
    """
    Turn pictures into image tokens, and report the reconstruction quality (PSNR).

    Each picture is first centre-cropped to a square and scaled to the VQGAN's size.

    Example: pai-painter encode apple.png panda.jpg --output image_tokens.json
    """
    from ..data.image_token_files import PictureVQGAN, write_image_tokens
    from ..whole_files import check_new_files

    check_new_files([output], force)
    vqgan = PictureVQGAN.from_pretrained(model, revision)
    encoded = []
    for path in pictures:
        picture, psnr = vqgan.encode(path)
        encoded.append(picture)
        echo(f"{path}: PSNR {psnr:.1f} dB")
    write_image_tokens(encoded, output, force)
    echo(f"{output}: the image tokens of {counted(len(encoded), 'picture')}")


@command()
def decode(
    image_tokens: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON file from `pai-painter encode`.")],
    output: Output = Path("."),
    model: options.Model = options.DEMO,
    revision: options.Revision = "main",
    force: options.Force = False,
) -> None:
    """
    Decode image tokens into pictures: those of apple.png become apple-decoded.png.

    Example: pai-painter decode image_tokens.json --output decoded
    """
    from ..data.image_token_files import PictureVQGAN, decoded_names, read_image_tokens
    from ..imaging.png_files import in_folder_or_file, save_png
    from ..whole_files import check_new_files

    vqgan = PictureVQGAN.from_pretrained(model, revision)
    encoded = read_image_tokens(image_tokens, vqgan.vqgan.config)
    paths = in_folder_or_file(output, decoded_names(encoded))
    check_new_files(paths, force)
    for picture, path in zip(encoded, paths, strict=True):
        save_png(vqgan.decode(picture), path, {"model": shown_name(model, revision)}, force)
        echo(path)


@command()
def info(
    model: options.ModelArgument = options.DEMO,
    revision: options.Revision = "main",
) -> None:
    """
    Show a model's sizes, memory, settings and training, without loading its weights.

    Example: pai-painter info alibaba-pai/pai-painter-base-zh
    """
    from ..model_info import describe_model

    show_table(shown_name(model, revision), describe_model(model, revision).items())


def load_pipeline(model: str, revision: str, device: str | None) -> "PaiPainterPipeline":
    """The painter on a device, by default the fastest available; it shows a bar on a terminal."""
    import torch

    from ..model.pipeline_pai_painter import PaiPainterPipeline

    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch raises either for a missing device
        raise ValueError(f"This machine can't paint on --device {device}: {str(error).splitlines()[0]}") from error
    pipe = PaiPainterPipeline.from_pretrained(model, revision=revision).to(device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), desc="Painting", unit="token", leave=False)
    return pipe
