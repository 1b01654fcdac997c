# SPDX-License-Identifier: Apache-2.0
"""`speed`: what is rounded, for how long rounded copies are kept, and what it says where it can't be had."""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from model_fixtures import expected, golden_painter

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterPipeline
from pai_painter.cpu.backend import _stamp
from pai_painter.cpu.speed import SPEEDS, PaintingSpeed, _warn_once, find_speed, has_bfloat16
from pai_painter.imaging.painting import PaintingOptions
from pai_painter.lora import add_lora

CAPTIONS = expected()["text_ids"]
CPU = torch.device("cpu")
BFLOAT16 = PaintingSpeed(dtype=torch.bfloat16)  # works everywhere, slowly where it is imitated
INT8 = PaintingSpeed(int8_rows=8)


@pytest.fixture
def painter() -> PaiPainterForImageGeneration:
    return golden_painter()


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})


def test_exact_is_the_default_and_rounds_nothing(painter: PaiPainterForImageGeneration) -> None:
    assert find_speed("exact", CPU).is_exact
    default = painter.generate_images(CAPTIONS, seed=0, top_k=1)
    assert torch.equal(default.image_tokens, expected()["greedy_codes"])
    assert torch.equal(painter.decode_images(default.image_tokens), painter.vqgan.decode(default.image_tokens))


