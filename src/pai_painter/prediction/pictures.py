# SPDX-License-Identifier: Apache-2.0
"""Painted pictures and their files' bytes, which say how they were made."""

import io
import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from PIL import Image, PngImagePlugin

from ..painting import PaintingOptions

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

    def encode(self, image: Image.Image, caption: str, seed: int, candidate_seed: int, score: float) -> bytes:
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
        metadata = PngImagePlugin.PngInfo()
        for keyword, text in {
            "caption": caption,
            "seed": str(seed),
            "candidate_seed": str(candidate_seed),
            "score": f"{score:.4f}",
            "model": self.model_name,
            "options": json.dumps(vars(self.options)),
            "Software": f"pai-painter {version('pai-painter')}",
        }.items():
            metadata.add_itxt(keyword, text)
        image.save(file, "PNG", pnginfo=metadata)
        return file.getvalue()
