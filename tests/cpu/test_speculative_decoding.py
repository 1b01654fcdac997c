# SPDX-License-Identifier: Apache-2.0
"""Codes guessed ahead: whatever is guessed, what is written is what the ordinary writer writes."""

from typing import Any

import pytest
import torch
from model_fixtures import CODES, PAINTERS, TEXT_LENGTH, expected, golden_painter

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterPipeline
from pai_painter.cpu.decoding import DecodingLoop
from pai_painter.cpu.speculative_decoding import SpeculativeDecodingLoop
from pai_painter.cpu.speed import PaintingSpeed, find_speed
from pai_painter.model.sampling_pai_painter import GumbelSampler, truncate_logits

CAPTIONS = expected()["text_ids"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 20, "top_p": 0.9, "temperature": 0.7},
    {"temperature": 1.5, "top_p": 0.95},
]


@pytest.fixture
def painter() -> PaiPainterForImageGeneration:
    return golden_painter()


@pytest.fixture(scope="module")
def demo() -> PaiPainterPipeline:
    pipe = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guessing(ahead: int, **options: Any) -> PaintingSpeed:
    return PaintingSpeed(num_draft_tokens=ahead, **options)


@pytest.mark.parametrize("ahead", [*range(1, 9), CODES - 1, CODES, 40])
@pytest.mark.parametrize("folder", PAINTERS)
def test_the_codes_are_the_ordinary_writers(folder: str, ahead: int) -> None:
    painter, captions = golden_painter(folder), expected(folder)["text_ids"]
    ordinary, guesser = DecodingLoop(painter, 1, PaintingSpeed()), SpeculativeDecodingLoop(painter, guessing(ahead))
    for options in OPTIONS:
        for seed, caption in enumerate(captions):
            one, other = GumbelSampler([seed], TEXT_LENGTH, **options), GumbelSampler([seed], TEXT_LENGTH, **options)
            assert torch.equal(guesser.write(caption[None], 1, one), ordinary.write(caption[None], 1, other))
            torch.testing.assert_close(one.log_likelihood, other.log_likelihood, atol=1e-4, rtol=0)
            assert guesser.caches == []


@pytest.mark.parametrize("folder", PAINTERS)
def test_the_likeliest_codes_are_easynlps(folder: str) -> None:
    painter, greedy = golden_painter(folder), expected(folder)["greedy_codes"]
    for caption, codes in zip(expected(folder)["text_ids"], greedy, strict=True):
        painted = painter.generate_images(caption[None], top_k=1, speed=guessing(7), decode=False)
        assert torch.equal(painted.image_tokens[0], codes)


@pytest.mark.parametrize(("ahead", "at_least"), [(1, 1.3), (3, 1.8), (7, 2.4)])
def test_the_demo_model_writes_several_codes_in_a_pass(demo: PaiPainterPipeline, ahead: int, at_least: float) -> None:
    ordinary, guesser = (
        DecodingLoop(demo.model, 1, PaintingSpeed()),
        SpeculativeDecodingLoop(demo.model, guessing(ahead)),
    )
    codes = passes = 0
    for seed, caption in enumerate(["红苹果", "一只熊猫"]):
        ids = demo.processor(text=caption, return_tensors="pt")["input_ids"]
        one, other = (GumbelSampler([seed], ids.shape[1], temperature=0.6, top_k=100) for _ in range(2))
        written = guesser.write(ids, 1, one)
        assert torch.equal(written, ordinary.write(ids, 1, other))
        torch.testing.assert_close(one.log_likelihood, other.log_likelihood, atol=1e-3, rtol=0)
        codes, passes = codes + written.shape[1], passes + guesser.passes
    assert codes / passes > at_least


def test_the_pipeline_paints_the_same_picture_and_tells_each_code_once(demo: PaiPainterPipeline) -> None:
    told: list[tuple[int, list[int]]] = []

    def callback(pipe: Any, step: int, timestep: int, given: dict[str, torch.Tensor]) -> dict:
        told.append((step, given["image_tokens"][0].tolist()))
        return {}

    options: dict[str, Any] = {"seed": 3, "best_of": 1, "output_type": "latent"}
    guessed = demo("红苹果", speed=guessing(7), callback_on_step_end=callback, **options)
    ordinary = demo("红苹果", **options)
    codes = ordinary.images[0].tolist()
    assert guessed.images[0].tolist() == codes
    assert guessed.scores == pytest.approx(ordinary.scores, abs=1e-5)
    assert told == [(step, codes[: step + 1]) for step in range(len(codes))]


