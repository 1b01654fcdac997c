# SPDX-License-Identifier: Apache-2.0
"""Captions → PNG files that say how they were made: what `pai-painter paint` does."""

import io
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ..cpu.backend import can_decode
from ..cpu.speed import SpeedName
from ..model.pipeline_pai_painter import PaiPainterPipeline, PaiPainterPipelineOutput
from ..model.sampling_pai_painter import check_sampling_options, picture_seeds
from .grids import draw_grid
from .png_files import check_new_files, enlarge, file_stem, in_folder_or_file, save_png, unique_names, write_png

__all__ = ["PaintedPicture", "Painting", "PaintingOptions", "painted_png", "picture_text", "random_seed"]


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
        The options that are given and not `None` and, for the others, what the model recommends.

        Raises:
            ValueError: if one of them is out of range.
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


@dataclass(frozen=True)
class PaintedPicture:
    """
    Args:
        path (`Path`): The file.
        caption (`str`): What was painted.
        seed (`int`): With the same options, `seed` paints the same picture again.
        candidate_seed (`int`): With `best_of=1` this one does; another one only if there were several candidates.
        score (`float`, *optional*): Mean log-likelihood per token, in nats; none of an interrupted picture.
        image (`PIL.Image.Image`): As it stands in the file.
    """

    path: Path
    caption: str
    seed: int
    candidate_seed: int
    score: float | None
    image: Image.Image


class Painting:
    """
    Paints captions into files. Making it checks everything that can be checked before the work.

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

    def __init__(
        self,
        pipe: PaiPainterPipeline,
        captions: list[str],
        num_images: int,
        seed: int,
        options: PaintingOptions,
        output: Path,
        grid: Path | None,
        model_name: str,
        force: bool,
    ):
        self.pipe, self.captions, self.num_images, self.options = pipe, pipe.check_inputs(captions), num_images, options
        self.grid, self.model_name, self.force = grid, model_name, force
        if num_images < 1:
            raise ValueError(f"The number of pictures must be at least 1, got {num_images}.")
        picture_seeds(len(captions), num_images, options.best_of, seed)  # refuses a wrong seed
        self.seeds = [seed + index * options.best_of for index in range(len(captions) * num_images)]
        named = [caption for caption in captions for _ in range(num_images)]
        stems = [f"{file_stem(caption)}-{seed}" for caption, seed in zip(named, self.seeds, strict=True)]
        self.paths = in_folder_or_file(output, unique_names(stems, ".png"))
        if grid is not None and grid.suffix.lower() != ".png":
            raise ValueError(f"The grid is saved as PNG: please let {grid} end in .png.")
        files = self.paths if grid is None else [*self.paths, grid]
        if len({path.absolute() for path in files}) < len(files):
            raise ValueError(f"{grid} can't be both the grid and a picture: please give it another name.")
        check_new_files(files, force)

    def paint(self) -> Iterator[PaintedPicture]:
        """
        The pictures one after another, each when its file is there, and at last the grid.

        Raises:
            OSError: if a file can't be written.
        """
        painted: list[PaintedPicture] = []
        for row, caption in enumerate(self.captions):
            options = self.options
            output = cast(
                PaiPainterPipelineOutput,
                self.pipe(
                    caption,
                    self.num_images,
                    top_k=options.top_k,
                    top_p=options.top_p,
                    temperature=options.temperature,
                    best_of=options.best_of,
                    speed=options.speed,
                    seed=self.seeds[row * self.num_images],
                ),
            )
            those = slice(row * self.num_images, (row + 1) * self.num_images)
            for place in zip(
                self.paths[those], self.seeds[those], output.seeds, output.scores, output.images, strict=True
            ):
                painted.append(self._save(caption, *place))
                yield painted[-1]
        if self.grid is not None:
            page = draw_grid([picture.image for picture in painted], [picture.caption for picture in painted])
            save_png(page, self.grid, {"Software": _software()}, self.force)

    def _save(
        self, caption: str, path: Path, seed: int, candidate_seed: int, score: float | None, image: Image.Image
    ) -> PaintedPicture:
        if self.options.size is not None:
            image = enlarge(image, self.options.size)
        text = picture_text(caption, seed, candidate_seed, score, self.model_name, self.options)
        save_png(image, path, text, self.force)
        return PaintedPicture(path, caption, seed, candidate_seed, score, image)


def picture_text(
    caption: str, seed: int, candidate_seed: int, score: float | None, model_name: str, options: PaintingOptions
) -> dict[str, str]:
    """
    What stands in a PNG's metadata: how the picture was made.

    Args:
        caption, seed, candidate_seed, score: See [`PaintedPicture`].
        model_name (`str`): What the metadata calls the model.
        options ([`PaintingOptions`]): What it was made with.
    """
    return {
        "caption": caption,
        "seed": str(seed),
        "candidate_seed": str(candidate_seed),
        **({} if score is None else {"score": f"{score:.4f}"}),
        "model": model_name,
        "options": json.dumps(vars(options)),
        "Software": _software(),
    }


def painted_png(
    image: Image.Image,
    caption: str,
    seed: int,
    candidate_seed: int,
    score: float | None,
    model_name: str,
    options: PaintingOptions,
) -> bytes:
    """A PNG with the metadata of [`picture_text`]; nothing in it depends on the time or the machine."""
    file = io.BytesIO()
    write_png(image, file, picture_text(caption, seed, candidate_seed, score, model_name, options))
    return file.getvalue()


def random_seed() -> int:
    """A seed of 32 bits: short enough to be read aloud and typed again."""
    return secrets.randbelow(2**32)


def _software() -> str:
    return f"pai-painter {version('pai-painter')}"
