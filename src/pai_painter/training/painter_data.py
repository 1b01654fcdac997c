# SPDX-License-Identifier: Apache-2.0
"""What a painter is trained, validated and sampled on, as the arguments say it: cached, encoded anew, or streamed."""

import hashlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, cast

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ..data.augment import Augmentation
from ..data.image_tokens import ImageTokenCache
from ..data.open_picture import open_picture
from ..data.row_stream import PictureStream
from ..imaging.grids import draw_grid
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from .arguments import DataArguments, PainterTrainingArguments
from .painter_objective import validation_loss
from .painter_rows import CaptionedRows, StreamedPictures
from .rows import REJECTED, encode_together, find_rows, load_run_rows, load_validation_rows
from .training_run import TrainingRun

_SAMPLED_TOGETHER = 8
_COLUMNS = ("原图", "编解码", "生成")  # the original, through the VQGAN, painted


class PainterData:
    """
    The rows of a run; `vqgan` is frozen and on its device. A `ValueError` says what of the data can't be used, or which
    choices don't go together.

    Attributes:
        count: number of training rows, `None` if they are streamed.
        identities: tell other rows from these, if that matters to the run; kept in checkpoints.
        validation_rows: those to validate on, if there are any.
        name: of the source, for messages.
        encoder: the VQGAN if batches hold pixels, else `None`.
    """

    def __init__(
        self,
        run: TrainingRun,
        vqgan: PaiPainterVQModel,
        processor: PaiPainterProcessor,
        data: DataArguments,
        training: PainterTrainingArguments,
    ):
        if training.keeps_best and not data.validates:
            raise ValueError(
                "`early_stopping_patience` and `load_best_model_at_end` need a validation loss: please set "
                "`validation_file`."
            )
        if data.streaming and training.num_crops > 1:
            raise ValueError("A stream keeps no image tokens: please set `num_crops` to 0 with `streaming`.")
        self.run, self.vqgan, self.processor, self.training = run, vqgan, processor, training
        self._cache_dir = data.cache_dir
        source = find_rows(data)
        self.name = source.name
        self.validation_rows = load_validation_rows(data, run.folder, run.accelerator)
        changes = Augmentation(training.random_crop, training.random_flip, training.max_shift)
        draw = (training.seed, training.caption_dropout)
        self.count: int | None = None
        self.encoder: PaiPainterVQModel | None = vqgan
        self._place = torch.zeros(2, dtype=torch.long)  # how far this process has read its share of a stream
        self._dataset: CaptionedRows | StreamedPictures
        if data.streaming:
            share = (run.accelerator.process_index, run.accelerator.num_processes)
            rejects = run.folder / REJECTED
            stream = PictureStream(source, training.seed, data.shuffle_buffer, *share, data.max_bad_rows, rejects)
            # Names, sizes and times of the files: to read what is streamed because it is large takes too long.
            stamp = json.dumps([source.stamp(), source.options, data.shuffle_buffer])
            self.identities = {"data": hashlib.sha256(stamp.encode()).hexdigest()[:24]}
            self._dataset = StreamedPictures(stream, processor, *draw, changes)
        else:
            rows = load_run_rows(source, data, run.folder, run.accelerator)
            self.count, self.identities = len(rows), {"data": rows._fingerprint}
            if training.num_crops:
                self.encoder = None
                rows = self._encoded(rows, training.num_crops, changes if training.augments else None)
            self._dataset = CaptionedRows(rows, processor, *draw, changes)
        self._validation = None
        if self.validation_rows is not None:
            self._validation = CaptionedRows(self._encoded(self.validation_rows), processor)
            if training.keeps_best:
                self.identities["validation_data"] = self.validation_rows._fingerprint

    def batches(self) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(step, batch) from the first step not yet done; a batch has `caption_ids` and `image_tokens` or pixels."""
        if isinstance(self._dataset, StreamedPictures):
            return self.run.count(self._streamed(self._dataset))
        return self.run.batches(self._dataset, len(self._dataset))

    def validate(self) -> dict[str, float]:
        """See [`~painter_objective.validation_loss`]; nothing without rows to validate on."""
        if self._validation is None:
            return {}
        batch_size = self.training.per_device_train_batch_size
        return validation_loss(self.run.objective, self._validation, self.run.accelerator, batch_size)

    @torch.no_grad()
    def sample(self, painter: PaiPainterForImageGeneration, step: int) -> None:
        """
        Draws samples/step-N.png, with a line for each of the first validation rows and for each further caption: the
        original, what the VQGAN keeps of it, and what the painter, in evaluation mode, makes of the (first) caption.
        """
        training, images, device = self.training, self.processor.image_processor, self.vqgan.device
        rows = {} if self.validation_rows is None else self.validation_rows[: training.num_samples]
        captions = [*(each[0] for each in rows.get("captions", [])), *training.validation_prompts]
        if not captions:
            return
        painted: list[Image.Image] = []
        for start in range(0, len(captions), _SAMPLED_TOGETHER):
            batch = self.processor(text=captions[start : start + _SAMPLED_TOGETHER], return_tensors="pt")
            input_ids = batch["input_ids"].to(device)
            painted += self._decoded(
                painter.generate_images(input_ids, seed=training.seed, decode=False)["image_tokens"]
            )
        cells: list[Image.Image] = []
        for picture, image in zip_longest(rows.get("picture", []), painted):
            if picture is None:
                cells += [Image.new("RGB", image.size, "white")] * 2
            else:
                pixels = images(open_picture(picture), generator=0, return_tensors="pt")["pixel_values"]
                cells += cast(list[Image.Image], images.postprocess(pixels))
                cells += self._decoded(self.vqgan.encode(pixels.to(device))["image_tokens"])
            cells.append(image)
        path = self.run.folder / "samples" / f"step-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [caption for caption in captions for _ in _COLUMNS]
        draw_grid(cells, captions=texts, columns=len(_COLUMNS), column_labels=_COLUMNS).save(path)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: where all processes are. They all call it."""
        accelerator = self.run.accelerator
        return {"places": accelerator.gather(self._place[None].to(accelerator.device)).tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves a stream to where the checkpoint was."""
        places = state["places"]
        # Another number of processes, which must have been asked for, begins near there.
        self._place = torch.tensor(places[self.run.accelerator.process_index % len(places)])
        if isinstance(self._dataset, StreamedPictures):
            self._dataset.rows.start_at(*self._place.tolist())

    def _decoded(self, image_tokens: torch.Tensor) -> list[Image.Image]:
        pixel_values = self.vqgan.decode(cast(torch.LongTensor, image_tokens)).cpu()
        return cast(list[Image.Image], self.processor.image_processor.postprocess(pixel_values, output_type="pil"))

    def _encoded(
        self, rows: datasets.Dataset, variants: int = 1, changes: Augmentation | None = None
    ) -> datasets.Dataset:
        images = self.processor.image_processor
        cache = ImageTokenCache(rows, self.vqgan, images, variants, changes, self._cache_dir)
        return encode_together(cache, self.run.accelerator)

    def _streamed(self, dataset: StreamedPictures) -> Iterator[dict[str, torch.Tensor]]:
        """Batches without end; the place behind the last one given is noted."""
        training = self.training
        # More workers than one would each read all of the stream.
        workers = min(training.dataloader_num_workers, 1)
        loader = DataLoader(dataset, training.per_device_train_batch_size, num_workers=workers)
        for batch in loader:
            self._place = batch.pop("place")[-1]
            yield batch
