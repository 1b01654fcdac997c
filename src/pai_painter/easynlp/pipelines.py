# SPDX-License-Identifier: Apache-2.0
"""`pipeline(...)` as in EasyNLP's `easynlp.pipelines`: captions in, pictures as base64 out."""

import base64
import os
from typing import Any, cast

import torch

from ..imaging.painting import PaintingOptions, picture_text
from ..imaging.png_files import png_bytes
from ..model.pipeline_pai_painter import PaiPainterPipeline, PaiPainterPipelineOutput
from .names import PUBLISHED, SIZES, TASK, checked_model, nearest, number_of_pictures

_AT_ONCE = 8  # pictures; EasyNLP paints all captions at once, until memory is full


def pipeline(
    task_or_model: str, model_path: str | os.PathLike | None = None, **options: Any
) -> "TextImageGenerationPipeline":
    """
    Builds what EasyNLP's function of this name builds, on the GPU if there is one.

    Args:
        task_or_model: A published model such as `"pai-painter-commercial-base-zh"`, from the Hub or its cache; or
            `"text2image_generation"` with a model's folder or name on the Hub as `model_path`.
        options: `max_generated_num` (1), the pictures per caption; `text_len` and other sizes must be the model's.
    """
    known = ("max_generated_num", *SIZES)
    for option in options:
        if option not in known:
            raise ValueError(f"The pipeline has no option `{option}`; {nearest(option, known)}")
    if task_or_model not in (TASK, *PUBLISHED):
        raise ValueError(f"There is no task or model {task_or_model!r}; {nearest(task_or_model, (TASK, *PUBLISHED))}")
    if (task_or_model == TASK) != (model_path is not None):
        raise ValueError(f'Please name one model: pipeline("{TASK}", FOLDER) or pipeline("{PUBLISHED[0]}").')
    num_images = number_of_pictures(options.pop("max_generated_num", 1))
    name = checked_model(task_or_model if model_path is None else os.fspath(model_path), options)
    painter = PaiPainterPipeline.from_pretrained(name)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return TextImageGenerationPipeline(painter.to("cpu" if accelerator is None else accelerator), num_images)


class TextImageGenerationPipeline:
    """Paints captions (`num_images` pictures each), and gives the pictures as base64. Made by [`pipeline`]."""

    def __init__(self, painter: PaiPainterPipeline, num_images: int = 1):
        self.painter, self.num_images = painter, num_images
        painter.set_progress_bar_config(disable=True)
        # Each picture is noted with a seed of its own, which paints it again alone.
        self._options = PaintingOptions.for_model(painter, best_of=1)
        self._model_name = os.path.basename(os.path.normpath(str(painter.config["_name_or_path"])))

    def __call__(self, inputs: str | list[str]) -> list[dict[str, Any]]:
        """
        Paints one caption or a list of captions.

        Returns `{"gen_imgbase64": …}` for each caption, with the PNG in base64's standard alphabet, as in EasyNLP; with
        `max_generated_num` above 1, a list of such strings. `torch.manual_seed` makes pictures repeatable.
        """
        wanted = [caption for caption in self.painter.check_inputs(inputs) for _ in range(self.num_images)]
        pictures: list[str] = []
        for start in range(0, len(wanted), _AT_ONCE):
            pictures += self._paint(wanted[start : start + _AT_ONCE])
        groups = [pictures[start : start + self.num_images] for start in range(0, len(pictures), self.num_images)]
        return [{"gen_imgbase64": group if self.num_images > 1 else group[0]} for group in groups]

    def _paint(self, captions: list[str]) -> list[str]:
        """One picture of each caption, in base64."""
        generators = [torch.Generator().manual_seed(int(torch.randint(2**62, ()))) for _ in captions]
        painted = cast(PaiPainterPipelineOutput, self.painter(captions, generator=generators))
        pictures = []
        for image, caption, seed, score in zip(painted.images, captions, painted.seeds, painted.scores, strict=True):
            text = picture_text(caption, seed, seed, score, self._model_name, self._options)
            pictures.append(base64.b64encode(png_bytes(image, text)).decode("ascii"))
        return pictures
