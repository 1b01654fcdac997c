# SPDX-License-Identifier: Apache-2.0
"""What a painter is trained, validated and sampled on, as the arguments say it: cached, encoded anew, or streamed."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.augment import Augmentation
from ..data.image_tokens import ImageTokenCache
from ..data.row_stream import PictureStream
from ..data.sources import DataSource
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from .arguments import DataArguments, PainterTrainingArguments
from .order import read_batches
from .painter_rows import CaptionedPictures, CaptionedTokens, StreamedPictures, collate_rows
from .rows import encode_together, find_training_source, load_training_rows, load_validation_rows, open_stream
from .samples import draw_samples
from .training_run import TrainingRun
from .validation import validation_loss

__all__ = ["PainterData"]

logger = logging.getLogger(__name__)


class PainterData:
    """
    Args:
        run: has the processes.
        vqgan: frozen, on its device.
        processor: of captions and pictures.
        data, training: the arguments.

    Attributes:
        count: number of training rows, `None` if they are streamed.
        identity: tells other rows from these; kept in checkpoints.
        validation_identity: the same of the rows to validate on, `None` without them.
        name: of the source, for messages.
        encoder: the VQGAN if batches hold pixels, else `None`.
        stateful: what checkpoints hold of the data.

    Raises:
        ValueError: if the data can't be used, or the choices don't go together.
    """

    def __init__(
        self,
        run: TrainingRun,
        vqgan: PaiPainterVQModel,
        processor: PaiPainterProcessor,
        data: DataArguments,
        training: PainterTrainingArguments,
    ):
        _check_choices(data, training)
        self.accelerator, self.vqgan, self.processor, self.training = run.accelerator, vqgan, processor, training
        self._cache_dir = data.cache_dir
        source = find_training_source(data)
        self.name = source.name
        self.validation_rows = load_validation_rows(data, training.output_dir, self.accelerator)
        self.validation_identity = None if self.validation_rows is None else self.validation_rows._fingerprint
        changes = Augmentation(training.random_crop, training.random_flip, training.max_shift)
        draw = (training.seed, training.caption_dropout)
        self.count: int | None = None
        self.encoder: PaiPainterVQModel | None = vqgan
        self.stateful: list[Any] = []
        self._dataset: CaptionedTokens | CaptionedPictures | StreamedPictures
        if data.streaming:
            stream = open_stream(data, source, training.output_dir, self.accelerator, training.seed)
            self.identity = _identity_of_stream(source, data.shuffle_buffer)
            self._place = StreamPlace(stream, self.accelerator)
            self.stateful = [self._place]
            self._dataset = StreamedPictures(stream, processor, changes, *draw)
        else:
            rows = load_training_rows(data, source, training.output_dir, self.accelerator)
            self.count, self.identity = len(rows), rows._fingerprint
            if training.num_crops:
                self.encoder = None
                encoded = self._encoded(rows, training.num_crops, changes if training.augments else None)
                self._dataset = CaptionedTokens(encoded, processor, *draw)
            else:
                self._dataset = CaptionedPictures(rows, processor, changes, *draw)
        if self.encoder is not None:
            logger.info("Every step encodes its pictures: image tokens are not cached.")
        self._validation = None
        if self.validation_rows is not None:
            self._validation = CaptionedTokens(self._encoded(self.validation_rows), processor)

    def batches(self, run: TrainingRun) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(step, batch) from the first step not yet done; a batch has `caption_ids` and `image_tokens` or pixels."""
        if isinstance(self._dataset, StreamedPictures):
            return run.count(self._streamed(self._dataset))
        return run.batches(self._dataset, len(self._dataset), collate_rows)

    def validate(self, run: TrainingRun) -> dict[str, float]:
        """See [`~validation.validation_loss`]; nothing without rows to validate on."""
        if self._validation is None:
            return {}
        batch_size = self.training.per_device_train_batch_size
        return validation_loss(run.objective, self._validation, self.accelerator, batch_size)

    def sample(self, painter: PaiPainterForImageGeneration, step: int) -> None:
        """Draws samples/step-N.png; see [`~samples.draw_samples`]."""
        training, rows = self.training, self.validation_rows
        shown = None if rows is None else rows.select(range(min(training.num_samples, len(rows))))
        path = Path(training.output_dir) / "samples" / f"step-{step:06d}.png"
        draw_samples(painter, self.vqgan, self.processor, shown, training.validation_prompts, training.seed, path)

    def _encoded(
        self, rows: datasets.Dataset, variants: int = 1, changes: Augmentation | None = None
    ) -> datasets.Dataset:
        images = self.processor.image_processor
        cache = ImageTokenCache(rows, self.vqgan, images, variants, changes, self._cache_dir)
        return encode_together(cache, self.accelerator)

    def _streamed(self, dataset: StreamedPictures) -> Iterator[dict[str, torch.Tensor]]:
        """Batches without end; the place behind the last one given is noted."""
        training = self.training
        # More workers than one would each read all of the stream.
        workers = min(training.dataloader_num_workers, 1)
        loader = DataLoader(dataset, training.per_device_train_batch_size, collate_fn=collate_rows, num_workers=workers)
        for batch in read_batches(loader):
            self._place.now = batch.pop("place")[-1]
            yield batch


class StreamPlace:
    """How far each process has read its share of a stream."""

    def __init__(self, stream: PictureStream, accelerator: Accelerator):
        self.stream, self.accelerator = stream, accelerator
        self.now = torch.zeros(2, dtype=torch.long)
        self._places = [self.now.tolist()]
        # All processes meet before the first of them writes: on a full disk, only some of them come as far as here.
        accelerator.register_save_state_pre_hook(self._gather)

    def _gather(self, *_: Any) -> None:
        self._places = self.accelerator.gather(self.now[None].to(self.accelerator.device)).tolist()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints, of which the first process writes it."""
        return {"places": self._places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves the stream to where the checkpoint was."""
        if len(state["places"]) != self.accelerator.num_processes:
            raise ValueError(
                f"A stream read by {len(state['places'])} processes can be resumed by as many only, not by "
                f"{self.accelerator.num_processes}."
            )
        epoch, position = state["places"][self.accelerator.process_index]
        self.now = torch.tensor([epoch, position])
        self.stream.start_at(epoch, position)


def _check_choices(data: DataArguments, training: PainterTrainingArguments) -> None:
    if training.keeps_best and not data.validates:
        raise ValueError(
            "`early_stopping_patience` and `load_best_model_at_end` look at the validation loss: please set "
            "`validation_file`."
        )
    if data.streaming and training.num_crops > 1:
        raise ValueError("A stream keeps no image tokens: please set `num_crops` to 0 with `streaming`.")


def _identity_of_stream(source: DataSource, shuffle_buffer: int) -> str:
    """Names, sizes and times of the files: to read what is streamed because it is large takes too long."""
    text = json.dumps([source.stamp(), source.options, shuffle_buffer])
    return hashlib.sha256(text.encode()).hexdigest()[:24]
