# SPDX-License-Identifier: Apache-2.0
"""Pictures ⇄ image tokens in a JSON file: `[{"file": "apple.png", "image_tokens": [17, 4, …]}, …]`, in raster order."""

import json
import math
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ..imaging.png_files import file_stem, unique_names
from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.model_files_pai_painter import read_painter_folder
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import load_processor
from ..whole_files import write_whole
from .open_picture import open_picture


class PictureVQGAN:
    """The VQGAN of a painter and its image processor, from files to image tokens and from those to pictures."""

    def __init__(self, vqgan: PaiPainterVQModel, image_processor: PaiPainterImageProcessor):
        self.vqgan, self.image_processor = vqgan, image_processor

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, revision: str = "main") -> "PictureVQGAN":
        """Loads the VQGAN alone from a painter's folder or Hub repository."""
        folder = read_painter_folder(os.fspath(name_or_path), revision=revision)
        processor = load_processor(folder)  # the base's, if it is an adapter's folder
        options = {"config": folder.vq_config, "dtype": torch.float32, **folder.hub_options}
        vqgan = PaiPainterVQModel.from_pretrained(folder.name, **options)
        return cls(vqgan, processor.image_processor)

    @torch.no_grad()
    def encode(self, path: Path) -> tuple[dict[str, Any], float]:
        """
        The image tokens of a picture, and the PSNR in decibels between the square that was encoded and what they decode
        to, both in 8 bits. A `ValueError` says why a file isn't a picture.
        """
        if not path.is_file() and path.exists():
            raise ValueError(f"{path} is not a picture file.")
        try:
            picture = open_picture(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        pixel_values = self.image_processor(picture, return_tensors="pt")["pixel_values"]
        encoded = {"file": path.name, "image_tokens": self.vqgan.encode(pixel_values).image_tokens[0].tolist()}
        (square,) = self.image_processor.postprocess(pixel_values)
        loss = np.mean((np.asarray(square, dtype=float) - np.asarray(self.decode(encoded))) ** 2)
        return encoded, math.inf if loss == 0 else 10 * math.log10(255**2 / loss)

    @torch.no_grad()
    def decode(self, encoded: dict[str, Any]) -> Image.Image:
        """The picture that the image tokens stand for."""
        image_tokens = cast(torch.LongTensor, torch.tensor([encoded["image_tokens"]]))
        (picture,) = self.image_processor.postprocess(self.vqgan.decode(image_tokens))
        return picture


def write_image_tokens(pictures: list[dict[str, Any]], path: Path, force: bool = False) -> None:
    """Writes a file of image tokens, one picture per line; a `FileExistsError` if it is there, unless `force`."""
    rows = ",\n".join(json.dumps(picture, ensure_ascii=False) for picture in pictures)
    write_whole(path, lambda partial: partial.write_bytes(f"[\n{rows}\n]\n".encode()), force)


def read_image_tokens(path: Path, config: PaiPainterVQConfig) -> list[dict[str, Any]]:
    """Reads a file of image tokens; a `ValueError` if it isn't one, or if the tokens don't fit this VQGAN."""
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    count, last = config.num_image_tokens, config.num_embeddings - 1
    form = f'{{"file": …, "image_tokens": […]}} with {count} image tokens from 0 to {last}'
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a list of pictures, each {form}.")
    for number, row in enumerate(rows, 1):
        tokens = row.get("image_tokens") if isinstance(row, dict) and isinstance(row.get("file"), str) else None
        tokens = tokens if isinstance(tokens, list) else []
        if len(tokens) != count or any(type(token) is not int or not 0 <= token <= last for token in tokens):
            raise ValueError(f"{path}, picture {number} must be {form}.")
    return rows


def decoded_names(pictures: list[dict[str, Any]]) -> list[str]:
    """File names for decoded pictures; never that of the picture that was encoded, nor outside a folder."""
    return unique_names([f"{file_stem(Path(picture['file']).stem)}-decoded" for picture in pictures], ".png")