@pytest.mark.parametrize("stop_at", [1, 5, CODES])
def test_a_stop_within_right_guesses_counts_no_code_behind_it(
    painter: PaiPainterForImageGeneration, stop_at: int
) -> None:
    told: list[int] = []

    def stop(ids: torch.Tensor) -> bool:
        told.append(ids.shape[1] - TEXT_LENGTH)
        return told[-1] == stop_at

    one, other = GumbelSampler([4], TEXT_LENGTH), GumbelSampler([4], TEXT_LENGTH)
    begun = SpeculativeDecodingLoop(painter, guessing(6)).write(CAPTIONS[:1], 1, one, [stop])
    assert told == list(range(1, stop_at + 1))
    told.clear()
    assert torch.equal(begun, DecodingLoop(painter, 1, PaintingSpeed()).write(CAPTIONS[:1], 1, other, [stop]))
    torch.testing.assert_close(one.log_likelihood, other.log_likelihood, atol=1e-5, rtol=0)


class Told(SpeculativeDecodingLoop):
    """Guesses what it was told to, so that passes can be counted."""

    def __init__(self, painter: PaiPainterForImageGeneration, ahead: int, guesses: list[int]):
        super().__init__(painter, guessing(ahead))
        self.guesses = guesses

    def _draft(self, drawn: torch.Tensor, most: int) -> torch.Tensor:
        assert len(drawn) >= min(most, self.num_draft_tokens)
        return torch.tensor(self.guesses[CODES - most :][: self.num_draft_tokens])


