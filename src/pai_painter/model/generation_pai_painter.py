# SPDX-License-Identifier: Apache-2.0
"""Generation: captions → image tokens → pixels, by seeds."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.generation import GenerationConfig, GenerationMixin, StoppingCriteria
from transformers.utils import ModelOutput

from .configuration_pai_painter import PaiPainterConfig
from .modeling_vqgan import with_forward_hook
from .sampling_pai_painter import GumbelSampler, check_captions, check_sampling_options, picture_seeds

__all__ = ["ImageGenerationMixin", "PaiPainterImageOutput"]

# Pictures that the VQGAN decodes at once on the CPU; with more of them it is no faster, and needs more memory.
_DECODED_AT_ONCE = 4


def _cpu_backend(speed: Any) -> Any:
    """
    `pai_painter.cpu`, which draws the same tokens by a shorter loop and rounds if `speed` asks for it; `None` where the
    package isn't installed.
    """
    try:
        return importlib.import_module("pai_painter.cpu")
    except ImportError as error:
        if speed != "exact":
            raise ValueError(f"`speed={speed!r}` needs the package pai-painter; without it, use 'exact'.") from error
        return None


@dataclass
class PaiPainterImageOutput(ModelOutput):
    """
    Pictures in the order of the captions, `n` of each = `num_images_per_prompt`.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(captions * n, 3, resolution, resolution)`, *optional*): About
            [-1, 1], not clipped. `None` if `decode=False`.
        image_tokens (`torch.LongTensor` of shape `(captions * n, num_image_tokens)`): Raster order.
        scores (`torch.FloatTensor` of shape `(captions * n,)`): Mean log-likelihood under the model, in nats per
            token.
        seeds (`list[int]`): The seed of each picture, with which it is painted again alone.
    """

    pixel_values: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    seeds: list[int] | None = None


StepCallback = Callable[[torch.Tensor], tuple[torch.Tensor, bool]]


class ImageGenerationMixin(GenerationMixin):
    """What `PaiPainterForImageGeneration` has beside `generate`: pictures by seeds, and the VQGAN at each speed."""

    @torch.no_grad()
    @with_forward_hook
    def generate_images(
        self,
        input_ids: torch.Tensor,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        best_of: int | None = None,
        decode: bool = True,
        speed: Any = "exact",
        step_callback: StepCallback | None = None,
        **generate_kwargs: Any,
    ) -> PaiPainterImageOutput:
        """
        Paints captions. Options left out are those of `generation_config`, the model's recommendation.

        On the CPU tokens are drawn by `pai_painter.cpu` where that is installed; by `generate` elsewhere, for a model
        with adapters, hooks or changed parts, and with `generate_kwargs`.

        Args:
            input_ids (`torch.LongTensor` of shape `(captions, text_length)`): Captions from the processor.
            num_images_per_prompt: pictures of each caption.
            seed, generator: see [`~sampling_pai_painter.picture_seeds`].
            temperature, top_k, top_p: see [`~sampling_pai_painter.truncate_logits`].
            best_of: paint this many candidates for each picture and keep the most likely by the model's own measure.
            decode: `False` leaves the VQGAN out and gives image tokens only.
            speed: `"exact"`, or on the CPU `"balanced"` or `"fastest"`, which round; see [`~cpu.speed.find_speed`].
            step_callback: called after each token with the image tokens so far, `(candidates, drawn)`. It returns the
                tokens to paint on from, these or others of the same shape, and whether to stop.
            generate_kwargs: passed on to `generate`, such as `cache_implementation`; `stopping_criteria` end the
                painting when they agree for all rows.

        Raises:
            ValueError: if an option is out of range, if the captions have another length or other ids, or if the
                model's logits are not finite.
        """
        recommended = self.generation_config
        temperature = recommended.temperature if temperature is None else temperature
        top_k = recommended.top_k if top_k is None else top_k
        top_p = recommended.top_p if top_p is None else top_p
        best_of = recommended.best_of if best_of is None else best_of
        check_sampling_options(temperature, top_k, top_p, best_of)
        check_captions(input_ids, self.config)
        seeds = picture_seeds(len(input_ids), num_images_per_prompt, best_of, seed, generator)
        num_images_per_prompt, best_of = int(num_images_per_prompt), int(best_of)  # NumPy's numbers, too
        pictures = len(input_ids) * num_images_per_prompt
        sampler = GumbelSampler(seeds, self.config.text_length, temperature, top_k, top_p)
        copies = num_images_per_prompt * best_of
        image_tokens = self._write_tokens(input_ids, copies, sampler, speed, step_callback, generate_kwargs)
        image_tokens = image_tokens.unflatten(0, (pictures, best_of))
        scores = (sampler.log_likelihood / image_tokens.shape[-1]).view(pictures, best_of)
        if not scores.isfinite().all():
            raise ValueError(
                f"The model's logits are not finite: its weights are damaged or too large for {self.dtype}; please "
                f"load them again, in float32 or bfloat16."
            )
        chosen = scores.argmax(1)  # the first of equals
        rows = torch.arange(pictures, device=chosen.device)
        image_tokens = image_tokens[rows, chosen]
        return PaiPainterImageOutput(
            pixel_values=self.decode_images(image_tokens, speed) if decode else None,
            image_tokens=image_tokens,
            scores=scores[rows, chosen],
            seeds=[seeds[row * best_of + best] for row, best in enumerate(chosen.tolist())],
        )

    def _write_tokens(
        self,
        input_ids: torch.Tensor,
        copies: int,
        sampler: GumbelSampler,
        speed: Any,
        step_callback: StepCallback | None,
        generate_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Tokens (captions * copies, num_image_tokens), or fewer of them if callback or stopping criteria say so."""
        if step_callback is None:
            return self._write_on(input_ids, copies, sampler, speed, generate_kwargs)
        steps = _StepEnd(step_callback, self.config)
        criteria = [*(generate_kwargs.get("stopping_criteria") or []), steps]
        ids = input_ids
        while True:
            tokens = self._write_on(ids, copies, sampler, speed, {**generate_kwargs, "stopping_criteria": criteria})
            if steps.changed is None:
                return tokens
            tokens, steps.changed = steps.changed, None
            if steps.stop or tokens.shape[1] == self.config.num_image_tokens:
                return tokens
            captions = input_ids.repeat_interleave(len(tokens) // len(input_ids), dim=0)
            ids, copies = torch.cat([captions, tokens], dim=1), 1

    def _write_on(
        self, ids: torch.Tensor, copies: int, sampler: GumbelSampler, speed: Any, generate_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        cpu = _cpu_backend(speed)
        options = sorted(generate_kwargs.keys() - {"stopping_criteria"})
        if cpu is not None and cpu.can_decode(self, speed, options):
            criteria = generate_kwargs.get("stopping_criteria") or []
            stop_when = [lambda ids, criterion=each: bool(criterion(ids, None).all()) for each in criteria]
            return cpu.decode(self, ids, copies, sampler, speed, stop_when)
        sequences = self.generate(
            ids.repeat_interleave(copies, dim=0),
            logits_processor=[sampler],
            do_sample=False,
            num_beams=1,
            max_length=self.config.max_position_embeddings,
            **generate_kwargs,
        )
        return sequences[:, self.config.text_length :]

    @torch.no_grad()
    @with_forward_hook
    def decode_images(self, image_tokens: torch.Tensor, speed: Any = "exact") -> torch.Tensor:
        """
        Image tokens (pictures, num_image_tokens) to pixels (pictures, 3, resolution, resolution) in about [-1, 1], not
        clipped; on the CPU a few pictures at a time. For `speed` see [`~cpu.speed.find_speed`].
        """
        vqgan, at_once = self.vqgan, _DECODED_AT_ONCE if self.device.type == "cpu" else len(image_tokens)
        if speed != "exact":
            vqgan, at_once = _cpu_backend(speed).rounded_vqgan(self, speed) or (vqgan, at_once)
        return torch.cat([vqgan.decode(chunk) for chunk in image_tokens.split(at_once)]).to(self.vqgan.dtype)

    def decode_image_tokens(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """[`decode_images`] under the name that Janus, Chameleon and Emu3 have for it."""
        return self.decode_images(image_tokens)

    @torch.no_grad()
    @with_forward_hook
    def get_image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The image tokens of pictures; see [`PaiPainterVQModel.encode`]."""
        return self.vqgan.encode(pixel_values).image_tokens

    def compute_transition_scores(
        self, sequences: torch.Tensor, scores: tuple[torch.Tensor, ...], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """As transformers' own, which expects scores for all ids that the model reads, not only for those it writes."""
        missing = (0, self.config.text_vocab_size)
        scores = tuple(nn.functional.pad(each, missing, value=float("-inf")) for each in scores)
        return super().compute_transition_scores(sequences, scores, *args, **kwargs)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict]:
        """
        A picture has no end and no padding: ids for these, which `Trainer` copies from the tokenizer into a model's
        configurations, must neither mask image tokens of that number nor end a picture at one.
        """
        if kwargs.get("eos_token_id") is not None:
            raise ValueError(
                "No token ends a picture: please leave `eos_token_id` out (`max_new_tokens` ends it early)."
            )
        prepared, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        prepared.pad_token_id = prepared.bos_token_id = prepared.eos_token_id = None
        return prepared, model_kwargs


class _StepEnd(StoppingCriteria):
    """Ends a painting at the token after which a callback wants to stop, or to go on from other tokens."""

    def __init__(self, callback: StepCallback, config: PaiPainterConfig):
        self.callback, self.config = callback, config
        self.changed: torch.Tensor | None = None
        self.stop = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        painted = input_ids[:, self.config.text_length :]
        wanted, self.stop = self.callback(painted.clone())
        fits = wanted.shape == painted.shape and not wanted.is_floating_point()
        if not fits or (wanted < 0).any() or (wanted >= self.config.image_vocab_size).any():
            raise ValueError(
                f"The image tokens from a callback must be whole numbers from 0 to {self.config.image_vocab_size - 1} "
                f"of shape {tuple(painted.shape)}, got {wanted.dtype} of shape {tuple(wanted.shape)}: {wanted}."
            )
        if not torch.equal(wanted.to(painted), painted):
            self.changed = wanted.to(painted)
        over = self.stop or self.changed is not None
        return torch.full((len(input_ids),), over, device=input_ids.device)
