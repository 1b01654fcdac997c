# SPDX-License-Identifier: Apache-2.0
"""
Captions → pictures, with the habits of diffusers.

This half of the pipeline travels to the Hub with the model, where diffusers can run it without this package, and so
stands on the model's files alone. Loading, adapters and pushing are in `pipeline_pai_painter`.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL import Image
from tqdm import tqdm
from transformers.utils import logging

from .modeling_pai_painter import PaiPainterForImageGeneration
from .pipeline_saving_pai_painter import SavingPipeline
from .processing_pai_painter import PaiPainterProcessor

__all__ = ["PaiPainterBasePipeline", "PaiPainterPipelineOutput"]

logger = logging.get_logger(__name__)

OutputType = Literal["pil", "np", "pt", "codes"]
StepCallback = Callable[["PaiPainterBasePipeline", int, int, dict[str, Any]], dict[str, Any] | None]


@dataclass
class PaiPainterPipelineOutput(BaseOutput):
    """
    Pictures in the order of the captions, `num_images_per_prompt` of each.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): By `output_type`: Pillow pictures, an array
            (pictures, side, side, 3) in [0, 1], a tensor (pictures, 3, side, side) in [0, 1], or the codes.
        scores (`list[float]`): Mean log-likelihood per image token under the model, in nats; nearer to 0 means surer.
            `None` for each picture if the painting was interrupted.
        seeds (`list[int]`): The seed of each picture. It paints the picture again with `best_of=1`.
        image_tokens (`torch.LongTensor` of shape `(pictures, num_image_tokens)`): Raster order; fewer columns if the
            painting was interrupted.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    scores: list[float | None]
    seeds: list[int]
    image_tokens: torch.LongTensor


