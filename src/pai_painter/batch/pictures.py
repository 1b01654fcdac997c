# SPDX-License-Identifier: Apache-2.0
"""Painted pictures and their files' bytes, which say how they were made."""

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ..imaging.painting import PaintingOptions, picture_text
from ..imaging.png_files import write_png

__all__ = ["PaintedRow", "Picture", "PictureEncoder"]

_WEBP_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Picture:
    """
    Args:
        data (`bytes`): The picture's file.
        seed (`int`): Paints it again, with the same options.
        score (`float`): Mean log-likelihood of a code, in nats.
    """

    data: bytes
    seed: int
    score: float


@dataclass(frozen=True, slots=True)
class PaintedRow:
    """
    Args:
        number (`int`): The row's place among all rows, good and bad, from 0.
        idx (`str`): Its id.
        text (`str`): Its caption as it was written.
        pictures (`list[Picture]`): What was painted.
    """

    number: int
    idx: str
    text: str
    pictures: list[Picture]


class PictureEncoder:
    """
    Pillow pictures to files. Nothing in these depends on the time or the machine.

    Args:
        kind (`str`): `"png"`, with the same metadata as `paint` gives, or `"webp"`, which has none.
        options ([`PaintingOptions`]): What the pictures are made with.
        model_name (`str`): What the metadata calls the model.
    """

    def __init__(self, kind: Literal["png", "webp"], options: PaintingOptions, model_name: str) -> None:
        self.kind, self.options, self.model_name = kind, options, model_name

    def encode(self, image: Image.Image, caption: str, seed: int, candidate_seed: int, score: float | None) -> bytes:
        """
        Args:
            image (`PIL.Image.Image`): The picture.
            caption (`str`): What was painted.
            seed, candidate_seed, score: See [`~painting.PaintedPicture`].
        """
        file = io.BytesIO()
        if self.kind == "webp":
            image.save(file, "WEBP", quality=_WEBP_QUALITY)
            return file.getvalue()
        text = picture_text(caption, seed, candidate_seed, score, self.model_name, self.options)
        write_png(image, file, text)
        return file.getvalue()