@pytest.mark.parametrize("ahead", [1, 2, 4, 20])
def test_right_guesses_save_passes_and_wrong_ones_cost_none(painter: PaiPainterForImageGeneration, ahead: int) -> None:
    codes = DecodingLoop(painter, 1, PaintingSpeed()).write(CAPTIONS[:1], 1, GumbelSampler([8], TEXT_LENGTH))
    right = codes[0].tolist()
    wrong = [(code + 1) % 64 for code in right]
    mixed = [*right[:5], wrong[5], *right[6:9], wrong[9], wrong[10], *right[11:]]
    passes = []
    for guesses in (right, wrong, mixed):
        writer = Told(painter, ahead, guesses)
        assert torch.equal(writer.write(CAPTIONS[:1], 1, GumbelSampler([8], TEXT_LENGTH)), codes)
        passes.append(writer.passes)
    assert passes[0] == 1 + -(-(CODES - 1) // (ahead + 1))  # the caption's pass gives the first code
    assert passes[1] == CODES
    assert passes[0] <= passes[2] < CODES


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_looking_ahead_draws_nothing(options: dict[str, Any]) -> None:
    logits = 3 * torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    looking, ordinary = GumbelSampler([6], TEXT_LENGTH, **options), GumbelSampler([6], TEXT_LENGTH, **options)
    wanted = torch.cat([ordinary.draw(row[None], position) for position, row in enumerate(logits)])
    for start in (0, 3, 1):  # in any order
        assert torch.equal(looking.draw_ahead(logits[start:], start, 0), wanted[start:])
    further = looking.draw_ahead(logits, 0, 2)
    assert torch.equal(further[:5], wanted)
    assert torch.equal(further[5:], torch.cat([looking.draw(logits[-1:], position) for position in (5, 6)]))
    looking.log_likelihood.zero_()
    looking.draw_ahead(logits, 0, 3)
    assert looking.log_likelihood == 0
    looking.accept(logits, wanted)
    torch.testing.assert_close(looking.log_likelihood, ordinary.log_likelihood)


class Chain(SpeculativeDecodingLoop):
    """Over a model of four codes, each of which depends on the one before, and nothing else."""

    table = 1.5 * torch.randn(5, 4, generator=torch.Generator().manual_seed(2))  # at first, then after each code

    def _begin(self, captions: torch.Tensor, copies: int) -> torch.Tensor:
        return self.table[:1]

    def _all_logits(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        return self.table[1 + ids[0]]


def test_what_is_written_by_guessing_follows_the_distribution(painter: PaiPainterForImageGeneration) -> None:
    """Chi-square of three codes in a row over 3,000 seeds; these are fixed, so that it holds always or never."""
    draws, options = 3_000, {"temperature": 0.9, "top_k": 3}
    writer = Chain(painter, guessing(2))
    counts, passes = torch.zeros(4, 4, 4, dtype=torch.float64), 0
    for seed in range(draws):
        stop = [lambda ids: ids.shape[1] == TEXT_LENGTH + 3]
        codes = writer.write(CAPTIONS[:1], 1, GumbelSampler([seed], TEXT_LENGTH, **options), stop)
        counts[tuple(codes[0].tolist())] += 1
        passes += writer.passes
    assert 2 < passes / draws < 3  # with guesses both right and wrong
    kept, tokens = truncate_logits(Chain.table, **options)
    chances = torch.zeros_like(Chain.table).scatter(-1, tokens, kept.softmax(-1)).double()
    wanted = draws * torch.einsum("a,ab,bc->abc", chances[0], chances[1:], chances[1:])
    assert counts[wanted == 0].sum() == 0
    counts, wanted = counts[wanted > 5], wanted[wanted > 5]  # with fewer, chi-square is no guide
    assert wanted.sum() > 0.9 * draws
    statistic = ((counts - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    assert float(torch.special.gammaincc(freedom, statistic / 2)) > 1e-3, (counts, wanted)


@pytest.mark.parametrize("rounding", [{"int8_rows": 8}, {"dtype": torch.bfloat16}], ids=str)
def test_rounded_models_num_draft_tokens_too(painter: PaiPainterForImageGeneration, rounding: dict[str, Any]) -> None:
    same = total = 0
    for seed, caption in enumerate(CAPTIONS):
        options: dict[str, Any] = {"seed": seed, "decode": False}
        guessed = painter.generate_images(caption[None], speed=guessing(5, **rounding), **options).image_tokens
        ordinary = painter.generate_images(caption[None], speed=PaintingSpeed(**rounding), **options).image_tokens
        same, total = same + int((guessed == ordinary).sum()), total + CODES
    assert same > total / 2  # what rows do to the last bit of a sum, rounding makes larger


def test_several_pictures_are_written_without_guesses(painter: PaiPainterForImageGeneration) -> None:
    guessed = painter.generate_images(CAPTIONS, seed=1, speed=guessing(3)).image_tokens
    assert torch.equal(guessed, painter.generate_images(CAPTIONS, seed=1, speed=PaintingSpeed()).image_tokens)
    with pytest.raises(ValueError, match="for one picture at a time, got 2"):
        SpeculativeDecodingLoop(painter, guessing(3)).write(CAPTIONS[:1], 2, GumbelSampler([0, 1], TEXT_LENGTH))


def test_guessing_rounds_nothing_and_needs_a_number() -> None:
    cpu = torch.device("cpu")
    assert find_speed(guessing(3), cpu).is_exact
    assert find_speed(guessing(3), torch.device("cuda")).num_draft_tokens == 3  # passed over: `generate` paints there
    with pytest.raises(ValueError, match="`num_draft_tokens` must be a whole number, 0 for none, got -1"):
        find_speed(guessing(-1), cpu)


def test_what_generate_paints_is_painted_without_guesses(painter: PaiPainterForImageGeneration) -> None:
    options: dict[str, Any] = {"seed": 1, "decode": False}
    generated = painter.generate_images(CAPTIONS[:1], speed=guessing(3), use_cache=True, **options)
    assert torch.equal(generated.image_tokens, painter.generate_images(CAPTIONS[:1], **options).image_tokens)


def test_regression_guard_operator_calls_of_a_pass(painter: PaiPainterForImageGeneration) -> None:
    with torch.profiler.profile() as profile:
        painter.generate_images(CAPTIONS[:1], seed=0, top_k=10, decode=False)  # by default
    calls = {event.key: event.count for event in profile.key_averages()}
    layers = painter.config.num_hidden_layers
    passes = calls["aten::scaled_dot_product_attention"] / layers
    assert passes < CODES
    assert calls["mkldnn::_linear_pointwise"] == passes * (4 * layers + 1)
    assert calls["aten::topk"] == passes  # tokens and guesses are drawn together
