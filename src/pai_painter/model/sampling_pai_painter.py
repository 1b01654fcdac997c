# SPDX-License-Identifier: Apache-2.0
"""
Drawing image tokens so that a picture is a function of its seed, whatever stands beside it in the batch.

Gumbel-max: the arg-max of (log-probabilities + Gumbel noise) is a sample of the distribution. The noise is a function
of (seed, position, token) and has no state, so that it may be looked at ahead, in any order and on any device.
"""

import numbers
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor

from .configuration_pai_painter import PaiPainterConfig
from .model_files_pai_painter import find_model_file, read_json_object

__all__ = [
    "GumbelSampler",
    "check_captions",
    "check_sampling_options",
    "complete_generation_config",
    "default_generation_config",
    "gumbel_noise",
    "philox",
    "picture_seeds",
    "read_generation_config",
    "truncate_logits",
]

_MAX_SEED = 2**63 - 1
_WORD = 2**32 - 1
# Philox's time goes into starting its operations: of so few tokens, the noise of all of them at several positions takes
# hardly longer than that of some candidates at one position.
_SMALL_VOCABULARY, _BLOCK = 2048, 16
_LOWEST_TEMPERATURE = 1e-30  # below it logits divided by it are infinite, and all tokens alike
_MOST_CANDIDATES = 1000  # of one picture, that a folder may recommend


def default_generation_config(config: PaiPainterConfig) -> GenerationConfig:
    """Sampling as published: temperature 1, top-k 100, all tokens of the picture, no end token."""
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


def read_generation_config(
    name_or_path: str | os.PathLike, config: PaiPainterConfig, **hub_options: Any
) -> GenerationConfig | None:
    """
    What a folder or a Hub repository recommends, complete; `None` if it has no generation_config.json. A `ValueError`
    if that is damaged, if a setting in it is out of range, or if it is for pictures of another size than the model's.
    """
    path = find_model_file(name_or_path, "generation_config.json", **hub_options)
    if path is None:
        return None
    found = read_json_object(path, name_or_path)
    try:
        settings = complete_generation_config(GenerationConfig.from_dict(found), config)
        check_sampling_options(settings.temperature, settings.top_k, settings.top_p, settings.best_of)
        if settings.best_of > _MOST_CANDIDATES:
            raise ValueError(f"`best_of` may be at most {_MOST_CANDIDATES}, got {settings.best_of}")
        lengths = {"max_length": config.max_position_embeddings, "max_new_tokens": config.num_image_tokens}
        for field, length in lengths.items():
            if getattr(settings, field) not in (None, length):
                raise ValueError(f"`{field}` must be {length}, a whole picture, got {getattr(settings, field)!r}")
    except (AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The generation_config.json of {name_or_path} isn't a painter's: {reason}.") from error
    return settings


def check_captions(input_ids: torch.Tensor, config: PaiPainterConfig) -> None:
    """A `ValueError` if these aren't captions as PaiPainterProcessor prepares them for this model."""
    shape, first, last = tuple(input_ids.shape), config.image_vocab_size, config.vocab_size - 1
    if input_ids.ndim != 2 or shape[1] != config.text_length or not shape[0]:
        raise ValueError(f"`input_ids` must be captions of shape (captions, {config.text_length}), got {shape}.")
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < first or highest > last:
        raise ValueError(
            f"The ids of captions lie between {first} and {last}, got {lowest} to {highest}; this model's own "
            "PaiPainterProcessor gives them."
        )


def check_sampling_options(temperature: float, top_k: int | None, top_p: float | None, best_of: int) -> None:
    """A `ValueError` if one of the options is out of its range, with what to use instead."""
    if not _is_number(temperature) or not _LOWEST_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(
            f"`temperature` must be a number above 0 (from {_LOWEST_TEMPERATURE:g} on), got {temperature!r}. For the "
            f"most likely token at each step use `top_k=1`."
        )
    if top_k is not None:
        _check_count("top_k", top_k)
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"`top_p` must lie in (0, 1], got {top_p!r}; 1 keeps all tokens.")
    _check_count("best_of", best_of)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    """Python's and NumPy's whole numbers, as seeds and counts often are; no truth values."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_count(name: str, value: Any) -> None:
    if not _is_whole(value) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


def picture_seeds(
    num_captions: int,
    num_images_per_prompt: int,
    best_of: int,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[int]:
    """
    One seed for every candidate: candidate j of picture k, counted over all captions, has `seed + k * best_of + j`.
    Without `best_of` picture k has `seed + k`, and the seed of a chosen candidate paints it again alone.

    Args:
        seed: the first seed, or one for each picture. `None` draws one from PyTorch's global generator.
        generator: instead of `seed`: what `seed` is drawn from, or one for each picture that gives its first seed.

    Raises:
        ValueError: if both `seed` and `generator` are given, a seed or a number of pictures is out of range, or one of
            them is something else or a list of another length.
    """
    _check_count("num_images_per_prompt", num_images_per_prompt)
    if seed is not None and generator is not None:
        raise ValueError("Please give `seed` or `generator`, not both.")
    pictures, best_of = num_captions * int(num_images_per_prompt), int(best_of)
    given: Any = _draw_seed(None) if seed is None else seed
    if isinstance(given, np.ndarray | torch.Tensor):
        given = given.tolist()
    name = "seed" if generator is None else "generator"
    given = given if generator is None else generator
    each = isinstance(given, list | tuple)
    firsts = list(given) if each else [given]
    if each and len(firsts) != pictures:
        raise ValueError(f"`{name}` has {len(firsts)} {name}s for {pictures} pictures; give one for each.")
    if generator is not None:
        if not all(isinstance(one, torch.Generator) for one in firsts):
            raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {generator!r}.")
        firsts = [_draw_seed(one) for one in firsts]
    following = best_of if each else pictures * best_of
    for first in firsts:
        if not _is_whole(first) or not 0 <= int(first) <= _MAX_SEED - following:
            raise ValueError(f"`seed` must be a whole number from 0 to {_MAX_SEED - following}, got {first!r}.")
    return [int(first) + candidate for first in firsts for candidate in range(following)]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    # 32 bits: short enough to be read aloud and typed again.
    return int(torch.randint(2**32, (), generator=generator, device=device))


def truncate_logits(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Applies temperature, then top-k, then top-p (nucleus), as transformers' warpers do, and keeps the candidates only.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, image_vocab_size)`)
        temperature: above 0; below 1 sharpens.
        top_k: keep the k most likely tokens, exactly k of them.
        top_p: keep the smallest set of tokens whose probabilities add up to at least this.

    Returns:
        Logits `(batch, candidates)` after the temperature, -inf for what top-p leaves out, and the tokens
        `(batch, candidates)` that they belong to; `None` if nothing is left out.
    """
    logits, width = logits / temperature, logits.shape[-1]
    candidates = width if top_k is None else min(top_k, width)
    top_p = 1.0 if top_p is None else top_p
    if candidates == width and top_p == 1:
        return logits, None
    logits, tokens = logits.topk(candidates)  # in descending order
    if top_p < 1:
        probabilities = logits.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the first token is always kept
        logits = logits.masked_fill(before >= top_p, float("-inf"))
    return logits, tokens


