# SPDX-License-Identifier: Apache-2.0
"""
Drawing codes so that a picture is a function of its seed, whatever stands beside it in the batch.

Gumbel-max: the arg-max of (log-probabilities + Gumbel noise) is a sample of the distribution. Each picture has its
own generator, which gives one vector of noise over all codes for each position, in order. So the noise of a position
doesn't depend on the codes before it, and may be looked at ahead.
"""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor

from .configuration_pai_painter import PaiPainterConfig

__all__ = [
    "GumbelSampler",
    "check_captions",
    "check_sampling_options",
    "complete_generation_config",
    "default_generation_config",
    "picture_seeds",
    "warp_logits",
]

_MAX_SEED = 2**63 - 1
_LOWEST_TEMPERATURE = 1e-30  # below it logits divided by it are infinite, and all codes alike


def default_generation_config(config: PaiPainterConfig) -> GenerationConfig:
    """Sampling as published: temperature 1, top-k 100, all codes of the picture, no end token."""
    return GenerationConfig(
        max_length=config.max_position_embeddings, do_sample=True, temperature=1.0, top_k=100, top_p=1.0, best_of=1
    )


def complete_generation_config(given: GenerationConfig, config: PaiPainterConfig) -> GenerationConfig:
    """
    What a folder recommends, with what it leaves out: without a generation_config.json (EasyNLP's) sampling as
    published; with one the length of a picture, temperature 1 and one candidate.
    """
    if given._from_model_config:
        return default_generation_config(config)
    required = {"max_length": config.max_position_embeddings, "temperature": 1.0, "best_of": 1}
    return GenerationConfig(**required | given.to_diff_dict())


def check_captions(input_ids: torch.Tensor, config: PaiPainterConfig) -> None:
    """
    Raises:
        ValueError: if these aren't captions as PaiPainterProcessor prepares them for this model.
    """
    if input_ids.ndim != 2 or input_ids.shape[1] != config.text_length or not len(input_ids):
        raise ValueError(
            f"`input_ids` must be captions of shape (captions, {config.text_length}) from PaiPainterProcessor, "
            f"got {tuple(input_ids.shape)}."
        )
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < config.image_vocab_size or highest >= config.vocab_size:
        raise ValueError(
            f"The ids of captions lie between {config.image_vocab_size} and {config.vocab_size - 1}, got {lowest} to "
            f"{highest}; this model's own PaiPainterProcessor gives them."
        )


def check_sampling_options(temperature: float, top_k: int | None, top_p: float | None, best_of: int) -> None:
    """
    Raises:
        ValueError: if one of the options is out of its range, with what to use instead.
    """
    if not _is_number(temperature) or not _LOWEST_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(
            f"`temperature` must be a number above 0 (from {_LOWEST_TEMPERATURE:g} on), got {temperature!r}. For the "
            f"most likely code at each step use `top_k=1`."
        )
    if top_k is not None and not _is_count(top_k):
        raise ValueError(f"`top_k` must be a whole number of at least 1 (100 is usual), got {top_k!r}.")
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"`top_p` must lie in (0, 1], got {top_p!r}; 1 leaves all codes in.")
    if not _is_count(best_of):
        raise ValueError(f"`best_of` must be a whole number of at least 1, got {best_of!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def picture_seeds(
    num_captions: int,
    num_images_per_prompt: int,
    best_of: int,
    seed: int | list[int] | None,
    generator: torch.Generator | list[torch.Generator] | tuple[torch.Generator, ...] | None = None,
) -> list[int]:
    """
    One seed for every candidate: caption by caption, picture by picture, candidate by candidate.

    Candidate j of picture i of any caption has the seed `seed + i * best_of + j`; so with `best_of` 1 picture i has
    `seed + i`, and the seed of a chosen candidate paints it again alone.

    Args:
        num_captions, num_images_per_prompt, best_of: how many.
        seed: the first seed, or a list of one for each picture. `None` draws one from PyTorch's global generator.
        generator: instead of `seed`: a generator that `seed` is drawn from, or a list of one for each picture, each
            of which gives the first seed of its picture.

    Raises:
        ValueError: if both `seed` and `generator` are given, a seed or a number of pictures is out of range, or one of
            them is something else or a list of another length.
    """
    if not _is_count(num_images_per_prompt):
        raise ValueError(
            f"`num_images_per_prompt` must be a whole number of at least 1, got {num_images_per_prompt!r}."
        )
    if seed is not None and generator is not None:
        raise ValueError("Please give `seed` or `generator`, not both.")
    candidates = num_images_per_prompt * best_of
    given = generator if isinstance(generator, list | tuple) else [generator]
    if generator is not None and not all(isinstance(each, torch.Generator) for each in given):
        raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {generator!r}.")
    pictures = num_captions * num_images_per_prompt
    if isinstance(generator, list | tuple):
        if len(generator) != pictures:
            raise ValueError(f"`generator` has {len(generator)} generators for {pictures} pictures; give one for each.")
        return [start + j for start in map(_draw_seed, generator) for j in range(best_of)]
    first = _draw_seed(generator) if seed is None else seed
    if isinstance(first, list) and len(first) != pictures:
        raise ValueError(f"`seed` has {len(first)} seeds for {pictures} pictures; give one for each.")
    for each in first if isinstance(first, list) else [first]:
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= _MAX_SEED - candidates:
            raise ValueError(f"`seed` must be a whole number from 0 to {_MAX_SEED - candidates}, got {each!r}.")
    if isinstance(first, list):
        return [start + j for start in first for j in range(best_of)]
    return [first + j for _ in range(num_captions) for j in range(candidates)]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    # 32 bits: short enough to be read aloud and typed again.
    return int(torch.randint(2**32, (), generator=generator, device=device))