@pytest.mark.parametrize("speed", [BFLOAT16, INT8, PaintingSpeed(torch.bfloat16, 2)], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_rounding_changes_little(painter: PaiPainterForImageGeneration, speed: PaintingSpeed, rows: int) -> None:
    exact = painter.generate_images(CAPTIONS[:rows], seed=0)
    rounded = painter.generate_images(CAPTIONS[:rows], seed=0, speed=speed)
    assert rounded.pixel_values.dtype == exact.pixel_values.dtype
    agreement = (exact.image_tokens == rounded.image_tokens).float().mean()
    assert agreement > 0.5
    pixels = painter.decode_images(exact.image_tokens, speed)
    assert (pixels - exact.pixel_values).abs().mean() < 0.02
    assert torch.equal(pixels, exact.pixel_values) == (speed.dtype is None)


@pytest.mark.parametrize("speed", [BFLOAT16, INT8], ids=str)
@pytest.mark.parametrize(
    "change",
    [lambda weight: weight.mul_(-3), lambda weight: weight.copy_(weight.flip(0)), lambda weight: weight[:2].mul_(-1)],
    ids=["all", "rows swapped", "some"],
)
def test_what_was_rounded_is_kept_until_the_weights_change(
    painter: PaiPainterForImageGeneration,
    speed: PaintingSpeed,
    change: Callable[[torch.Tensor], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pai_painter.cpu import backend as module

    made: list[int] = []
    writer = module.DecodingLoop
    monkeypatch.setattr(
        module, "DecodingLoop", lambda model, rows, speed: made.append(rows) or writer(model, rows, speed)
    )
    options: dict[str, Any] = {"seed": 0, "speed": speed}
    first = painter.generate_images(CAPTIONS, **options)
    assert torch.equal(painter.generate_images(CAPTIONS, **options).image_tokens, first.image_tokens)
    assert made == [3]
    # As peft merges adapters: PyTorch doesn't count what is written through `.data`.
    change(painter.lm_head.weight.data)
    change(painter.vqgan.post_quant_conv.weight.data)
    changed = painter.generate_images(CAPTIONS, **options)
    assert made == [3, 3]
    assert not torch.equal(changed.image_tokens, first.image_tokens)
    anew = golden_painter()
    anew.load_state_dict(painter.state_dict())
    fresh = anew.generate_images(CAPTIONS, **options)
    assert torch.equal(fresh.image_tokens, changed.image_tokens)
    assert torch.equal(fresh.pixel_values, changed.pixel_values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_smallest_change_is_noticed(painter: PaiPainterForImageGeneration, dtype: torch.dtype) -> None:
    """Also in half precision, in which the sum of many weights has hardly any digits."""
    norm = painter.to(dtype).model.norm
    norm.weight.data.fill_(1)
    before = _stamp(norm)
    assert _stamp(norm) == before
    norm.weight.data[0] += 0.0078125
    assert _stamp(norm) != before


def test_a_model_that_was_rounded_is_still_itself(painter: PaiPainterForImageGeneration, tmp_path: Any) -> None:
    before = {name: weight.clone() for name, weight in painter.state_dict().items()}
    exact = painter.generate_images(CAPTIONS, seed=0).image_tokens
    painter.generate_images(CAPTIONS, seed=0, speed=BFLOAT16)
    assert all(torch.equal(weight, before[name]) for name, weight in painter.state_dict().items())
    assert torch.equal(painter.generate_images(CAPTIONS, seed=0).image_tokens, exact)
    assert torch.equal(copy.deepcopy(painter).generate_images(CAPTIONS, seed=0).image_tokens, exact)
    painter.save_pretrained(tmp_path)
    assert torch.equal(type(painter).from_pretrained(tmp_path).generate_images(CAPTIONS, seed=0).image_tokens, exact)


def test_other_words_and_devices_are_refused(painter: PaiPainterForImageGeneration) -> None:
    with pytest.raises(ValueError, match="`speed` must be one of exact, balanced, fastest, got 'warp'"):
        painter.generate_images(CAPTIONS, speed="warp")  # type: ignore[arg-type]
    assert find_speed("exact", torch.device("cuda")).is_exact
    with pytest.raises(ValueError, match="'balanced' is for the CPU, and the model is on cuda:1: please load it there"):
        find_speed("balanced", torch.device("cuda:1"))


def test_imitated_bfloat16_is_refused_or_warned_of_before_the_work(
    old_processor: None, painter: PaiPainterForImageGeneration, caplog: pytest.LogCaptureFixture
) -> None:
    assert not has_bfloat16()
    with pytest.raises(ValueError, match="no bfloat16 arithmetic, so that `speed` 'balanced' would be slower"):
        painter.generate_images(CAPTIONS, speed="balanced")
    _warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="pai_painter"):
        assert find_speed(BFLOAT16, CPU) == BFLOAT16  # whoever gives settings gets them
        assert "emulating it takes longer than float32" in caplog.text
        found = find_speed("fastest", CPU)
    assert found.dtype is None
    assert found.int8_rows > 1000
    assert "it paints with int8 and float32" in caplog.text


def test_a_build_without_int8_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "engine", "none")
    with pytest.raises(ValueError, match="no int8 arithmetic: please use another `speed` than 'fastest'"):
        find_speed("fastest", CPU)
    assert find_speed("exact", CPU).is_exact


def test_threads_share_weights_and_nothing_else(painter: PaiPainterForImageGeneration) -> None:
    def paint(seed: int) -> torch.Tensor:
        return painter.generate_images(CAPTIONS, seed=seed, speed=INT8).image_tokens

    alone = [paint(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(paint, range(6)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_in_any_precision_and_mode(painter: PaiPainterForImageGeneration, dtype: torch.dtype) -> None:
    painter = painter.to(dtype)
    for rows in (1, 3):
        with torch.inference_mode():
            inside = painter.generate_images(CAPTIONS[:rows], seed=0, speed=INT8)
        outside = painter.generate_images(CAPTIONS[:rows], seed=0, speed=INT8)
        assert torch.equal(inside.image_tokens, outside.image_tokens)
        assert outside.pixel_values.dtype == dtype


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"int8_rows": -1}, "`int8_rows` must be a whole number, 0 for none, got -1"),
        ({"num_draft_tokens": 1.5}, "`num_draft_tokens` must be a whole number, 0 for none, got 1.5"),
        ({"dtype": torch.int8}, "`dtype` must be a floating-point type such as torch.bfloat16, got torch.int8"),
        ({"dtype": "bfloat16"}, "`dtype` must be a floating-point type such as torch.bfloat16, got 'bfloat16'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_speed(PaintingSpeed(**settings), CPU)
    with pytest.raises(ValueError, match="must be one of exact, balanced, fastest, got \\[\\]"):
        find_speed([], CPU)  # type: ignore[arg-type]


def test_an_adapter_that_is_not_merged_is_refused_before_the_work() -> None:
    pipe = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    add_lora(pipe.model, 2)
    assert PaintingOptions.for_model(pipe).speed == "exact"
    with pytest.raises(ValueError, match=r"Only `speed='exact'` goes with .*adapters that aren't merged"):
        PaintingOptions.for_model(pipe, speed="fastest")


def test_names_stand_for_what_the_documentation_says() -> None:
    assert list(SPEEDS) == ["exact", "balanced", "fastest"]
    assert all(speed.num_draft_tokens for speed in SPEEDS.values())
    assert SPEEDS["balanced"].int8_rows == 0
    assert SPEEDS["fastest"].int8_rows > 0
