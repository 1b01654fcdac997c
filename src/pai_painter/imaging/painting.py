# SPDX-License-Identifier: Apache-2.0
"""Captions → PNG files that say how they were made: what `pai-painter paint` does."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image

from ..cpu.backend import can_decode
from ..cpu.speed import SpeedName
from ..model.pipeline_pai_painter import PaiPainterPipeline, PaiPainterPipelineOutput
from ..model.sampling_pai_painter import check_sampling_options, picture_seeds
from ..whole_files import check_new_files
from .grids import draw_grid
from .png_files import enlarge, file_stem, in_folder_or_file, save_png, unique_names


@dataclass(frozen=True)
class PaintingOptions:
    """
    What makes a picture besides model, caption and seed.

    Args:
        best_of (`int`): Candidates for each picture, of which the most likely is kept.
        temperature, top_k, top_p: See [`~sampling_pai_painter.truncate_logits`].
        size (`int`, *optional*): Side of the file's picture, if it is enlarged.
        speed (`str`): See [`~speed.find_speed`].
    """

    best_of: int
    temperature: float
    top_k: int | None
    top_p: float | None
    size: int | None = None
    speed: SpeedName = "exact"

    @classmethod
    def for_model(
        cls, pipe: PaiPainterPipeline, *, size: int | None = None, speed: SpeedName = "exact", **given: Any
    ) -> "PaintingOptions":
        """
        The options that are given and not `None` and, for the others, what the model recommends. A `ValueError` if one
        of them is out of range.
        """
        names = ("best_of", "temperature", "top_k", "top_p")
        options = {name: getattr(pipe.model.generation_config, name) for name in names}
        options |= {name: value for name, value in given.items() if value is not None}
        check_sampling_options(**options)
        can_decode(pipe.model, speed)
        if size is not None:
            side = pipe.model.config.vq_config.resolution
            enlarge(Image.new("1", (side, side)), size)  # refuses a wrong size before the work
        return cls(**options, size=size, speed=speed)

    @property
    def for_generation(self) -> dict[str, Any]:
        """The options as the pipeline and `generate_images` take them."""
        return {name: value for name, value in vars(self).items() if name != "size"}


class PaintedPicture(NamedTuple):
    """A picture in a file; `seed` paints it again with the same options, `candidate_seed` with `best_of=1`."""

    path: Path
    caption: str
    seed: int
    candidate_seed: int
    score: float | None  # mean log-likelihood per token, in nats; none of an interrupted picture
    image: Image.Image  # as it is in the file


def paint_files(
    pipe: PaiPainterPipeline,
    captions: list[str],
    num_images: int,
    seed: int,
    options: PaintingOptions,
    output: Path,
    grid: Path | None,
    model_name: str,
    force: bool,
) -> Iterator[PaintedPicture]:
    """
    Checks right away everything that can be checked before the work, then gives the pictures one after another, each
    when its file is there, and at last saves the grid.

    Each caption is painted for itself, so that its pictures don't depend on the others, not even by rounding.

    Args:
        pipe ([`PaiPainterPipeline`]): The painter.
        captions (`list[str]`): What to paint.
        num_images (`int`): Pictures of each caption.
        seed (`int`): Picture k, counted over all captions, starts from `seed + k * best_of`.
        options ([`PaintingOptions`]): From [`PaintingOptions.for_model`].
        output (`Path`): A folder, or a .png file for a single picture.
        grid (`Path`, *optional*): A .png file for all pictures side by side.
        model_name (`str`): What the metadata calls the model.
        force (`bool`): Overwrite files.

    Raises:
        ValueError: if a caption or number is wrong, or the names don't fit the pictures.
        OSError: if a file exists already or can't be written.
    """
    pipe.check_inputs(captions)
    if num_images < 1:
        raise ValueError(f"The number of pictures must be at least 1, got {num_images}.")
    picture_seeds(len(captions), num_images, options.best_of, seed)  # refuses a wrong seed
    named = [caption for caption in captions for _ in range(num_images)]
    seeds = [seed + k * options.best_of for k in range(len(named))]
    stems = [f"{file_stem(caption)}-{start}" for caption, start in zip(named, seeds, strict=True)]
    paths = in_folder_or_file(output, unique_names(stems, ".png"))
    if grid is not None and grid.suffix.lower() != ".png":
        raise ValueError(f"The grid is saved as PNG: please let {grid} end in .png.")
    files = paths if grid is None else [*paths, grid]
    if len({path.absolute() for path in files}) < len(files):
        raise ValueError(f"{grid} can't be both the grid and a picture: please give it another name.")
    check_new_files(files, force)

    def paint() -> Iterator[PaintedPicture]:
        pictures: list[PaintedPicture] = []
        for first in range(0, len(named), num_images):
            painted = pipe(named[first], num_images, seed=seeds[first], **options.for_generation)
            output = cast(PaiPainterPipelineOutput, painted)
            for k, image in enumerate(output.images, first):
                if options.size is not None:
                    image = enlarge(image, options.size)
                facts = named[k], seeds[k], output.seeds[k - first], output.scores[k - first]
                save_png(image, paths[k], picture_text(*facts, model_name, options), force)
                pictures.append(PaintedPicture(paths[k], *facts, image))
                yield pictures[-1]
        if grid is not None:
            page = draw_grid([picture.image for picture in pictures], [picture.caption for picture in pictures])
            save_png(page, grid, {"Software": _software()}, force)

    return paint()


def picture_text(
    caption: str, seed: int, candidate_seed: int, score: float | None, model_name: str, options: PaintingOptions
) -> dict[str, str]:
    """What a PNG's metadata says of how the picture was made; nothing in it depends on the time or the machine."""
    return {
        "caption": caption,
        "seed": str(seed),
        "candidate_seed": str(candidate_seed),
        **({} if score is None else {"score": f"{score:.4f}"}),
        "model": model_name,
        "options": json.dumps(vars(options)),
        "Software": _software(),
    }


def random_seed() -> int:
    """A seed of 32 bits: short enough to be read aloud and typed again."""
    return secrets.randbelow(2**32)


def _software() -> str:
    return f"pai-painter {version('pai-painter')}"
