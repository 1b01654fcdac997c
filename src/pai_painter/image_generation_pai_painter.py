# SPDX-License-Identifier: Apache-2.0
"""How the painter paints: captions → codes → pixels, by seeds."""

import copy
import weakref
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from .code_writer_pai_painter import CodeWriter, can_write_codes
from .guessing_pai_painter import GuessingCodeWriter
from .modeling_vqgan import PaiPainterVQModel
from .sampling_pai_painter import GumbelSampler, check_captions, check_sampling_options, picture_seeds
from .speed_pai_painter import PaintingSpeed, SpeedName, find_speed

__all__ = ["DECODED_AT_ONCE", "ImageGenerationMixin", "PaiPainterImageOutput", "check_speed"]

# Pictures that the codec decodes at once on the CPU; with more of them it is no faster, and needs more memory. In half
# precision one picture's numbers stay nearer to the processor.
DECODED_AT_ONCE, _DECODED_AT_ONCE_ROUNDED = 4, 1


@dataclass
class PaiPainterImageOutput(ModelOutput):
    """
    Pictures in the order of the captions, `n` of each = `num_images_per_prompt`.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(captions * n, 3, resolution, resolution)`, *optional*): About
            [-1, 1], not clipped. `None` if `decode=False`.
        image_tokens (`torch.LongTensor` of shape `(captions * n, num_image_tokens)`): Raster order.
        scores (`torch.FloatTensor` of shape `(captions * n,)`): Mean log-likelihood of a code under the model, in
            nats; nearer to 0 means surer.
        seeds (`list[int]`): The seed of each picture, with which it is painted again alone.
    """

    pixel_values: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    seeds: list[int] | None = None


