# SPDX-License-Identifier: Apache-2.0
"""`pipeline(...)` as in EasyNLP's `easynlp.pipelines`: captions in, pictures as base64 out."""

import base64
import difflib
import os
from typing import Any, cast

import torch

from ..batch.pictures import PictureEncoder
from ..imaging.painting import PaintingOptions
from ..model.pipeline_pai_painter import PaiPainterPipeline, PaiPainterPipelineOutput
from .names import PUBLISHED, SIZES, TASK, check_sizes, explaining_missing_models, hub_name, number_of_pictures

__all__ = ["TextImageGenerationPipeline", "pipeline"]

_AT_ONCE = 8  # pictures; EasyNLP paints all captions at once, until memory is full


def pipeline(
    task_or_model: str, model_path: str | os.PathLike | None = None, **options: Any
) -> "TextImageGenerationPipeline":
    """
    Builds what EasyNLP's function of this name builds, on the GPU if there is one.

    Args:
        task_or_model: One of the five published models, such as `"pai-painter-commercial-base-zh"`, from the Hub
            (`alibaba-pai/…`) or its cache; or `"text2image_generation"`.
        model_path: With `"text2image_generation"`: the model's folder, EasyNLP's or native, or its name on the Hub.
        options: `max_generated_num`, the pictures per caption (1 by default); and `text_len`, `img_len`,
            `img_vocab_size` and the like, which must be the model's.

    Raises:
        ValueError: if there is no such task, model or option, or if a size isn't the model's.
        OSError: if the model isn't there.

    Example:

    ```python
    >>> from pai_painter import DEMO_MODEL
    >>> from pai_painter.easynlp import pipeline

    >>> text_to_image_pipeline = pipeline("text2image_generation", DEMO_MODEL)
    >>> results = text_to_image_pipeline(["红苹果"])  # [{"gen_imgbase64": "iVBORw0KGgo…"}]
    ```
    """
    for option in options:
        _check_known(option, ("max_generated_num", *SIZES), "option")
    _check_known(task_or_model, (TASK, *PUBLISHED), "task or model")
    if (task_or_model == TASK) != (model_path is not None):
        raise ValueError(f'Please name one model: pipeline("{TASK}", FOLDER) or pipeline("{PUBLISHED[0]}").')
    name = hub_name(task_or_model if model_path is None else os.fspath(model_path))
    num_images = number_of_pictures(options.pop("max_generated_num", 1))
    with explaining_missing_models(name):
        painter = PaiPainterPipeline.from_pretrained(name)
    check_sizes(name, painter.model.config, options)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return TextImageGenerationPipeline(painter.to("cpu" if accelerator is None else accelerator), num_images)


def _check_known(name: str, known: tuple[str, ...], kind: str) -> None:
    if name not in known:
        similar = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean {similar[0]!r}?" if similar else f"there are {', '.join(known)}."
        raise ValueError(f"There is no {kind} {name!r}; {hint}")


class TextImageGenerationPipeline:
    """Paints captions (`num_images` pictures each), and gives the pictures as base64. Made by [`pipeline`]."""

    def __init__(self, painter: PaiPainterPipeline, num_images: int = 1):
        self.painter, self.num_images = painter, num_images
        painter.set_progress_bar_config(disable=True)
        # Each picture is noted with a seed of its own, which paints it again alone.
        options = PaintingOptions.for_model(painter, best_of=1)
        name = os.path.basename(os.path.normpath(str(painter.config["_name_or_path"])))
        self._encoder = PictureEncoder("png", options, name)

    def __call__(self, inputs: str | list[str]) -> list[dict[str, Any]]:
        """
        Paints one caption or a list of captions.

        Returns:
            `list[dict]`: For each caption, also for a single one, `{"gen_imgbase64": …}` with the PNG as a string in
            base64's standard alphabet, as in EasyNLP; with `max_generated_num` above 1, a list of such strings. No two
            pictures are alike, but `torch.manual_seed` makes them repeatable.

        Raises:
            ValueError: if a caption says nothing to the model.
        """
        captions = self.painter.check_inputs(inputs)
        pictures: list[str] = []
        wanted = [caption for caption in captions for _ in range(self.num_images)]
        for start in range(0, len(wanted), _AT_ONCE):
            pictures += self._paint(wanted[start : start + _AT_ONCE])
        if self.num_images == 1:
            return [{"gen_imgbase64": picture} for picture in pictures]
        starts = range(0, len(pictures), self.num_images)
        return [{"gen_imgbase64": pictures[start : start + self.num_images]} for start in starts]

    def _paint(self, captions: list[str]) -> list[str]:
        """One picture of each caption, in base64."""
        generators = [torch.Generator().manual_seed(int(torch.randint(2**62, ()))) for _ in captions]
        painted = cast(PaiPainterPipelineOutput, self.painter(captions, generator=generators))
        return [
            base64.b64encode(self._encoder.encode(image, caption, seed, seed, score)).decode("ascii")
            for image, caption, seed, score in zip(painted.images, captions, painted.seeds, painted.scores, strict=True)
        ]
