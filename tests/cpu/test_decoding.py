# SPDX-License-Identifier: Apache-2.0
"""The loop that writes codes on the CPU: it must write what `generate` writes."""

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from model_fixtures import CODES, PAINTERS, TEXT_LENGTH, expected, golden_painter, vqgan_config
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration
from pai_painter.cpu.decoding import DecodingLoop, is_as_built
from pai_painter.cpu.speed import SPEEDS, PaintingSpeed
from pai_painter.model.modeling_pai_painter import PaiPainterAttention, PaiPainterMLP
from pai_painter.model.sampling_pai_painter import GumbelSampler

CAPTIONS = expected()["text_ids"]
EXACT = SPEEDS["exact"]


@pytest.fixture
def painter() -> PaiPainterForImageGeneration:
    return golden_painter()


def by_generate(painter: PaiPainterForImageGeneration, captions: torch.Tensor, **options: Any) -> Any:
    """An option of `generate` leads there."""
    return painter.generate_images(captions, use_cache=True, **options)


@pytest.mark.parametrize("rows", [1, 3], ids=["plain", "packed"])
@pytest.mark.parametrize("folder", PAINTERS)
def test_the_likeliest_codes_are_easynlps(folder: str, rows: int) -> None:
    painter, captions = golden_painter(folder), expected(folder)["text_ids"]
    for start in range(0, len(captions), rows):
        chunk = captions[start : start + rows]
        written = DecodingLoop(painter, rows, EXACT).write(
            chunk, 1, GumbelSampler([0] * len(chunk), TEXT_LENGTH, top_k=1)
        )
        assert torch.equal(written, expected(folder)["greedy_codes"][start : start + rows])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_images_per_prompt": 2, "best_of": 2},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"top_k": 100, "seed": [7, 3, 2**40]},
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_same_seeds_give_the_codes_of_generate(attention: str, options: dict[str, Any]) -> None:
    painter = golden_painter(attn_implementation=attention)
    options = {"seed": 5, **options}
    written, generated = painter.generate_images(CAPTIONS, **options), by_generate(painter, CAPTIONS, **options)
    assert torch.equal(written.image_tokens, generated.image_tokens)
    assert written.seeds == generated.seeds
    torch.testing.assert_close(written.scores, generated.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(written.pixel_values, generated.pixel_values)


@pytest.mark.parametrize("num_unmasked", [0, 3, TEXT_LENGTH])
@pytest.mark.parametrize(("width", "heads", "act"), [(24, 3, "gelu"), (32, 1, "relu")])
def test_other_sizes_and_prefix_masks(width: int, heads: int, act: str, num_unmasked: int) -> None:
    torch.manual_seed(0)
    config = PaiPainterConfig(
        vq_config=vqgan_config(), image_vocab_size=64, text_vocab_size=256, text_length=TEXT_LENGTH, hidden_size=width,
        num_hidden_layers=3, num_attention_heads=heads, num_unmasked=num_unmasked, hidden_act=act,
    )  # fmt: skip
    painter = PaiPainterForImageGeneration(config).eval()
    for parameter in painter.parameters():  # away from the start, at which all captions look alike
        nn.init.normal_(parameter, std=0.6)
    captions = torch.randint(64, 320, (3, TEXT_LENGTH))
    written = painter.generate_images(captions, seed=[1, 2, 3], decode=False)
    assert torch.equal(written.image_tokens, by_generate(painter, captions, seed=[1, 2, 3], decode=False).image_tokens)
    assert len(set(map(tuple, written.image_tokens.tolist()))) > 1


@torch.no_grad()
def test_the_logits_of_each_step_are_the_models(painter: PaiPainterForImageGeneration) -> None:
    seen: list[torch.Tensor] = []

    class Recorder(GumbelSampler):
        def draw(self, scores: torch.Tensor, position: int) -> torch.Tensor:
            seen.append(scores)
            return super().draw(scores, position)

    codes = DecodingLoop(painter, 3, EXACT).write(CAPTIONS, 1, Recorder([1, 2, 3], TEXT_LENGTH))
    logits = painter(torch.cat([CAPTIONS, codes], 1)[:, :-1]).logits[:, TEXT_LENGTH - 1 :]
    torch.testing.assert_close(torch.stack(seen, 1), logits, atol=1e-5, rtol=0)


def test_stopping_criteria_see_every_code_and_end_the_painting(painter: PaiPainterForImageGeneration) -> None:
    told: list[torch.Tensor] = []

    def stop_at_five(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        told.append(ids.clone())
        return torch.full((len(ids),), ids.shape[1] == TEXT_LENGTH + 5)

    def some(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.arange(len(ids)) == 0  # one row wants to stop, but the others go on

    whole = painter.generate_images(CAPTIONS, seed=0, decode=False).image_tokens
    begun = painter.generate_images(CAPTIONS, seed=0, decode=False, stopping_criteria=[some, stop_at_five]).image_tokens
    assert torch.equal(begun, whole[:, :5])
    assert [ids.shape[1] - TEXT_LENGTH for ids in told] == [1, 2, 3, 4, 5]
    assert torch.equal(told[-1], torch.cat([CAPTIONS, begun], 1))


def test_captions_share_the_prefill_of_their_pictures(painter: PaiPainterForImageGeneration) -> None:
    batches: list[tuple[int, ...]] = []
    writer = DecodingLoop(painter, 12, EXACT)
    logits = writer._logits
    writer._logits = lambda ids, start: batches.append(tuple(ids.shape)) or logits(ids, start)  # type: ignore
    codes = writer.write(CAPTIONS, 4, GumbelSampler(list(range(12)), TEXT_LENGTH))
    assert batches == [(3, TEXT_LENGTH)] + [(12, 1)] * (CODES - 1)
    assert torch.equal(codes, painter.generate_images(CAPTIONS, 4, seed=0).image_tokens)
    assert writer.caches == []  # nothing is held between pictures


class Wrapped(nn.Linear):
    """As adapters and quantisers replace layers."""


def wrap(painter: PaiPainterForImageGeneration) -> None:
    layer = painter.model.layers[1].mlp
    old, layer.fc_1 = layer.fc_1, Wrapped(layer.fc_1.in_features, layer.fc_1.out_features)
    layer.fc_1.load_state_dict(old.state_dict())


def remove_a_layer(painter: PaiPainterForImageGeneration) -> None:
    painter.model.layers[0].mlp.fc_1 = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        wrap,
        remove_a_layer,
        lambda painter: painter.train(),
        lambda painter: painter.register_forward_pre_hook(lambda *inputs: None),
        lambda painter: painter.model.layers[1].attn.register_forward_hook(lambda *inputs: None),
        lambda painter: add_hook_to_module(painter.model.layers[0], ModelHook()),  # accelerate's, for offloading
        lambda painter: apply_group_offloading(painter, "cpu", "cpu", num_blocks_per_group=1),  # diffusers'
        lambda painter: setattr(painter.generation_config, "repetition_penalty", 1.5),
        lambda painter: painter.set_attn_implementation("flex_attention"),
        lambda painter: painter.to("meta"),
    ],
)
def test_whatever_was_changed_goes_through_generate(painter: PaiPainterForImageGeneration, change: Any) -> None:
    assert is_as_built(painter)
    change(painter)
    assert not is_as_built(painter)


class OwnForward(PaiPainterForImageGeneration):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = -outputs.logits
        return outputs


class OwnAttention(PaiPainterAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        attended, weights = super().forward(*args, **kwargs)
        return -attended, weights


def replace_attention(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = OwnAttention(painter.config, 1)
    attention.load_state_dict(painter.model.layers[1].attn.state_dict())
    painter.model.layers[1].attn = attention


def patch_a_class(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PaiPainterMLP.forward
    monkeypatch.setattr(PaiPainterMLP, "forward", lambda self, hidden: -forward(self, hidden))


def patch_torch(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, hidden: forward(self, hidden).flip(-1))


def patch_the_registry(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def other(*args: Any, **kwargs: Any) -> Any:
        attended, weights = attention(*args, **kwargs)
        return attended.flip(-1), weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", other)


def replace_a_norm(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    painter.model.layers[0].ln_2 = nn.RMSNorm(painter.config.hidden_size)


def replace_an_activation(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    painter.model.layers[0].mlp.act = nn.Tanh()


def scale_attention(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    painter.model.layers[0].attn.scaling = 3.0


def take_a_subclass(painter: PaiPainterForImageGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    painter.__class__ = OwnForward


@pytest.mark.parametrize(
    "change",
    [
        *(replace_attention, patch_a_class, patch_torch, patch_the_registry, replace_a_norm, replace_an_activation),
        *(scale_attention, take_a_subclass),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_what_forward_says_is_painted(
    painter: PaiPainterForImageGeneration, change: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = CAPTIONS[:rows]
    before = painter.generate_images(captions, seed=1, top_k=1, decode=False).image_tokens
    change(painter, monkeypatch)
    painted = painter.generate_images(captions, seed=1, top_k=1, decode=False).image_tokens
    assert not torch.equal(painted, before)
    logits = painter(torch.cat([captions, painted], 1)).logits[:, TEXT_LENGTH - 1 : -1]
    assert torch.equal(logits.argmax(-1), painted)


def test_a_subclass_that_computes_the_same_is_as_fast() -> None:
    class Named(PaiPainterForImageGeneration):
        """Another name, the same `forward`."""

    painter = golden_painter()
    painter.__class__ = Named
    assert is_as_built(painter)


def test_under_autocast_generate_paints_as_it_always_did(painter: PaiPainterForImageGeneration) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_as_built(painter)
        painted = painter.generate_images(CAPTIONS, seed=0).image_tokens
        assert torch.equal(painted, by_generate(painter, CAPTIONS, seed=0).image_tokens)


def test_settings_for_generate_are_obeyed(painter: PaiPainterForImageGeneration) -> None:
    painter.generation_config.suppress_tokens = list(range(32))
    painted = painter.generate_images(CAPTIONS, seed=0).image_tokens
    assert painted.min() >= 32


def test_a_replaced_layer_is_not_passed_over(painter: PaiPainterForImageGeneration) -> None:
    before = painter.generate_images(CAPTIONS, seed=0).image_tokens
    wrap(painter)
    assert torch.equal(painter.generate_images(CAPTIONS, seed=0).image_tokens, before)
    with torch.no_grad():
        painter.model.layers[1].mlp.fc_1.weight.mul_(-1)
    assert not torch.equal(painter.generate_images(CAPTIONS, seed=0).image_tokens, before)
    with pytest.raises(ValueError, match=r"Only `speed='exact'` goes with .*adapters"):
        painter.generate_images(CAPTIONS, speed="fastest")


def test_weights_are_read_anew_for_each_picture(painter: PaiPainterForImageGeneration) -> None:
    for rows in (1, 3):
        before = painter.generate_images(CAPTIONS[:rows], seed=0).image_tokens
        with torch.no_grad():
            painter.model.layers[0].mlp.fc_2.weight.mul_(-3)
        after = painter.generate_images(CAPTIONS[:rows], seed=0).image_tokens
        assert not torch.equal(before, after)
        assert torch.equal(after, by_generate(painter, CAPTIONS[:rows], seed=0).image_tokens)


@pytest.mark.parametrize("speed", [EXACT, PaintingSpeed(int8_rows=8), PaintingSpeed(dtype=torch.bfloat16)], ids=str)
def test_neighbours_change_nothing_in_a_batch_of_one_shape(
    painter: PaiPainterForImageGeneration, speed: PaintingSpeed
) -> None:
    """Exactly: the same numbers, whatever the other captions and seeds are."""
    others = CAPTIONS.roll(1, 0)
    others[1] = CAPTIONS[1]
    one = painter.generate_images(CAPTIONS, seed=[1, 2, 3], speed=speed)
    two = painter.generate_images(others, seed=[9, 2, 8], speed=speed)
    assert torch.equal(one.image_tokens[1], two.image_tokens[1])
    assert one.scores[1] == two.scores[1]
    assert torch.equal(one.pixel_values[1], two.pixel_values[1])
    assert not torch.equal(one.image_tokens[0], two.image_tokens[0])


def test_regression_guard_operator_calls_of_a_step(painter: PaiPainterForImageGeneration) -> None:
    """No time is measured, but what takes it is counted: products, attention and logits of a single position."""
    with torch.profiler.profile() as profile:
        painter.generate_images(CAPTIONS, seed=0, top_k=10, decode=False)
    calls = {event.key: event.count for event in profile.key_averages()}
    steps, layers = CODES, painter.config.num_hidden_layers
    assert calls["mkldnn::_linear_pointwise"] == steps * (4 * layers + 1)
    assert calls["aten::scaled_dot_product_attention"] == steps * layers
    assert calls["aten::layer_norm"] == steps * (2 * layers + 1)
    assert calls["aten::topk"] == steps
    assert calls["mkldnn::_reorder_linear_weight"] == 4 * layers + 1  # once for a picture, not once for a step
    assert "aten::linear" not in calls