class PaiPainterBasePipeline(SavingPipeline):
    """
    Paints pictures from Chinese captions.

    Args:
        model ([`PaiPainterForImageGeneration`]): The painter with its VQGAN.
        processor ([`PaiPainterProcessor`]): Captions to ids, pixels to pictures.

    Raises:
        ValueError: if the processor was made for another model.
    """

    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = ["image_tokens"]
    _calls: list["_Call"]

    def __init__(self, model: PaiPainterForImageGeneration, processor: PaiPainterProcessor):
        super().__init__()
        processor.check_model(model.config)
        self.register_modules(model=model, processor=processor)
        self._calls = []

    @property
    def num_timesteps(self) -> int:
        """Steps of a call: the image tokens of a picture."""
        return self.model.config.num_image_tokens

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in `callback_on_step_end` to stop after the present token."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        return any(call.interrupt for call in self._calls_in_question())

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        for call in self._calls_in_question():
            call.interrupt = value

    def _calls_in_question(self) -> list["_Call"]:
        """The calls of this thread, so that a callback ends its own; from a thread that has none, all of them."""
        return [call for call in self._calls if call.thread == threading.get_ident()] or list(self._calls)

    def check_inputs(
        self,
        prompt: str | list[str],
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_tokens",),
    ) -> list[str]:
        """
        The captions as a list, checked.

        Raises:
            ValueError: if one of them isn't a string or says nothing to the model, or if `output_type` or the
                callback's inputs are others than there are.
        """
        if output_type not in get_args(OutputType):
            raise ValueError(f"`output_type` must be one of {', '.join(get_args(OutputType))}, got {output_type!r}.")
        unknown = sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {', '.join(self._callback_tensor_inputs)}, "
                f"got {', '.join(unknown)}."
            )
        captions = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(captions, list) or not captions:
            raise ValueError(f"`prompt` must be a caption or a list of captions, got {prompt!r}.")
        for caption in captions:
            pieces = self.processor.word_pieces(caption)
            if not pieces:
                raise ValueError(f"The caption {caption!r} is empty: please say in Chinese what to paint.")
            if len(self.processor.unknown_pieces(caption)) == min(len(pieces), self.processor.text_length):
                raise ValueError(
                    f"The model knows no word of the caption {caption!r}: please say in Chinese what to paint."
                )
        return captions

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        best_of: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | list[int] | None = None,
        output_type: OutputType = "pil",
        speed: Any = "exact",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_tokens",),
        return_dict: bool = True,
    ) -> PaiPainterPipelineOutput | tuple:
        r"""
        Paints captions. Options left out are those that the model recommends (its `generation_config`).

        A picture is a function of model, caption, options and one seed: picture k of the call, counted over all
        captions, starts from `seed + k` (with `best_of`, from `seed + k * best_of`).

        Args:
            prompt (`str` or `list[str]`): One caption or several.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Pictures of each caption.
            top_k (`int`, *optional*): Draw each code from the k most likely ones.
            top_p (`float`, *optional*): Draw each code from the smallest set whose probabilities add up to this.
            temperature (`float`, *optional*): Above 0; below 1 the likely codes become likelier still.
            best_of (`int`, *optional*): Paint so many candidates for each picture and keep the one that the model
                itself finds likeliest.
            generator (`torch.Generator` or a list of one for each picture, *optional*): Draws the seed.
            seed (`int` or a list of one for each picture, *optional*): The seed, instead of `generator`. Without both
                it is drawn by PyTorch.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"codes"`.
            speed (`str`, *optional*, defaults to `"exact"`): On the CPU `"balanced"` and `"fastest"` round the model's
                numbers; see [`~cpu.speed.SPEEDS`].
            callback_on_step_end (*optional*): A function or a `diffusers.callbacks.PipelineCallback`, called as
                `callback(pipe, step, timestep, callback_kwargs)` after each token; `step` and `timestep` both are its
                position. `callback_kwargs["image_tokens"]` are the tokens so far, (candidates, step + 1). If it returns
                a `dict` with other `image_tokens`, these are painted on.
            callback_on_step_end_tensor_inputs (*optional*): Which tensors the callback wants: `image_tokens` or none.
            return_dict (`bool`, *optional*, defaults to `True`): `False` gives a tuple in the same order.

        Returns:
            [`PaiPainterPipelineOutput`]. If the painting was interrupted, the token that was painted last fills the
            rest of a picture, and there are no scores.

        Raises:
            ValueError: if a caption says nothing to the model, if an option is out of range, or if both `seed` and
                `generator` are given.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        captions = self.check_inputs(prompt, output_type, callback_on_step_end_tensor_inputs)
        self._warn_of_unknown_pieces(captions)
        call = _Call(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._calls.append(call)
        try:
            input_ids = self.processor(text=captions, return_tensors="pt")["input_ids"].to(self._execution_device)
            with self.progress_bar(total=self.num_timesteps) as bar:
                painted = self.model.generate_images(
                    input_ids,
                    num_images_per_prompt,
                    seed=seed,
                    generator=generator,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    best_of=best_of,
                    decode=False,  # an interrupted picture has too few tokens
                    speed=speed,
                    step_callback=partial(call.step_end, self, bar),
                )
        finally:
            self._calls.remove(call)
        images, scores = painted.image_tokens, painted.scores.tolist()
        missing = self.num_timesteps - images.shape[1]
        if missing:
            scores = [None] * len(scores)  # of a part they would be no measure of the picture
        if output_type != "codes":
            completed = torch.cat([images, images[:, -1:].expand(-1, missing)], dim=1)
            images = self.processor.image_processor.postprocess(self.model.decode_images(completed, speed), output_type)
        self.maybe_free_model_hooks()
        output = PaiPainterPipelineOutput(images, scores, painted.seeds, painted.image_tokens)
        return output if return_dict else output.to_tuple()

    def _warn_of_unknown_pieces(self, captions: list[str]) -> None:
        for caption in dict.fromkeys(captions):
            unknown = self.processor.unknown_pieces(caption)
            if unknown:
                logger.warning(f"The model doesn't know {' '.join(unknown)} in the caption {caption!r}.")


class _Call:
    """One call of the pipeline: what its callback wants, and whether it is to end. Others may run beside it."""

    def __init__(self, callback: StepCallback | None, tensor_inputs: Sequence[str]):
        self.callback, self.tensor_inputs = callback, tensor_inputs
        self.thread, self.interrupt = threading.get_ident(), False

    def step_end(
        self, pipeline: PaiPainterBasePipeline, bar: tqdm, image_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """After each token: moves the bar and calls the user; see `generate_images`' `step_callback`."""
        bar.update()
        if self.callback is not None:
            step = image_tokens.shape[1] - 1
            returned = self.callback(pipeline, step, step, dict.fromkeys(self.tensor_inputs, image_tokens))
            unknown = sorted(set(returned or {}) - set(pipeline._callback_tensor_inputs))
            if unknown:
                raise ValueError(f"A callback may return `image_tokens`, got {', '.join(unknown)}.")
            image_tokens = (returned or {}).get("image_tokens", image_tokens)
        return image_tokens, self.interrupt
