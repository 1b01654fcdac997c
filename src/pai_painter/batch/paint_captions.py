# SPDX-License-Identifier: Apache-2.0
"""Captions to PNG files in memory, in batches of one shape."""

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..cpu.speed import SpeedName
from ..imaging.painting import PaintingOptions, picture_text
from ..imaging.png_files import png_bytes
from ..model.pipeline_pai_painter import PaiPainterPipeline

_COLUMNS = ("idx", "text", "image", "seed", "score", "error")


def row_seed(seed: int, idx: str) -> int:
    """The seed of a row's first picture: 63 bits of SHA-256 of the run's seed, a zero byte and the id."""
    digest = hashlib.sha256(f"{seed}\x00{idx}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)


@dataclass(frozen=True)
class PredictOptions:
    """
    What decides about the pictures besides model and captions; a `ValueError` if an option is out of range.

    Args:
        num_images_per_prompt (`int`): Pictures of each caption.
        seed (`int`): Of the run; a row's pictures start from [`row_seed`] of it and the row's id.
        temperature, top_k, top_p, best_of (*optional*): See [`PaiPainterPipeline`]; by default what the model
            recommends.
        speed (`str`): See [`~cpu.speed.find_speed`].
        batch_size (`int`): Pictures painted at once.
    """

    num_images_per_prompt: int = 1
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    best_of: int | None = None
    speed: SpeedName = "exact"
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, least in (("num_images_per_prompt", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")


class Picture(NamedTuple):
    """A PNG whose metadata says how it was made, its seed, and its mean log-likelihood per token in nats."""

    png: bytes
    seed: int
    score: float


class PaintCaptions:
    """
    Paints batches of rows: for `datasets.map(batched=True)`, Ray Data's `map_batches` and the like, and for
    [`~batch.prediction.predict_file`]. It can be pickled; a model given by name is loaded where it first paints.

    A row's pictures depend on its caption, its id and the options, not on the rows beside it: every batch has the same
    shape, and rounding is all that its place in one may change.

    Args:
        model (`str`, `Path` or [`PaiPainterPipeline`]): A folder, a name on the Hub, or a pipeline.
        options ([`PredictOptions`], *optional*): How it paints.
        id_column, caption_column (`str`): The columns of a batch that count.
        revision (`str`): Branch, tag or commit of a model on the Hub.
        device (`str`, *optional*): By default an accelerator, if there is one.
        model_name (`str`, *optional*): What the pictures' metadata calls the model.
    """

    def __init__(
        self,
        model: str | os.PathLike | PaiPainterPipeline,
        options: PredictOptions | None = None,
        *,
        id_column: str = "idx",
        caption_column: str = "text",
        revision: str = "main",
        device: str | None = None,
        model_name: str | None = None,
    ) -> None:
        self.model, self.revision, self.device = model, revision, device
        self.options = PredictOptions() if options is None else options
        self.id_column, self.caption_column = id_column, caption_column
        name = model.model.name_or_path if isinstance(model, PaiPainterPipeline) else os.fspath(model)
        self.model_name = Path(name).name if model_name is None else model_name

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("pipe", "painting")}

    @cached_property
    def pipe(self) -> PaiPainterPipeline:
        """The painter, loaded when it is first asked for."""
        if isinstance(self.model, PaiPainterPipeline):
            return self.model
        device = self.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
        return PaiPainterPipeline.from_pretrained(self.model, revision=self.revision).to(device)

    @cached_property
    def painting(self) -> PaintingOptions:
        """The options, with what the model recommends in place of what isn't given."""
        given = {name: getattr(self.options, name) for name in ("best_of", "temperature", "top_k", "top_p", "speed")}
        return PaintingOptions.for_model(self.pipe, **given)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """
        A row for each picture of a batch: `idx`, `text`, `image` (a PNG's bytes), `seed`, `score`, and `error`, which
        says why a row can't be painted and is `None` otherwise.
        """
        ids, texts = map(str, batch[self.id_column]), batch[self.caption_column]
        rows = [(idx, text, self.reason_against(text)) for idx, text in zip(ids, texts, strict=True)]
        painted = self.paint([None if reason else (idx, text.strip()) for idx, text, reason in rows])
        nothing: list[Any] = [(None, None, None)]
        out = [
            (idx, text, *picture, reason)
            for (idx, text, reason), pictures in zip(rows, painted, strict=True)
            for picture in (pictures or nothing)
        ]
        return {column: [row[i] for row in out] for i, column in enumerate(_COLUMNS)}

    def reason_against(self, caption: Any) -> str | None:
        """Why a caption can't be painted, `None` if it can."""
        if not isinstance(caption, str):
            return f"The caption is no text, but {type(caption).__name__}."
        try:
            self.pipe.check_inputs(caption.strip())
        except ValueError as error:
            return str(error)
        return None

    def paint(self, rows: Sequence[tuple[str, str] | None]) -> Iterator[list[Picture]]:
        """
        The pictures of rows (id and caption), row by row; an `OSError` if memory is full. `None` gives no picture, but
        keeps its places in the batches, so that no other row's place depends on it.
        """
        num_images, best_of = self.options.num_images_per_prompt, self.painting.best_of
        places: list[tuple[str, int] | None] = []
        for row in rows:
            if row is None:
                places += [None] * num_images
            else:
                seed = row_seed(self.options.seed, row[0])
                places += [(row[1], seed + k * best_of) for k in range(num_images)]
        pictures = self._paint_places(places)
        for _ in rows:
            yield [picture for picture in islice(pictures, num_images) if picture is not None]

    def _paint_places(self, places: list[tuple[str, int] | None]) -> Iterator[Picture | None]:
        """The picture of each caption and seed."""
        batch_size = min(self.options.batch_size, max(len(places), 1))
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            wanted = {i: place for i, place in enumerate(batch) if place is not None}
            try:
                painted = self._paint_batch(wanted, batch_size) if wanted else {}
            except RuntimeError as error:  # on the CPU, PyTorch has no exception of its own
                if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                    raise
                reason = f"Memory is full with {batch_size} pictures at once: please set a smaller batch size."
                raise OSError(errno.ENOMEM, reason) from error
            yield from map(painted.get, range(len(batch)))

    def _paint_batch(self, places: dict[int, tuple[str, int]], batch_size: int) -> dict[int, Picture]:
        model, processor, options = self.pipe.model, self.pipe.processor, self.painting
        captions = [caption for caption, _ in places.values()]
        # The processor would warn of each caption that is too long; `predict` counts them.
        ids = processor.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        input_ids = ids[:1].repeat(batch_size, 1)  # (B, text_length); a free place changes nothing in the others
        input_ids[list(places)] = ids
        seeds = [places[i][1] if i in places else 0 for i in range(batch_size)]
        painted = model.generate_images(input_ids.to(model.device), seed=seeds, **options.for_generation)
        images, scores = processor.image_processor.postprocess(painted.pixel_values, "pil"), painted.scores.tolist()
        pictures = {}
        for i, (caption, seed) in places.items():
            text = picture_text(caption, seed, painted.seeds[i], scores[i], self.model_name, options)
            pictures[i] = Picture(png_bytes(images[i], text), seed, scores[i])
        return pictures
