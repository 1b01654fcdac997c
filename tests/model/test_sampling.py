# SPDX-License-Identifier: Apache-2.0
"""Drawing codes: the distribution, the seeds and the options that are refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import PAINTERS, TEXT_LENGTH, expected, vqgan_config
from transformers import (
    GenerationConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pai_painter import PaiPainterConfig
from pai_painter.model.sampling_pai_painter import (
    GumbelSampler,
    check_captions,
    check_sampling_options,
    complete_generation_config,
    gumbel_noise,
    philox,
    picture_seeds,
    truncate_logits,
)

INF = float("inf")


def warp_logits(logits: torch.Tensor, *options: Any, **named: Any) -> torch.Tensor:
    """`truncate_logits` as transformers' warpers give it: -inf for tokens that are left out."""
    kept, tokens = truncate_logits(logits, *options, **named)
    return kept if tokens is None else torch.full_like(logits, -INF).scatter(-1, tokens, kept)


def caption_and(drawn: int, rows: int) -> torch.Tensor:
    """What `generate` hands on: ids, of which only the number counts."""
    return torch.zeros(rows, TEXT_LENGTH + drawn, dtype=torch.long)


def random_logits(rows: int, width: int = 50, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(rows, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("folder", PAINTERS)
def test_temperature_and_top_k_give_easynlps_distribution(folder: str) -> None:
    last = expected(folder)["all_logits"][:, -1]
    found = warp_logits(last, temperature=0.8, top_k=5).softmax(-1)
    torch.testing.assert_close(found, expected(folder)["top5_t08_probs"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 50, 1000])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 1.0])
def test_warping_is_what_transformers_warpers_do(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = random_logits(4)
    wanted = TemperatureLogitsWarper(temperature)(None, logits)
    wanted = wanted if top_k is None else TopKLogitsWarper(top_k)(None, wanted)
    wanted = wanted if top_p is None else TopPLogitsWarper(top_p)(None, wanted)
    found = warp_logits(logits, temperature, top_k, top_p)
    assert torch.equal(found.isfinite(), wanted.isfinite())
    torch.testing.assert_close(found, wanted)


def test_top_k_keeps_k_tokens_even_if_more_are_equally_likely() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0]])
    kept = warp_logits(logits, top_k=3).isfinite()[0]
    assert kept.sum() == 3
    assert kept[[1, 3]].all()


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_at_least_one() -> None:
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()
    assert warp_logits(logits, top_p=0.75).isfinite().tolist() == [[True, False, True, False]]
    assert warp_logits(logits, top_p=1e-9).isfinite().tolist() == [[True, False, False, False]]
    certain = torch.tensor([[0.0, -INF, -INF]])
    assert warp_logits(certain, top_p=0.5).isfinite().tolist() == [[True, False, False]]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 0.1}], ids=str)