def warp_logits(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """
    Applies temperature, then top-k, then top-p (nucleus), as transformers' warpers do.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, image_vocab_size)`)
        temperature: above 0; below 1 sharpens.
        top_k: keep the k most likely codes (and any that tie with the k-th).
        top_p: keep the smallest set of codes whose probabilities add up to at least this.

    Returns:
        `torch.FloatTensor` of the same shape, -inf for codes that are left out.
    """
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the first code is always kept
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter(-1, places, ordered)
    return logits


class GumbelSampler(LogitsProcessor):
    """
    Warps the logits and adds each picture's own noise; `generate` must then take the arg-max (`do_sample=False`).

    Attributes:
        log_likelihood (`torch.FloatTensor` of shape `(batch,)`): After `generate`: the sum over the codes drawn of
            their log-probabilities under the model as it is (no temperature, no truncation).

    Args:
        seeds: one for each row of the batch.
        temperature, top_k, top_p: see [`warp_logits`].
    """

    def __init__(
        self, seeds: list[int], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.log_likelihood = torch.zeros(len(seeds))
        self._noise_ahead: list[torch.Tensor] = []  # (batch, image_vocab_size) for each of the next positions

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """For `generate`: warped logits with noise, whose arg-max is what is drawn."""
        return self._noisy(scores)[0]

    def draw(self, scores: torch.Tensor) -> torch.Tensor:
        """Codes (batch,) drawn by logits (batch, image_vocab_size)."""
        return self._noisy(scores)[1]

    def look_ahead(self, logits: torch.Tensor) -> torch.Tensor:
        """
        What [`draw`] would draw at the next positions of the only picture, by these logits. Nothing is drawn by that.

        Args:
            logits (`torch.FloatTensor` of shape `(positions, image_vocab_size)`)

        Returns:
            `torch.LongTensor` of shape `(positions,)`.
        """
        while len(self._noise_ahead) < len(logits):
            self._noise_ahead.append(self._next_noise(logits.shape[-1]))
        noise = torch.cat(self._noise_ahead[: len(logits)]).to(logits.device)
        return (warp_logits(logits.float(), self.temperature, self.top_k, self.top_p) + noise).argmax(-1)

    def _noisy(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = scores.float()
        noisy = warp_logits(scores, self.temperature, self.top_k, self.top_p)
        noise = self._gumbel_noise(scores.shape[-1])
        if scores.is_cuda:  # from pinned memory the copy waits for no kernel
            noise = noise.pin_memory()
        noisy = noisy + noise.to(scores.device, non_blocking=scores.is_cuda)
        drawn = noisy.argmax(-1)
        gained = scores.gather(-1, drawn[:, None]).squeeze(-1) - scores.logsumexp(-1)
        self.log_likelihood = self.log_likelihood.to(scores.device) + gained
        return noisy, drawn

    def _gumbel_noise(self, width: int) -> torch.Tensor:
        return self._noise_ahead.pop(0) if self._noise_ahead else self._next_noise(width)

    def _next_noise(self, width: int) -> torch.Tensor:
        # On the CPU and from uniform numbers, which PyTorch makes alike on every machine (its exponential_ is MKL's
        # where there is MKL): a seed paints the same picture everywhere. Double precision, so that 0 and 1 are rare.
        noise = torch.empty(len(self.generators), width, dtype=torch.float64)
        for row, generator in zip(noise, self.generators, strict=True):
            row.uniform_(generator=generator)
        return noise.log_().neg_().log_().neg_().float()