def philox(key: Sequence[Any], counter: Sequence[Any]) -> tuple[Any, ...]:
    """
    Philox4x32-10: random bits as a function of a key and a counter, without a state.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
    https://doi.org/10.1145/2063384.2063405.

    Args:
        key, counter: two and four words in [0, 2³²): numbers, arrays or tensors of 64 bits, which are broadcast.

    Returns:
        Four words of the same kind.
    """
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # they wrap, which leaves all 64 bits as they are
        c0, c1 = (second >> 32 ^ c1 ^ k0) & _WORD, second & _WORD
        c2, c3 = (first >> 32 ^ c3 ^ k1) & _WORD, first & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor | None, width: int) -> torch.Tensor:
    """
    Gumbel noise as a function of seed, position and token.

    Args:
        seeds (`torch.LongTensor` of shape `(rows,)`): Of each row's picture, from 0 to 2⁶³ - 1.
        positions (`torch.LongTensor` of shape `(rows,)`): Of each row's token in its picture, raster order.
        tokens (`torch.LongTensor` of shape `(rows, candidates)`, *optional*): Without them, all of them.
        width (`int`): How many tokens there are.

    Returns:
        `torch.FloatTensor` of shape `(rows, candidates)`.
    """
    every = torch.arange(0, width, 4, device=seeds.device)
    blocks = every.expand(len(seeds), -1) if tokens is None else tokens  # each block of four tokens has one counter
    given: list[Any] = [(seeds & _WORD)[:, None], (seeds >> 32)[:, None], blocks >> 2, positions[:, None]]
    # NumPy's operations start in a third of the time; tensors of other classes, such as fake ones, can't become arrays.
    if seeds.device.type == "cpu" and type(blocks) is torch.Tensor:
        given = [each.numpy() for each in given]
    k0, k1, block, position = given
    words = torch.stack([torch.as_tensor(word) for word in philox((k0, k1), (block, position, 0, 0))])
    of_all = words.permute(1, 2, 0).flatten(1)[:, :width]  # meant if there are no candidates
    bits = of_all if tokens is None else words.gather(0, (tokens & 3)[None])[0]
    # Double precision, so that no logarithm meets a 0; on Apple's GPUs, which have none, a bound sees to that.
    precision = torch.float32 if bits.device.type == "mps" else torch.float64
    uniform = (bits.to(precision) + 0.5) * 2.0**-32
    uniform = uniform.clamp_(max=1 - torch.finfo(precision).eps)
    return uniform.log_().neg_().log_().neg_().float()