def test_a_code_that_the_model_excludes_is_never_drawn(options: dict[str, Any]) -> None:
    logits = torch.tensor([[-INF, 0.0, -INF, 1.0, -INF, -INF]]).expand(300, 6)
    sampler = GumbelSampler(list(range(300)), TEXT_LENGTH, **options)
    assert set(sampler.draw(logits, 0).tolist()) <= {1, 3}
    assert sampler.log_likelihood.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_drawn_from_in_single_precision(dtype: torch.dtype) -> None:
    logits = random_logits(3).to(dtype)
    half, single = GumbelSampler([1, 2, 3], TEXT_LENGTH, top_k=10), GumbelSampler([1, 2, 3], TEXT_LENGTH, top_k=10)
    drawn = half(caption_and(0, 3), logits)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, single(caption_and(0, 3), logits.float()))
    assert torch.equal(half.log_likelihood, single.log_likelihood)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 4},
        {"top_p": 0.7},
        {"temperature": 0.8, "top_k": 6, "top_p": 0.9},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    """Chi-square over 20,000 draws of 12 codes; the seeds are fixed, so this holds always or never."""
    draws, width = 20_000, 12
    logits = random_logits(1, width, spread=1.0)
    probabilities = warp_logits(logits, **options).softmax(-1)[0]
    sampler = GumbelSampler(list(range(draws // 10)), TEXT_LENGTH, **options)
    drawn = torch.cat([sampler.draw(logits.expand(draws // 10, width), position) for position in range(10)])
    counts = drawn.bincount(minlength=width).double()
    allowed = probabilities > 0
    assert counts[~allowed].sum() == 0
    wanted = draws * probabilities[allowed].double()
    assert wanted.min() > 5  # fewer, and chi-square is no guide
    statistic = ((counts[allowed] - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((int(allowed.sum()) - 1) / 2, dtype=torch.float64)
    p_value = float(torch.special.gammaincc(freedom, statistic / 2))
    assert p_value > 1e-3, (counts, wanted)


def test_one_draw_says_nothing_of_the_next() -> None:
    """Two positions of the same picture: all 16 pairs of 4 equally likely codes come up alike."""
    rows = 8_000
    sampler = GumbelSampler(list(range(rows)), TEXT_LENGTH)
    first, second = (sampler.draw(torch.zeros(rows, 4), position) for position in range(2))
    counts = (4 * first + second).bincount(minlength=16).double()
    statistic = ((counts - rows / 16) ** 2 / (rows / 16)).sum()
    assert float(torch.special.gammaincc(torch.tensor(7.5, dtype=torch.float64), statistic / 2)) > 1e-3


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ([0, 0], [0, 0, 0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 2, [2**32 - 1] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0xA4093822, 0x299F31D0],
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_words_that_its_authors_publish(key: list[int], counter: list[int], words: list[int]) -> None:
    """The known answers of Random123 1.14, `philox4x32 10`."""
    assert [word.item() for word in philox(torch.tensor(key), torch.tensor(counter))] == words
    assert [word.item() for word in philox(np.array([key]).T, np.array([counter]).T)] == words
    assert list(philox(key, counter)) == words


def noise(seeds: list[int], positions: list[int], tokens: torch.Tensor | None = None, width: int = 40) -> torch.Tensor:
    return gumbel_noise(torch.tensor(seeds), torch.tensor(positions), tokens, width)


def test_the_noise_of_a_seed_never_changes() -> None:
    """A seed written down today paints the same picture with later versions: these are its first numbers."""
    word = philox([5, 0], [1, 3, 0, 0])[2]  # of token 6 = 4 · 1 + 2 at position 3
    assert noise([5], [3])[0, 6].item() == pytest.approx(-math.log(-math.log((word + 0.5) / 2**32)))
    word = philox([0, 1], [0, 0, 0, 0])[0]
    assert noise([2**32], [0])[0, 0].item() == pytest.approx(-math.log(-math.log((word + 0.5) / 2**32)))


@pytest.mark.parametrize("width", [1, 3, 40, 41])
def test_noise_is_the_same_for_all_tokens_for_candidates_and_in_any_batch(width: int) -> None:
    seeds, positions = [7, 7, 9, 2**62], [0, 1, 0, 255]
    whole = noise(seeds, positions, width=width)
    assert whole.shape == (4, width)
    candidates = torch.randint(width, (4, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(seeds, positions, candidates, width), whole.gather(1, candidates))
    for row in range(4):
        assert torch.equal(noise(seeds[row : row + 1], positions[row : row + 1], width=width)[0], whole[row])
    if width > 1:
        assert len(set(map(tuple, whole.tolist()))) == 4


def test_the_noise_is_gumbels() -> None:
    """Kolmogorov-Smirnov over 400,000 numbers of 10 seeds and 40 positions; fixed, so it holds always or never."""
    pairs = [(seed, position) for seed in range(10) for position in range(40)]
    seeds, positions = ([pair[index] for pair in pairs] for index in range(2))
    found = noise(seeds, positions, width=1000).double().flatten().sort().values
    wanted = (-(-found).exp()).exp()
    count = len(found)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = max(float((steps[1:] - wanted).max()), float((wanted - steps[:-1]).max()))
    assert distance < 1.95 / count**0.5  # p > 0.001


def test_neighbouring_seeds_positions_and_tokens_have_nothing_in_common() -> None:
    whole = torch.stack([noise([seed] * 30, list(range(30)), width=200) for seed in range(30)])  # seed, position, token
    uniform = (-(-whole).exp()).exp() - 0.5
    for axis in range(3):
        one, other = uniform.narrow(axis, 0, uniform.shape[axis] - 1), uniform.narrow(axis, 1, uniform.shape[axis] - 1)
        correlation = (one * other).mean() * 12
        assert abs(correlation) < 4 / one.numel() ** 0.5


def test_a_picture_has_its_own_noise_whatever_stands_beside_it() -> None:
    logits = random_logits(3)
    together, alone = GumbelSampler([5, 6, 7], TEXT_LENGTH), GumbelSampler([6], TEXT_LENGTH)
    for drawn in range(3):
        assert torch.equal(together(caption_and(drawn, 3), logits)[1:2], alone(caption_and(drawn, 1), logits[1:2]))
    assert torch.equal(together.log_likelihood[1:2], alone.log_likelihood)


@pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"top_p": 0.8}], ids=str)
def test_a_processor_in_generate_and_a_loop_draw_the_same(options: dict[str, Any]) -> None:
    logits = random_logits(3)
    processor, loop = (GumbelSampler([5, 6, 7], TEXT_LENGTH, **options) for _ in range(2))
    for position in (2, 0, 9):
        assert torch.equal(processor(caption_and(position, 3), logits).argmax(-1), loop.draw(logits, position))
    assert torch.equal(processor.log_likelihood, loop.log_likelihood)


def test_the_log_likelihood_is_the_models_own_without_temperature_and_truncation() -> None:
    steps = [random_logits(2), random_logits(2).flip(0)]
    sampler = GumbelSampler([3, 4], TEXT_LENGTH, temperature=0.2, top_k=3, top_p=0.9)
    wanted = torch.zeros(2)
    for position, logits in enumerate(steps):
        drawn = sampler.draw(logits, position)
        wanted += torch.stack([logits[row].log_softmax(-1)[code] for row, code in enumerate(drawn)])
    torch.testing.assert_close(sampler.log_likelihood, wanted)


def test_seeds_count_on_over_captions_pictures_and_candidates() -> None:
    assert picture_seeds(1, 4, 1, seed=10) == [10, 11, 12, 13]
    assert picture_seeds(2, 3, 1, seed=10) == [10, 11, 12, 13, 14, 15]
    assert picture_seeds(2, 2, 3, seed=10) == list(range(10, 22))
    assert picture_seeds(1, 2, 3, seed=[10, 5]) == [10, 11, 12, 5, 6, 7]


def test_a_generator_gives_the_first_seed_and_moves_on() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = picture_seeds(2, 2, 1, None, generator), picture_seeds(2, 2, 1, None, generator)
    assert first != second
    assert first == list(range(first[0], first[0] + 4))
    assert first == picture_seeds(2, 2, 1, None, torch.Generator().manual_seed(3))
    assert all(0 <= seed < 2**32 + 3 for seed in first + second)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_other_libraries_are_seeds_and_counts(kind: Any) -> None:
    assert picture_seeds(2, 1, 1, seed=kind(7)) == picture_seeds(2, 1, 1, seed=[kind(7), kind(8)]) == [7, 8]
    assert [type(seed) for seed in picture_seeds(1, 1, 1, seed=kind(7))] == [int]
    assert picture_seeds(2, 1, 1, seed=np.array([7, 9], kind)) == picture_seeds(2, 1, 1, torch.tensor([7, 9])) == [7, 9]
    assert picture_seeds(1, kind(2), kind(1), seed=3) == [3, 4]
    check_sampling_options(np.float32(0.5), kind(5), np.float64(0.9), kind(2))


@pytest.mark.parametrize("kind", [list, tuple])
def test_one_generator_for_each_picture_gives_the_first_seed_of_its_candidates(kind: type) -> None:
    seeds = picture_seeds(2, 2, 2, None, kind(torch.Generator().manual_seed(number) for number in range(4)))
    assert len(set(seeds)) == 8
    assert [second - first for first, second in zip(seeds[::2], seeds[1::2], strict=True)] == [1] * 4
    alone = picture_seeds(1, 1, 2, None, [torch.Generator().manual_seed(2)])
    assert seeds[4:6] == alone


def test_without_seed_and_generator_the_global_generator_is_asked() -> None:
    torch.manual_seed(1)
    first = picture_seeds(1, 2, 1, None)
    assert picture_seeds(1, 2, 1, None) != first
    torch.manual_seed(1)
    assert picture_seeds(1, 2, 1, None) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "`seed` must be a whole number from 0 to .*, got -1"),
        ({"seed": 2**63}, "`seed` must be a whole number"),
        ({"seed": 2**63 - 2, "num_images_per_prompt": 2}, "`seed` must be a whole number"),
        ({"seed": True}, "`seed` must be a whole number .*, got True"),
        ({"seed": 1.0}, "`seed` must be a whole number .*, got 1.0"),
        ({"seed": [1]}, "has 1 seeds for 2 pictures"),
        ({"seed": [1, -1]}, "`seed` must be a whole number from 0 to .*, got -1"),
        ({"seed": 1, "generator": torch.Generator()}, "Please give `seed` or `generator`, not both"),
        ({"generator": [torch.Generator()] * 3}, "has 3 generators for 2 pictures"),
        ({"generator": []}, "has 0 generators for 2 pictures"),
        ({"generator": 5}, "must be a torch.Generator or a list of them, got 5"),
        ({"generator": [1, 2]}, r"must be a torch.Generator or a list of them, got \[1, 2\]"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` must be a whole number of at least 1, got 0"),
        ({"num_images_per_prompt": 1.5}, "`num_images_per_prompt` must be a whole number of at least 1, got 1.5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,  # not the objects' addresses
)
def test_bad_seeds_are_refused(options: dict[str, Any], message: str) -> None:
    arguments = {"num_captions": 2, "num_images_per_prompt": 1, "best_of": 1, "seed": None} | options
    with pytest.raises(ValueError, match=message) as error:
        picture_seeds(**arguments)
    assert "\n" not in str(error.value)


def test_the_largest_seed_can_be_used() -> None:
    largest = 2**63 - 2
    assert picture_seeds(1, 1, 1, seed=largest) == [largest]
    assert GumbelSampler([largest], TEXT_LENGTH).draw(torch.zeros(1, 3), 0) in (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "temperature",
            [0, 0.0, -1, float("nan"), INF, -INF, True, "1", None],
            r"above 0 \(from 1e-30 on\), got .* use\s`top_k=1`",
        ),
        ("top_k", [0, -1, True, False, 1.5, "5"], r"`top_k` must be a whole number of at least 1, got "),
        ("top_p", [0, -0.1, 1.5, float("nan"), INF, True, "0.9"], r"`top_p` must lie in \(0, 1\], got "),
        ("best_of", [0, -3, True, 2.0, None], "`best_of` must be a whole number of at least 1, got "),
    ],
)
def test_bad_options_are_refused_in_one_sentence_that_names_them(name: str, values: list, message: str) -> None:
    good = {"temperature": 1.0, "top_k": 100, "top_p": 1.0, "best_of": 1}
    for value in values:
        with pytest.raises(ValueError, match=message) as error:
            check_sampling_options(**good | {name: value})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", [{"top_k": None, "top_p": None}, {"temperature": 1e-3}, {"temperature": 1}, {"top_k": 1}, {"top_p": 1}]
)
def test_good_options_are_accepted(options: dict[str, Any]) -> None:
    check_sampling_options(**{"temperature": 1.0, "top_k": 100, "top_p": 1.0, "best_of": 1} | options)


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [
        (torch.full((32,), 70), r"shape \(captions, 32\), got \(32,\)"),
        (torch.full((2, 31), 70), r"got \(2, 31\)"),
        (torch.full((0, 32), 70), r"got \(0, 32\)"),
        (torch.full((1, 32), 63), "lie between 64 and 319, got 63 to 63"),  # the offset was forgotten
        (torch.full((1, 32), 320), "lie between 64 and 319, got 320 to 320"),  # another model's vocabulary
    ],
)
def test_ids_that_are_no_captions_of_this_model_are_refused(input_ids: torch.Tensor, message: str) -> None:
    config = PaiPainterConfig(vq_config=vqgan_config(), image_vocab_size=64, text_vocab_size=256)
    with pytest.raises(ValueError, match=message):
        check_captions(input_ids, config)
    check_captions(torch.tensor([[64] * 16 + [319] * 16]), config)


def test_a_recommendation_is_completed_but_not_changed() -> None:
    config = PaiPainterConfig(vq_config=vqgan_config(), image_vocab_size=64, text_vocab_size=256)
    completed = complete_generation_config(GenerationConfig(top_k=7, best_of=16, do_sample=True), config)
    assert (completed.max_length, completed.temperature, completed.best_of) == (48, 1.0, 16)
    assert (completed.top_k, completed.top_p, completed.do_sample) == (7, None, True)
    given = GenerationConfig(max_length=40, temperature=0.5, best_of=2)
    assert complete_generation_config(given, config).to_dict() == given.to_dict()