class ImageGenerationMixin(GenerationMixin):
    """What `PaiPainterForImageGeneration` has beside `generate`: pictures by seeds, and the codec at each speed."""

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: torch.Tensor,
        num_images_per_prompt: int = 1,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        best_of: int | None = None,
        decode: bool = True,
        speed: SpeedName | PaintingSpeed = "exact",
        **generate_kwargs: Any,
    ) -> PaiPainterImageOutput:
        """
        Paints captions. Options left out are those of `generation_config`, the model's recommendation.

        On the CPU codes are written by [`CodeWriter`] (of a single picture by [`GuessingCodeWriter`]), elsewhere by
        `generate`; so they are for a model with adapters or hooks, or if `generate_kwargs` are given.

        Args:
            input_ids (`torch.LongTensor` of shape `(captions, text_length)`): Captions from the processor.
            num_images_per_prompt: pictures of each caption.
            seed, generator: see [`~sampling_pai_painter.picture_seeds`].
            temperature, top_k, top_p: see [`~sampling_pai_painter.warp_logits`].
            best_of: paint so many candidates for each picture and keep the likeliest by the model's own measure.
            decode: `False` leaves the codec out and gives codes only.
            speed: what may be rounded, on the CPU: see [`~speed_pai_painter.find_speed`]. What it needs is kept with
                the model until its weights change.
            generate_kwargs: passed on to `generate`, such as `cache_implementation`; `stopping_criteria` end the
                painting when they agree for all rows.

        Raises:
            ValueError: if an option is out of range, or if the captions have another length or other ids.
        """
        recommended = self.generation_config
        temperature = recommended.temperature if temperature is None else temperature
        top_k = recommended.top_k if top_k is None else top_k
        top_p = recommended.top_p if top_p is None else top_p
        best_of = recommended.best_of if best_of is None else best_of
        check_sampling_options(temperature, top_k, top_p, best_of)
        check_captions(input_ids, self.config)
        speed = find_speed(speed, self.device)

        seeds = picture_seeds(len(input_ids), num_images_per_prompt, best_of, seed, generator)
        pictures = len(input_ids) * num_images_per_prompt
        sampler = GumbelSampler(seeds, temperature, top_k, top_p)
        image_tokens = self._write_codes(input_ids, num_images_per_prompt * best_of, sampler, speed, generate_kwargs)
        image_tokens = image_tokens.unflatten(0, (pictures, best_of))
        scores = (sampler.log_likelihood / image_tokens.shape[-1]).view(pictures, best_of)
        chosen = scores.argmax(1)  # the first of equals
        rows = torch.arange(pictures, device=chosen.device)
        image_tokens = image_tokens[rows, chosen]
        return PaiPainterImageOutput(
            pixel_values=self.decode_images(image_tokens, speed) if decode else None,
            image_tokens=image_tokens,
            scores=scores[rows, chosen],
            seeds=[seeds[row * best_of + best] for row, best in enumerate(chosen.tolist())],
        )

    def _write_codes(
        self,
        input_ids: torch.Tensor,
        copies: int,
        sampler: GumbelSampler,
        speed: PaintingSpeed,
        generate_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Codes (captions * copies, num_image_tokens), or less of them if stopping criteria say so."""
        if can_write_codes(self) and not generate_kwargs.keys() - {"stopping_criteria"}:
            criteria = generate_kwargs.get("stopping_criteria") or []
            stop_when = [lambda ids, criterion=each: bool(criterion(ids, None).all()) for each in criteria]
            writer = _ready(self).code_writer(self, len(input_ids) * copies, speed)
            return writer.write(input_ids, copies, sampler, stop_when)
        check_speed(self, speed, sorted(generate_kwargs.keys() - {"stopping_criteria"}))
        sequences = self.generate(
            input_ids.repeat_interleave(copies, dim=0),
            logits_processor=[sampler],
            do_sample=False,
            num_beams=1,
            max_length=self.config.max_position_embeddings,
            **generate_kwargs,
        )
        return sequences[:, self.config.text_length :]

    @torch.no_grad()
    def decode_images(
        self,
        image_tokens: torch.Tensor,
        speed: SpeedName | PaintingSpeed = "exact",
    ) -> torch.Tensor:
        """
        Codes to pixels, on the CPU a few pictures at a time.

        Args:
            image_tokens (`torch.LongTensor` of shape `(pictures, num_image_tokens)`)
            speed: see [`~speed_pai_painter.find_speed`].

        Returns:
            `torch.FloatTensor` of shape `(pictures, 3, resolution, resolution)`: about [-1, 1], not clipped.
        """
        speed = find_speed(speed, self.device)
        codec = self.vqgan if speed.dtype is None else _ready(self).codec(self.vqgan, speed.dtype)
        at_once = DECODED_AT_ONCE if codec is self.vqgan else _DECODED_AT_ONCE_ROUNDED
        chunks = image_tokens.split(at_once) if self.device.type == "cpu" else [image_tokens]
        return torch.cat([codec.decode(chunk) for chunk in chunks]).to(self.vqgan.dtype)


def check_speed(model: PreTrainedModel, speed: PaintingSpeed, generate_options: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: if a model can't be painted with at a speed that rounds, or not with these options of `generate`.
    """
    if speed.is_exact or (can_write_codes(model) and not generate_options):
        return
    if generate_options:
        raise ValueError(f"Only `speed='exact'` goes with options of `generate`, such as `{generate_options[0]}`.")
    raise ValueError(
        "Only `speed='exact'` goes with adapters that aren't merged, quantised layers, hooks, autocast, a model in "
        "training mode, attention other than sdpa and eager, and further settings in `generation_config`."
    )


@dataclass
class _Ready:
    """What speeds other than `exact` need: rounded copies of a model, each with a stamp of the weights it is from."""

    writers: dict[tuple, CodeWriter] = field(default_factory=dict)
    codecs: dict[tuple, PaiPainterVQModel] = field(default_factory=dict)

    def code_writer(self, model: PreTrainedModel, rows: int, speed: PaintingSpeed) -> CodeWriter:
        if speed.is_exact:  # takes a tenth of a second, and keeping a copy of all weights wouldn't be worth that
            return _new_writer(model, rows, speed)
        key = (rows, speed, _stamp(model.model, model.lm_head))
        writer = self.writers.get(key)
        if writer is None:
            writer = _new_writer(model, rows, speed)
            self.writers = {key: writer}  # never two at once
        return copy.copy(writer)  # the same weights, but a cache of its own for each thread

    def codec(self, vqgan: PaiPainterVQModel, dtype: torch.dtype) -> PaiPainterVQModel:
        key = (dtype, _stamp(vqgan.decoder, vqgan.post_quant_conv, vqgan.quantize))
        codec = self.codecs.get(key)
        if codec is None:
            codec = _rounded_codec(vqgan, dtype)
            self.codecs = {key: codec}
        return codec


def _new_writer(model: PreTrainedModel, rows: int, speed: PaintingSpeed) -> CodeWriter:
    return GuessingCodeWriter(model, speed) if speed.guess_ahead and rows == 1 else CodeWriter(model, rows, speed)


# Beside the models rather than in them, so that copying, saving and pickling a model don't meet it.
_READY: weakref.WeakKeyDictionary[nn.Module, _Ready] = weakref.WeakKeyDictionary()


def _ready(model: nn.Module) -> _Ready:
    return _READY.setdefault(model, _Ready())


def _stamp(*parts: nn.Module) -> tuple[tuple[int, float], ...]:
    """
    Another one as soon as weights are replaced or written to. PyTorch counts what is written, but not through `.data`,
    as peft merges adapters; so their sum is looked at, in float32, in which half precision's last digit isn't lost.
    """
    parameters = (each.detach() for part in parts for each in part.parameters())
    return tuple((each.data_ptr(), each.sum(dtype=torch.float32).item()) for each in parameters)


def _rounded_codec(vqgan: PaiPainterVQModel, dtype: torch.dtype) -> PaiPainterVQModel:
    """The decoding half of a codec in another precision, its pixels' channels side by side, as oneDNN likes them."""
    config = copy.deepcopy(vqgan.config)
    config.has_encoder = False
    with torch.device("meta"):
        codec = PaiPainterVQModel(config)
    weights = {name: weight.to(dtype) for name, weight in vqgan.state_dict().items() if name in codec.state_dict()}
    codec.load_state_dict(weights, assign=True)
    return cast(PaiPainterVQModel, codec.to(memory_format=torch.channels_last).eval())
