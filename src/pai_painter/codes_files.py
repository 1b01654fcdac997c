# SPDX-License-Identifier: Apache-2.0
"""
Pictures ⇄ codes in files: what the VQGAN alone makes of a picture.

The codes' file is JSON, a list with one object for each picture: `{"file": "apple.png", "image_tokens": [17, 4, …]}`,
the codes in raster order.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from .data.pictures import open_picture
from .imaging.png_files import file_stem, unique_names, write_atomically
from .model.configuration_pai_painter import PaiPainterVQConfig
from .model.folder_pai_painter import load_processor, naming_damaged_weights, read_painter_folder
from .model.image_processing_pai_painter import PaiPainterImageProcessor
from .model.modeling_vqgan import PaiPainterVQModel

__all__ = ["CodedPicture", "PictureVQGAN", "decoded_names", "read_codes", "write_codes"]


@dataclass(frozen=True)
class CodedPicture:
    """
    Args:
        file (`str`): The name of the picture that was encoded.
        image_tokens (`list[int]`): Its codes in raster order.
    """

    file: str
    image_tokens: list[int]


class PictureVQGAN:
    """
    The VQGAN of a painter, from files to codes and from codes to pictures.

    Args:
        vqgan ([`PaiPainterVQModel`]): The VQGAN.
        image_processor ([`PaiPainterImageProcessor`]): The painter's.
    """

    def __init__(self, vqgan: PaiPainterVQModel, image_processor: PaiPainterImageProcessor):
        self.vqgan, self.image_processor = vqgan, image_processor

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, revision: str = "main") -> "PictureVQGAN":
        """
        Loads the VQGAN alone from a painter's folder or Hub repository.

        Raises:
            OSError: if there is no such folder or repository.
            ValueError: if it isn't a painter's, or if the weights don't fit.
        """
        folder = read_painter_folder(os.fspath(name_or_path), revision=revision)
        processor = load_processor(folder)  # the base's, if it is an adapter's folder
        with naming_damaged_weights(folder.name):
            vqgan = PaiPainterVQModel.from_pretrained(
                folder.name, config=folder.vq_config, dtype=torch.float32, **folder.hub_options
            )
        return cls(vqgan, processor.image_processor)

    @torch.no_grad()
    def encode(self, path: Path) -> tuple[CodedPicture, float]:
        """
        The codes of a picture, and what they lose: the PSNR in decibels between the square that was encoded and what
        the codes decode to, both in 8 bits.

        Raises:
            OSError: if the file can't be read.
            ValueError: if it isn't a picture.
        """
        try:
            picture = open_picture(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        pixel_values = self.image_processor(picture, return_tensors="pt")["pixel_values"]
        image_tokens = cast(torch.LongTensor, self.vqgan.encode(pixel_values).image_tokens)
        (square,) = self.image_processor.postprocess(pixel_values)
        (coded,) = self.image_processor.postprocess(self.vqgan.decode(image_tokens))
        return CodedPicture(path.name, image_tokens[0].tolist()), psnr(square, coded)

    @torch.no_grad()
    def decode(self, coded: CodedPicture) -> Image.Image:
        """The picture that the codes stand for."""
        image_tokens = cast(torch.LongTensor, torch.tensor([coded.image_tokens]))
        (picture,) = self.image_processor.postprocess(self.vqgan.decode(image_tokens))
        return picture


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures of one size, in decibels; infinite if they are equal."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    error = float(np.mean(difference**2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def write_codes(pictures: list[CodedPicture], path: Path, force: bool = False) -> None:
    """
    Writes the codes' file, one picture a line.

    Raises:
        FileExistsError: if the file is there, unless `force`.
        OSError: if it can't be written.
    """
    rows = ",\n".join(json.dumps(vars(picture), ensure_ascii=False) for picture in pictures)
    write_atomically(path, lambda file: file.write(f"[\n{rows}\n]\n".encode()), force)


def read_codes(path: Path, config: PaiPainterVQConfig) -> list[CodedPicture]:
    """
    Reads a codes' file, with distrust.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it isn't such a list, if a picture has too few or too many codes for this VQGAN, or if a code
            is out of range.
    """
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{path} must hold a list of pictures, each {{"file": …, "image_tokens": […]}}.')
    return list(_checked_rows(rows, path, config))


def _checked_rows(rows: list, path: Path, config: PaiPainterVQConfig) -> Iterator[CodedPicture]:
    for number, row in enumerate(rows, start=1):
        place = f"{path}, picture {number}"
        fields = isinstance(row, dict) and {"file", "image_tokens"} <= row.keys()
        if not fields or not isinstance(row["file"], str) or not isinstance(row["image_tokens"], list):
            raise ValueError(f'{place} must be an object {{"file": …, "image_tokens": […]}}.')
        codes = row["image_tokens"]
        if len(codes) != config.num_image_tokens:
            raise ValueError(
                f"{place} has {len(codes)} codes, but a picture of this VQGAN has {config.num_image_tokens}."
            )
        for code in codes:
            if type(code) is not int or not 0 <= code < config.num_embeddings:  # a bool is an int, too
                raise ValueError(
                    f"{place} has the code {code!r}, but codes are whole numbers from 0 to {config.num_embeddings - 1}."
                )
        yield CodedPicture(row["file"], codes)


def decoded_names(pictures: list[CodedPicture]) -> list[str]:
    """File names for decoded pictures; never that of the picture that was encoded, nor outside a folder."""
    stems = [f"{file_stem(Path(picture.file).stem)}-decoded" for picture in pictures]
    return unique_names(stems, ".png")
