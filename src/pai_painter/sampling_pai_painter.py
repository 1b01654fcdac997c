# SPDX-License-Identifier: Apache-2.0
"""
Drawing codes so that a picture is a function of its seed, whatever stands beside it in the batch.

Gumbel-max: the arg-max of (log-probabilities + Gumbel noise) is a sample of the distribution. Each picture has its
own generator, which gives one vector of noise over all codes for each position, in order.
"""

import torch
from transformers import LogitsProcessor

__all__ = ["GumbelSampler", "check_sampling_options", "picture_seeds", "warp_logits"]

_MAX_SEED = 2**63 - 1


def check_sampling_options(temperature: float, top_k: int | None, top_p: float | None, best_of: int) -> None:
    """
    Raises:
        ValueError: if one of the options is out of its range, with what to use instead.
    """
    if not temperature > 0 or temperature == float("inf"):
        raise ValueError(
            f"`temperature` must be a number above 0, got {temperature}. For the most likely code at each step use "
            f"`top_k=1`."
        )
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"`top_k` must be a whole number of at least 1 (100 is usual), got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must lie in (0, 1], got {top_p}; 1 leaves all codes in.")
    if isinstance(best_of, bool) or not isinstance(best_of, int) or best_of < 1:
        raise ValueError(f"`best_of` must be a whole number of at least 1, got {best_of}.")


def picture_seeds(
    num_captions: int,
    num_images_per_prompt: int,
    best_of: int,
    seed: int | None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> list[int]:
    """
    One seed for every candidate: caption by caption, picture by picture, candidate by candidate.

    Candidate j of picture i of any caption has the seed `seed + i * best_of + j`; so with `best_of` 1 picture i has
    `seed + i`, and the seed of a chosen candidate paints it again alone.

    Args:
        num_captions, num_images_per_prompt, best_of: how many.
        seed: the first seed. `None` draws one from PyTorch's global generator.
        generator: instead of `seed`: a generator that `seed` is drawn from, or a list of one for each picture, each
            of which gives the first seed of its picture.

    Raises:
        ValueError: if both `seed` and `generator` are given, a seed is out of range or the list's length doesn't fit.
    """
    if seed is not None and generator is not None:
        raise ValueError("Please give `seed` or `generator`, not both.")
    candidates = num_images_per_prompt * best_of
    if isinstance(generator, list):
        pictures = num_captions * num_images_per_prompt
        if len(generator) != pictures:
            raise ValueError(f"`generator` has {len(generator)} generators for {pictures} pictures; give one for each.")
        return [start + j for start in map(_draw_seed, generator) for j in range(best_of)]
    first = _draw_seed(generator) if seed is None else seed
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= _MAX_SEED - candidates:
        raise ValueError(f"`seed` must be a whole number from 0 to {_MAX_SEED - candidates}, got {first!r}.")
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

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.float()
        warped = warp_logits(scores, self.temperature, self.top_k, self.top_p)
        noisy = warped + self._gumbel_noise(scores.shape[-1]).to(scores.device)
        drawn = noisy.argmax(-1, keepdim=True)
        gained = scores.log_softmax(-1).gather(-1, drawn).squeeze(-1)
        self.log_likelihood = self.log_likelihood.to(scores.device) + gained
        return noisy

    def _gumbel_noise(self, width: int) -> torch.Tensor:
        # On the CPU, so that a seed paints the same picture on every device. -log of an exponential is Gumbel.
        return torch.stack([-torch.empty(width).exponential_(generator=each).log() for each in self.generators])
