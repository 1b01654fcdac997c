# SPDX-License-Identifier: Apache-2.0
"""From captions to codes and pixels: `generate` as transformers users know it, and `generate_images`."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import CODES, PAINTERS, TEXT_LENGTH, expected, golden_painter, vqgan_config
from transformers import AutoModel, GenerationConfig
from transformers.generation import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration
from pai_painter.cpu.decoding import is_as_built

CAPTIONS = expected()["text_ids"]
CACHES: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}, {"use_cache": False}]


@pytest.fixture(scope="module")
def painter() -> PaiPainterForImageGeneration:
    return golden_painter()


@pytest.fixture(scope="module", params=PAINTERS)
def golden(request: pytest.FixtureRequest) -> tuple[str, PaiPainterForImageGeneration]:
    return request.param, golden_painter(request.param)


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("folder", PAINTERS)
def test_the_likeliest_codes_are_easynlps(folder: str, attention: str, cache: dict[str, Any]) -> None:
    painter = golden_painter(folder, attn_implementation=attention)
    captions = expected(folder)["text_ids"]
    sequences = painter.generate(captions, do_sample=False, **cache)
    assert torch.equal(sequences[:, :TEXT_LENGTH], captions)
    assert torch.equal(sequences[:, TEXT_LENGTH:], expected(folder)["greedy_codes"])


def test_by_default_a_whole_picture_is_sampled(painter: PaiPainterForImageGeneration, tmp_path: Path) -> None:
    config = PaiPainterConfig(vq_config=vqgan_config(), image_vocab_size=64, text_vocab_size=256, hidden_size=24)
    new = PaiPainterForImageGeneration(config)
    painter.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (new, painter, AutoModel.from_pretrained(tmp_path)):
            assert model.generation_config.top_k == 100
            torch.manual_seed(0)
            sequences = model.generate(CAPTIONS)
            assert sequences.shape == (3, TEXT_LENGTH + CODES)
            assert sequences[:, TEXT_LENGTH:].max() < 64
            assert not torch.equal(sequences, model.generate(CAPTIONS))


@torch.no_grad()
def test_pads_are_attended_to_like_any_token(painter: PaiPainterForImageGeneration) -> None:
    """The first golden caption is half pads; no mask may be made of them on the way through `generate`."""
    pad = 64
    assert (CAPTIONS[0] == pad).sum() == TEXT_LENGTH // 2
    assert painter.generation_config.pad_token_id is None
    captions = torch.full_like(CAPTIONS, pad)
    output = painter.generate(captions, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits = painter(output.sequences[:, :-1]).logits[:, TEXT_LENGTH - 1 :]
    torch.testing.assert_close(torch.stack(output.logits, dim=1), logits, atol=1e-5, rtol=0)


def test_transformers_own_samplers_work(painter: PaiPainterForImageGeneration) -> None:
    torch.manual_seed(0)
    output = painter.generate(
        CAPTIONS, do_sample=True, temperature=0.8, top_k=5, num_return_sequences=2, max_new_tokens=4,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert output.sequences.shape == (6, TEXT_LENGTH + 4)
    assert torch.equal(output.sequences[::2, :TEXT_LENGTH], CAPTIONS)
    assert [int(row) for row in output.scores[0].isfinite().sum(-1)] == [5] * 6
    for step, scores in enumerate(output.scores):
        assert scores.gather(1, output.sequences[:, TEXT_LENGTH + step, None]).isfinite().all()


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_beams_find_codes_at_least_as_likely_as_greedy_ones(
    painter: PaiPainterForImageGeneration, cache: dict[str, Any]
) -> None:
    sequences = painter.generate(CAPTIONS, do_sample=False, num_beams=3, **cache)
    assert sequences.shape == (3, TEXT_LENGTH + CODES)
    greedy = torch.cat([CAPTIONS, expected()["greedy_codes"]], dim=1)
    assert (log_likelihood(painter, sequences) >= log_likelihood(painter, greedy) - 1e-4).all()


def test_a_streamer_gets_every_code_in_order(painter: PaiPainterForImageGeneration) -> None:
    class Recorder(BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    recorder = Recorder()
    sequences = painter.generate(CAPTIONS[:1], do_sample=False, streamer=recorder)
    assert recorder.ids == sequences[0].tolist()
    assert recorder.ended


def test_a_picture_that_was_begun_is_finished(painter: PaiPainterForImageGeneration) -> None:
    begun = torch.cat([CAPTIONS, expected()["greedy_codes"][:, :5]], dim=1)
    finished = painter.generate(begun, do_sample=False)
    assert torch.equal(finished[:, TEXT_LENGTH:], expected()["greedy_codes"])


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("length", [{"max_new_tokens": CODES + 1}, {"max_length": 60}], ids=str)
def test_more_codes_than_a_picture_has_are_refused(
    painter: PaiPainterForImageGeneration, length: dict[str, int], cache: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"lower `max_new_tokens` or `max_length`: \d+ ids are more than 48"):
        painter.generate(CAPTIONS, **length, **cache)


@torch.no_grad()
def log_likelihood(painter: PaiPainterForImageGeneration, sequences: torch.Tensor) -> torch.Tensor:
    """The mean over the codes, by a plain forward pass."""
    logits = painter(sequences[:, :-1]).logits[:, TEXT_LENGTH - 1 :]
    return logits.log_softmax(-1).gather(-1, sequences[:, TEXT_LENGTH:, None]).squeeze(-1).mean(-1)


def test_a_seed_gives_the_same_picture_again_and_another_seed_another(painter: PaiPainterForImageGeneration) -> None:
    first, again, other = (painter.generate_images(CAPTIONS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.image_tokens, again.image_tokens)
    assert torch.equal(first.pixel_values, again.pixel_values)
    assert not torch.equal(first.image_tokens, other.image_tokens)
    assert first.pixel_values.shape == (3, 3, 8, 8)
    assert first.seeds == [1, 2, 3]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}], ids=str)
def test_a_batch_has_the_pictures_of_each_caption_and_seed_alone(
    golden: tuple[str, PaiPainterForImageGeneration], options: dict[str, Any]
) -> None:
    folder, painter = golden
    captions = expected(folder)["text_ids"]
    together = painter.generate_images(captions, num_images_per_prompt=2, seed=40, **options)
    assert together.seeds == list(range(40, 46))
    for row, seed in enumerate(together.seeds):
        alone = painter.generate_images(captions[row // 2, None], seed=seed, **options)
        assert torch.equal(alone.image_tokens, together.image_tokens[row, None])
        torch.testing.assert_close(alone.pixel_values, together.pixel_values[row, None], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.scores, together.scores[row, None])


@pytest.mark.parametrize("cache", CACHES[1:], ids=str)
def test_pictures_do_not_depend_on_the_cache(
    golden: tuple[str, PaiPainterForImageGeneration], cache: dict[str, Any]
) -> None:
    folder, painter = golden
    captions = expected(folder)["text_ids"]
    usual = painter.generate_images(captions, seed=3, best_of=2)
    other = painter.generate_images(captions, seed=3, best_of=2, **cache)
    assert torch.equal(usual.image_tokens, other.image_tokens)
    torch.testing.assert_close(usual.scores, other.scores)


def test_top_k_1_paints_the_likeliest_codes(golden: tuple[str, PaiPainterForImageGeneration]) -> None:
    folder, painter = golden
    painted = painter.generate_images(expected(folder)["text_ids"], seed=9, top_k=1)
    assert torch.equal(painted.image_tokens, expected(folder)["greedy_codes"])
    torch.testing.assert_close(painted.pixel_values, expected(folder)["generated"], atol=1e-5, rtol=0)


def test_the_score_is_the_mean_log_likelihood_whatever_the_sampling(painter: PaiPainterForImageGeneration) -> None:
    painted = painter.generate_images(CAPTIONS, seed=0, temperature=0.5, top_k=10, top_p=0.9)
    sequences = torch.cat([CAPTIONS, painted.image_tokens], dim=1)
    torch.testing.assert_close(painted.scores, log_likelihood(painter, sequences), atol=1e-5, rtol=0)


def test_best_of_keeps_the_likeliest_and_says_which_seed_it_had(painter: PaiPainterForImageGeneration) -> None:
    best = painter.generate_images(CAPTIONS, num_images_per_prompt=2, best_of=4, seed=100)
    candidates = painter.generate_images(CAPTIONS, num_images_per_prompt=8, seed=100)
    assert candidates.seeds == list(range(100, 124))
    sequences = torch.cat([CAPTIONS.repeat_interleave(8, dim=0), candidates.image_tokens], dim=1)
    scores = log_likelihood(painter, sequences).view(6, 4)
    torch.testing.assert_close(best.scores, scores.amax(1), atol=1e-5, rtol=0)
    for picture, candidate in enumerate(scores.argmax(1).tolist()):
        assert best.seeds[picture] == 100 + picture * 4 + candidate
        assert torch.equal(best.image_tokens[picture], candidates.image_tokens[4 * picture + candidate])
        alone = painter.generate_images(CAPTIONS[picture // 2, None], seed=best.seeds[picture], best_of=1)
        assert torch.equal(alone.image_tokens[0], best.image_tokens[picture])
    assert len(set(scores.argmax(1).tolist())) > 1  # else the test would say little


@pytest.mark.parametrize("best_of", [1, 3])
def test_the_vqgan_decodes_the_chosen_pictures_alone(painter: PaiPainterForImageGeneration, best_of: int) -> None:
    batches: list[int] = []
    handle = painter.vqgan.decoder.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    try:
        painter.generate_images(CAPTIONS, num_images_per_prompt=2, best_of=best_of, seed=0)
        assert batches == [4, 2]  # a few at a time, and none twice
        codes_only = painter.generate_images(CAPTIONS, seed=0, decode=False)
        assert batches == [4, 2]
    finally:
        handle.remove()
    assert codes_only.pixel_values is None
    assert torch.equal(codes_only.image_tokens, painter.generate_images(CAPTIONS, seed=0).image_tokens)


def test_generators_stand_for_seeds(painter: PaiPainterForImageGeneration) -> None:
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    painted = painter.generate_images(CAPTIONS, generator=generators)
    assert len(set(painted.seeds)) == 3
    for row, seed in enumerate(painted.seeds):
        assert torch.equal(
            painter.generate_images(CAPTIONS[row, None], seed=seed).image_tokens[0], painted.image_tokens[row]
        )
    single = painter.generate_images(CAPTIONS, generator=torch.Generator().manual_seed(5))
    assert [seed - single.seeds[0] for seed in single.seeds] == [0, 1, 2]
    assert torch.equal(single.image_tokens, painter.generate_images(CAPTIONS, seed=single.seeds[0]).image_tokens)


def test_options_left_out_are_the_models_recommendation() -> None:
    painter = golden_painter(generation_config=GenerationConfig(top_k=3, temperature=0.5, best_of=2))
    usual = painter.generate_images(CAPTIONS, seed=0)
    explicit = golden_painter().generate_images(CAPTIONS, seed=0, top_k=3, temperature=0.5, best_of=2)
    assert torch.equal(usual.image_tokens, explicit.image_tokens)
    assert usual.seeds == explicit.seeds
    otherwise = painter.generate_images(CAPTIONS, seed=0, top_k=64, temperature=1.0, best_of=1)
    assert not torch.equal(usual.image_tokens, otherwise.image_tokens)


def test_stopping_criteria_see_every_step(painter: PaiPainterForImageGeneration) -> None:
    lengths: list[int] = []

    class Watch(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            lengths.append(input_ids.shape[1])
            return torch.zeros(len(input_ids), dtype=torch.bool)

    painter.generate_images(CAPTIONS, seed=0, stopping_criteria=[Watch()])
    assert lengths == list(range(TEXT_LENGTH + 1, TEXT_LENGTH + CODES + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "`temperature` must be a number above 0"),
        ({"temperature": 1e-38}, "`temperature` must be a number above 0 \\(from 1e-30 on\\), got 1e-38"),
        ({"top_k": 0}, "`top_k` must be a whole number"),
        ({"top_p": 1.5}, "`top_p` must lie in"),
        ({"best_of": 0}, "`best_of` must be a whole number"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` must be a whole number"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"seed": 0, "generator": torch.Generator()}, "not both"),
        ({"input_ids": CAPTIONS[:, :5]}, r"captions of shape \(captions, 32\)"),
        ({"input_ids": CAPTIONS - 64}, "The ids of captions lie between 64 and 319"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,  # not the objects' addresses
)
def test_bad_options_are_refused_before_anything_is_painted(
    painter: PaiPainterForImageGeneration, options: dict[str, Any], message: str
) -> None:
    calls: list[int] = []
    handle = painter.model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        painter.generate_images(**{"input_ids": CAPTIONS} | options)
    handle.remove()
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_paints_with_the_same_rules(dtype: torch.dtype) -> None:
    painter = golden_painter(dtype=dtype)
    assert {weight.dtype for weight in painter.parameters()} == {dtype}
    painted = painter.generate_images(CAPTIONS, seed=0, best_of=2)
    again = painter.generate_images(CAPTIONS, seed=0, best_of=2)
    assert torch.equal(painted.image_tokens, again.image_tokens)
    assert painted.pixel_values.dtype == dtype
    assert painted.scores.dtype == torch.float32
    assert painted.scores.isfinite().all()


@pytest.mark.parametrize("where", ["config", "generation_config", "both"])
@pytest.mark.parametrize("names", [["pad_token_id"], ["pad_token_id", "bos_token_id", "eos_token_id"]], ids=len)
def test_ids_of_pads_and_ends_change_no_token(where: str, names: list[str]) -> None:
    """`Trainer` copies them from the tokenizer; 0 is an image token, 64 the pad that captions are filled up with."""
    usual, ids = golden_painter(), CAPTIONS
    begun = torch.cat([CAPTIONS, torch.zeros(3, 4, dtype=torch.long)], 1)  # image token 0, four times
    greedy = [usual.generate(start, do_sample=False, **cache) for start in (ids, begun) for cache in CACHES]
    drawn = usual.generate_images(CAPTIONS, seed=1)
    common = int(drawn.image_tokens.mode().values[0])
    for value in (0, 64, common):
        painter = golden_painter()
        for holder in (painter.config, painter.generation_config):
            if where in ("both", "config" if holder is painter.config else "generation_config"):
                for name in names:
                    setattr(holder, name, value)
        found = [painter.generate(start, do_sample=False, **cache) for start in (ids, begun) for cache in CACHES]
        assert all(map(torch.equal, found, greedy))
        assert is_as_built(painter)
        assert torch.equal(painter.generate_images(CAPTIONS, seed=1).image_tokens, drawn.image_tokens)
        by_generate = painter.generate_images(CAPTIONS, seed=1, use_cache=True)
        assert torch.equal(by_generate.image_tokens, drawn.image_tokens)
        with pytest.raises(ValueError, match="No token ends a picture: please leave `eos_token_id` out"):
            painter.generate(CAPTIONS, eos_token_id=value)


def test_without_a_cache_the_same_tokens_are_written(golden: tuple[str, PaiPainterForImageGeneration]) -> None:
    folder, painter = golden
    captions = expected(folder)["text_ids"]
    uncached = painter.generate(captions, do_sample=False, use_cache=False)
    assert torch.equal(uncached[:, TEXT_LENGTH:], expected(folder)["greedy_codes"])


def test_transition_scores_are_the_log_probabilities_of_the_tokens(painter: PaiPainterForImageGeneration) -> None:
    outputs = painter.generate(
        CAPTIONS, do_sample=False, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    scores = painter.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
    assert scores.shape == (3, CODES)
    torch.testing.assert_close(scores.mean(1), log_likelihood(painter, outputs.sequences), atol=1e-5, rtol=0)
    beams = painter.generate(CAPTIONS, do_sample=False, num_beams=3, return_dict_in_generate=True, output_scores=True)
    scores = painter.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    torch.testing.assert_close(scores.mean(1), beams.sequences_scores, atol=1e-5, rtol=0)


def test_an_assistant_drafts_the_same_greedy_tokens(painter: PaiPainterForImageGeneration) -> None:
    assistant = golden_painter()
    with torch.no_grad():
        assistant.model.layers[1].mlp.fc_2.weight.mul_(0.5)
    for caption, tokens in zip(CAPTIONS, expected()["greedy_codes"], strict=True):
        drafted = painter.generate(caption[None], do_sample=False, assistant_model=assistant)
        assert torch.equal(drafted[0, TEXT_LENGTH:], tokens)


def test_tokens_of_pictures_and_back(painter: PaiPainterForImageGeneration) -> None:
    tokens = painter.get_image_tokens(expected()["image"])
    assert torch.equal(tokens, expected()["codes"])
    torch.testing.assert_close(painter.decode_image_tokens(tokens), expected()["reconstruction"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", [{}, {"use_cache": True}], ids=["loop", "generate"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_not_painted(way: dict[str, Any], number: float) -> None:
    painter = golden_painter()
    with torch.no_grad():
        painter.model.layers[0].mlp.fc_2.bias[3] = number
    with pytest.raises(ValueError, match="The model's logits are not finite: its weights are damaged"):
        painter.generate_images(CAPTIONS, seed=1, **way)
