# SPDX-License-Identifier: Apache-2.0
"""`pipeline(...)` as in EasyNLP's `easynlp.pipelines`: captions in, pictures as base64 out."""

import base64
import difflib
import os
from typing import Any, cast

import torch

from ..imaging.painting import PaintingOptions, painted_png
from ..model.pipeline_pai_painter import PaiPainterPipeline, PaiPainterPipelineOutput
from .names import PUBLISHED, TASK, explaining_missing_models, hub_name
from .sizes import SIZES, check_sizes, count_of_pictures

__all__ = ["TextImageGenerationPipeline", "pipeline"]

_AT_ONCE = 8  # pictures; EasyNLP paints all captions at once, until memory is full
_OPTIONS = ("max_generated_num", *SIZES)


def pipeline(
    task_or_model: str, model_path: str | os.PathLike | None = None, **options: Any
) -> "TextImageGenerationPipeline":
    """
    Builds what EasyNLP's function of this name builds. The model is put on the accelerator, if there is one.

    Args:
        task_or_model: one of the five published models, such as `"pai-painter-commercial-base-zh"`, which come from the
            Hub (`alibaba-pai/…`) or, without a network, from its cache; or `"text2image_generation"`.
        model_path: with `"text2image_generation"`: the model's folder, EasyNLP's or native, or its name on the Hub.
        options: `max_generated_num`, the pictures of each caption (1 by default); and `text_len`, `img_len`,
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
        if option not in _OPTIONS:
            similar = difflib.get_close_matches(option, _OPTIONS, 1)
            hint = f"did you mean `{similar[0]}`?" if similar else f"there are {', '.join(_OPTIONS)}."
            raise ValueError(f"The pipeline has no option `{option}`; {hint}")
    name = _model_of(task_or_model, model_path)
    num_images = count_of_pictures(options.pop("max_generated_num", 1))
    with explaining_missing_models(name):
        painter = PaiPainterPipeline.from_pretrained(name)
    check_sizes(name, painter.model.config, options)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return TextImageGenerationPipeline(painter.to("cpu" if accelerator is None else accelerator), num_images)


class TextImageGenerationPipeline:
    """
    Paints captions, and gives the pictures as base64. Made by [`pipeline`].

    Args:
        painter ([`PaiPainterPipeline`]): Paints.
        num_images (`int`): Pictures of each caption.
    """

    def __init__(self, painter: PaiPainterPipeline, num_images: int = 1):
        self.painter, self.num_images = painter, num_images
        painter.set_progress_bar_config(disable=True)
        # Each picture is noted with a seed of its own, which paints it again alone.
        self._options = PaintingOptions.for_model(painter, best_of=1)
        self._model_name = os.path.basename(os.path.normpath(str(painter.config["_name_or_path"])))

    def __call__(self, inputs: str | list[str]) -> list[dict[str, Any]]:
        """
        Args:
            inputs (`str` or `list[str]`): One caption or several.

        Returns:
            `list[dict]`: For each caption, also for a single one, `{"gen_imgbase64": …}` with the PNG in base64, a
            string in the standard alphabet as EasyNLP gives it (`base64.b64decode` and `base64.urlsafe_b64decode` both
            read it); with `max_generated_num` above 1, a list of such strings. As in EasyNLP, no two pictures are
            alike; after `torch.manual_seed` they are the same again.

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
        drawn = torch.randint(2**62, (len(captions),)).tolist()
        generators = [torch.Generator().manual_seed(number) for number in drawn]
        painted = cast(PaiPainterPipelineOutput, self.painter(captions, generator=generators))
        pictures = zip(painted.images, captions, painted.seeds, painted.scores, strict=True)
        files = (
            painted_png(image, caption, seed, seed, score, self._model_name, self._options)
            for image, caption, seed, score in pictures
        )
        return [base64.b64encode(file).decode("ascii") for file in files]


def _model_of(task_or_model: str, model_path: str | os.PathLike | None) -> str:
    if task_or_model == TASK:
        if model_path is None:
            raise ValueError(
                f'Please say which model paints: pipeline("{TASK}", folder), or the name of one, such as '
                f'pipeline("{PUBLISHED[0]}").'
            )
        return hub_name(os.fspath(model_path))
    if task_or_model in PUBLISHED:
        if model_path is not None:
            raise ValueError(
                f"Both the model {task_or_model} and {os.fspath(model_path)} are named: please give one of them "
                f'(pipeline("{TASK}", folder) for the second).'
            )
        return hub_name(task_or_model)
    similar = difflib.get_close_matches(str(task_or_model), (TASK, *PUBLISHED), 1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"there are {TASK!r} and the models {', '.join(PUBLISHED)}."
    raise ValueError(f"There is no task or model {task_or_model!r}; {hint}")