class GumbelSampler(LogitsProcessor):
    """
    Draws the image tokens of a batch of pictures, each by its own seed.

    As a logits processor it warps the logits and adds the noise; `generate` must then take the arg-max
    (`do_sample=False`).

    Attributes:
        log_likelihood (`torch.FloatTensor` of shape `(batch,)`): The sum over the tokens drawn of their
            log-probabilities under the model as it is (no temperature, no truncation).

    Args:
        seeds: one for each row of the batch.
        text_length: caption ids in front of the image tokens.
        temperature, top_k, top_p: see [`truncate_logits`].
    """

    def __init__(
        self,
        seeds: list[int],
        text_length: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        self.seeds = torch.tensor(seeds)
        self.text_length = text_length
        self.options = (temperature, top_k, top_p)
        self.log_likelihood = torch.zeros(len(seeds))
        # Kept, since draft tokens ask for it several times.
        self._noise_of_block = lru_cache(maxsize=4)(self._noise_of_block)  # type: ignore[method-assign]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """For `generate`: warped logits (batch, image_vocab_size) with noise, whose arg-max is the token drawn."""
        noisy, tokens = self._noisy(scores, input_ids.shape[1] - self.text_length)
        self.log_likelihood += _log_probabilities(scores, _most_likely(noisy, tokens))
        if tokens is None:
            return noisy
        return torch.full_like(scores, float("-inf"), dtype=noisy.dtype).scatter(-1, tokens, noisy)

    def draw(self, scores: torch.Tensor, position: int) -> torch.Tensor:
        """The token of each picture at a position, (batch,), by logits (batch, image_vocab_size)."""
        drawn = _most_likely(*self._noisy(scores, position))
        self.log_likelihood += _log_probabilities(scores, drawn)
        return drawn

    def draw_ahead(self, logits: torch.Tensor, position: int, ahead: int) -> torch.Tensor:
        """
        What [`draw`] draws for the only picture from `position` on if these logits (rows, image_vocab_size) hold, and
        for `ahead` further positions, for which the last ones are taken once more: (rows + ahead,). Nothing is counted.
        """
        kept, tokens = truncate_logits(logits.float(), *self.options)
        offsets = torch.arange(len(logits) + ahead)
        rows = offsets.clamp(max=len(logits) - 1)
        tokens = None if tokens is None else tokens[rows]
        if logits.shape[-1] > _SMALL_VOCABULARY:
            noise = gumbel_noise(self.seeds.expand(len(rows)), position + offsets, tokens, logits.shape[-1])
        else:
            noise = torch.cat([self._noise(position + offset, None, logits.shape[-1]) for offset in offsets.tolist()])
            noise = noise if tokens is None else noise.gather(-1, tokens)
        return _most_likely(kept[rows] + noise, tokens)

    def accept(self, logits: torch.Tensor, drawn: torch.Tensor) -> None:
        """Counts what [`draw_ahead`] has drawn by logits `(rows, image_vocab_size)` that do hold: tokens `(rows,)`."""
        self.log_likelihood += _log_probabilities(logits, drawn).sum()

    def _noisy(self, scores: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.seeds.device != scores.device:  # once, rather than at each step
            self.seeds, self.log_likelihood = self.seeds.to(scores.device), self.log_likelihood.to(scores.device)
        kept, tokens = truncate_logits(scores.float(), *self.options)
        return kept + self._noise(position, tokens, scores.shape[-1]), tokens

    def _noise(self, position: int, tokens: torch.Tensor | None, width: int) -> torch.Tensor:
        """Noise (batch, candidates) at a position."""
        if width > _SMALL_VOCABULARY:
            return gumbel_noise(self.seeds, torch.full_like(self.seeds, position), tokens, width)
        noise = self._noise_of_block(position // _BLOCK, width)[:, position % _BLOCK]
        return noise if tokens is None else noise.gather(-1, tokens)

    def _noise_of_block(self, block: int, width: int) -> torch.Tensor:
        """Noise (batch, positions, width) of all tokens at the positions from `block * _BLOCK` on."""
        positions = torch.arange(block * _BLOCK, (block + 1) * _BLOCK, device=self.seeds.device)
        rows, positions = self.seeds.repeat_interleave(_BLOCK), positions.repeat(len(self.seeds))
        return gumbel_noise(rows, positions, None, width).unflatten(0, (-1, _BLOCK))


def _most_likely(noisy: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    best = noisy.argmax(-1, keepdim=True)
    return (best if tokens is None else tokens.gather(-1, best)).squeeze(-1)


def _log_probabilities(logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return logits.gather(-1, drawn[:, None]).squeeze(-1) - logits.logsumexp(-1)
