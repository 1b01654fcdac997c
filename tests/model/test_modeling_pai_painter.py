# SPDX-License-Identifier: Apache-2.0
"""The transformer and its head: EasyNLP's numbers, one forward pass like another, training."""

from typing import Any

import pytest
import torch
from model_fixtures import (
    CODES,
    PAINTERS,
    TEXT_LENGTH,
    expected,
    golden_painter,
    picture_labels,
    vqgan_config,
    whole_sequence,
)
from transformers.cache_utils import DynamicCache, StaticCache

from pai_painter import PaiPainterConfig, PaiPainterForImageGeneration, PaiPainterModel

ATTENTIONS = ("sdpa", "eager")
GOLDEN_PAINTERS = [(folder, attention) for folder in PAINTERS for attention in ATTENTIONS]


@pytest.fixture(scope="module", params=GOLDEN_PAINTERS, ids="-".join)
def golden(request: pytest.FixtureRequest) -> tuple[str, PaiPainterForImageGeneration]:
    folder, attention = request.param
    painter = golden_painter(folder, attn_implementation=attention)
    assert painter.config._attn_implementation == attention
    return folder, painter


@pytest.fixture(scope="module")
def painter() -> PaiPainterForImageGeneration:
    return golden_painter()


def new_painter(**changes: Any) -> PaiPainterForImageGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_vocab_size": 64, "text_vocab_size": 256, "hidden_size": 32}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    return PaiPainterForImageGeneration(PaiPainterConfig(vq_config=vqgan_config(), **(sizes | changes)))


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_are_easynlps(golden: tuple[str, PaiPainterForImageGeneration]) -> None:
    folder, painter = golden
    logits = painter(whole_sequence(folder)[:, :-1]).logits
    close(logits, expected(folder)["all_logits"])
    close(logits[:, TEXT_LENGTH - 1 :], expected(folder)["logits"])


@torch.no_grad()
def test_the_loss_is_easynlps(golden: tuple[str, PaiPainterForImageGeneration]) -> None:
    folder, painter = golden
    output = painter(whole_sequence(folder), labels=picture_labels(folder))
    close(output.loss.reshape(1), expected(folder)["loss"])
    assert output.logits.shape == (3, TEXT_LENGTH + CODES, 64)


@torch.no_grad()
def test_logits_to_keep_spares_the_head_the_caption_and_keeps_the_loss(
    golden: tuple[str, PaiPainterForImageGeneration],
) -> None:
    folder, painter = golden
    output = painter(whole_sequence(folder), labels=picture_labels(folder), logits_to_keep=CODES + 1)
    close(output.loss.reshape(1), expected(folder)["loss"])
    close(output.logits[:, :-1], expected(folder)["logits"])
    assert output.logits.shape == (3, CODES + 1, 64)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_with_a_cache_the_logits_are_those_without(golden: tuple[str, PaiPainterForImageGeneration], kind: str) -> None:
    folder, painter = golden
    ids = whole_sequence(folder)[:, :-1]
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=painter.config, max_cache_len=48)
    steps = [ids[:, :TEXT_LENGTH], ids[:, TEXT_LENGTH : TEXT_LENGTH + 5], *ids[:, TEXT_LENGTH + 5 :].split(1, dim=1)]
    logits = torch.cat([painter(step, cache=cache, use_cache=True).logits for step in steps], dim=1)
    close(logits, expected(folder)["all_logits"])


@torch.no_grad()
def test_a_batch_has_the_logits_of_each_row_alone(golden: tuple[str, PaiPainterForImageGeneration]) -> None:
    folder, painter = golden
    alone = torch.cat([painter(row[None]).logits for row in whole_sequence(folder)[:, :-1]])
    close(alone, expected(folder)["all_logits"])


@torch.no_grad()
def test_embeddings_can_be_given_instead_of_ids(painter: PaiPainterForImageGeneration) -> None:
    embeddings = painter.get_input_embeddings()
    assert embeddings.weight.shape == (320, 32)
    close(painter(inputs_embeds=embeddings(whole_sequence()[:, :-1])).logits, expected()["all_logits"])


def test_ids_or_embeddings_but_not_both_and_not_neither(painter: PaiPainterForImageGeneration) -> None:
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        painter()
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        painter(whole_sequence(), inputs_embeds=torch.zeros(3, 48, 32))


def test_more_ids_than_positions_are_refused(painter: PaiPainterForImageGeneration) -> None:
    with pytest.raises(ValueError, match="have 48 positions, got 49 ids after 0"):
        painter(torch.zeros(1, 49, dtype=torch.long))
    cache = painter(whole_sequence(), use_cache=True).cache
    with pytest.raises(ValueError, match="have 48 positions, got 1 ids after 48"):
        painter(torch.zeros(3, 1, dtype=torch.long), cache=cache)


@torch.no_grad()
def test_only_the_prefix_sees_ahead() -> None:
    """Changing one id changes the logits from there on; within the prefix, from its beginning."""
    for num_unmasked in (0, 5, TEXT_LENGTH):
        painter, ids = new_painter(num_unmasked=num_unmasked).eval(), whole_sequence()[:1]
        for place in (3, 20, TEXT_LENGTH, TEXT_LENGTH + 4):
            changed = ids.clone()
            changed[0, place] = (changed[0, place] + 1) % 64
            difference = (painter(ids).logits - painter(changed).logits).abs().amax(-1)[0]
            first = int(difference.gt(1e-7).nonzero()[0])
            assert first == (0 if place < num_unmasked else place), (num_unmasked, place)


def test_flash_attention_cannot_draw_a_prefix_and_says_so() -> None:
    painter = new_painter(num_unmasked=4)
    painter.config._attn_implementation_internal = "flash_attention_2"  # as on a machine that has it
    with pytest.raises(ValueError, match="please load it with `attn_implementation='sdpa'`"):
        painter(whole_sequence())


@torch.no_grad()
def test_hidden_states_and_attentions_come_on_demand() -> None:
    painter = golden_painter(attn_implementation="eager")
    output = painter(whole_sequence(), output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(3, 48, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, 2, 48, 48)] * 2
    close(output.attentions[0].sum(-1), torch.ones(3, 2, 48))
    assert output.attentions[0].triu(1).abs().max() == 0
    assert painter(whole_sequence(), return_dict=False)[0].shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("sizes", "transformer", "whole"),
    [
        ({}, 126_669_312, 202_743_171),
        ({"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024}, 357_795_840, 433_869_699),
    ],
    ids=["base", "large"],
)
def test_the_published_models_have_their_numbers_of_parameters(sizes: dict, transformer: int, whole: int) -> None:
    with torch.device("meta"):
        painter = PaiPainterForImageGeneration(PaiPainterConfig(**sizes))
    assert painter.num_parameters() == whole
    assert whole - painter.vqgan.num_parameters() == transformer
    assert painter.model.num_parameters() + painter.lm_head.weight.numel() == transformer
    assert painter.model.embed_positions.shape == (1, 288, painter.config.hidden_size)
    assert painter.lm_head.weight.shape == (16_384, painter.config.hidden_size)


def test_new_weights_are_mingpts() -> None:
    painter = new_painter(hidden_size=64, initializer_range=0.1)
    for name, weight in painter.named_parameters():
        if name.startswith("vqgan.") or weight.ndim == 1:
            continue
        assert weight.std().item() == pytest.approx(0.1, rel=0.1), name
    for name, weight in painter.model.named_parameters():
        if weight.ndim == 1:
            is_norm = ("ln_" in name or name.startswith("norm")) and name.endswith("weight")
            assert torch.equal(weight, torch.full_like(weight, float(is_norm))), name
    assert painter.lm_head.weight is not painter.model.embed_tokens.weight


def test_gradient_checkpointing_changes_neither_loss_nor_gradients() -> None:
    painter = new_painter().train()
    ids, labels = whole_sequence(), picture_labels()

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        painter.zero_grad()
        loss = painter(ids, labels=labels).loss
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in painter.named_parameters() if p.grad is not None}

    loss, gradients = step()
    calls = []
    painter.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    painter.activation_checkpointing_enable()
    checkpointed_loss, checkpointed = step()
    assert len(calls) == 2  # once forward, once again on the way back
    assert torch.equal(loss, checkpointed_loss)
    assert gradients.keys() == checkpointed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)
    missing = {name for name, _ in painter.named_parameters()} - gradients.keys()
    assert all(name.startswith("vqgan.") for name in missing)


def test_the_loss_is_divided_by_the_number_of_items_of_the_whole_batch(painter: PaiPainterForImageGeneration) -> None:
    ids, labels = whole_sequence(), picture_labels()
    mean = painter(ids, labels=labels).loss
    parts = [
        painter(ids[rows], labels=labels[rows], num_items_in_batch=3 * CODES).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    close(sum(parts), mean)


@pytest.mark.parametrize("option", ["embd_pdrop", "resid_pdrop", "attn_pdrop"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_dropout_is_for_training_only(option: str, attention: str) -> None:
    painter = new_painter(**{option: 0.5})
    painter.set_attn_implementation(attention)
    ids = whole_sequence()
    assert not torch.equal(painter.train()(ids).logits, painter(ids).logits)
    assert torch.equal(painter.eval()(ids).logits, painter(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("folder", PAINTERS)
def test_forward_is_traced_as_one_graph_without_and_with_a_static_cache(folder: str) -> None:
    painter, ids = golden_painter(folder), whole_sequence(folder)[:, :-1]
    torch._dynamo.reset()
    traced = torch.compile(painter, fullgraph=True, backend="eager")
    close(traced(ids).logits, expected(folder)["all_logits"])
    cache = StaticCache(config=painter.config, max_cache_len=48)
    steps = [ids[:, :TEXT_LENGTH], *ids[:, TEXT_LENGTH : TEXT_LENGTH + 3].split(1, dim=1)]
    logits = torch.cat([traced(step, cache=cache).logits for step in steps], dim=1)
    close(logits, expected(folder)["all_logits"][:, : TEXT_LENGTH + 3])


def test_what_the_model_says_that_it_can() -> None:
    for cls in (PaiPainterModel, PaiPainterForImageGeneration):
        assert cls._supports_sdpa
        assert cls._supports_flash_attn
        assert cls._supports_attention_backend
        assert cls._can_compile_fullgraph
        assert cls.supports_gradient_checkpointing
        assert cls._can_set_attn_implementation()
        assert not cls.is_remote_code()
    assert PaiPainterForImageGeneration.can_generate()
    assert not PaiPainterModel.can_generate()


def test_attention_can_be_changed_later(painter: PaiPainterForImageGeneration) -> None:
    painter.set_attn_implementation("eager")
    assert painter.model.config._attn_implementation == "eager"
    with torch.no_grad():
        close(painter(whole_sequence()[:, :-1]).logits, expected()["all_logits"])
    painter.set_attn_implementation("sdpa")


@torch.no_grad()
def test_labels_are_the_input_ids(painter: PaiPainterForImageGeneration) -> None:
    """What is no image token is ignored, as if it were -100."""
    sequence = whole_sequence()
    usual = painter(sequence, labels=picture_labels())
    assert torch.equal(painter(sequence, labels=sequence).loss, usual.loss)
    for strange in (-1, -101, painter.config.vocab_size):
        with pytest.raises(
            ValueError, match=f"`labels` must be ids from 0 to 319, or -100 to be ignored, got {strange}"
        ):
            painter(sequence, labels=sequence.index_fill(1, torch.tensor([40]), strange))


@torch.no_grad()
def test_logits_to_keep_may_be_positions(painter: PaiPainterForImageGeneration) -> None:
    sequence, positions = whole_sequence(), torch.tensor([46, 31, 40])
    whole, kept = painter(sequence), painter(sequence, logits_to_keep=positions, labels=sequence)
    close(kept.logits, whole.logits[:, positions])
    wanted = torch.nn.functional.cross_entropy(whole.logits[:, positions].mT, sequence[:, positions + 1])
    close(kept.loss, wanted)


@torch.no_grad()
def test_outputs_come_as_a_tuple_on_demand(painter: PaiPainterForImageGeneration) -> None:
    sequence = whole_sequence()
    loss, logits = painter(sequence, labels=sequence, use_cache=False, return_dict=False)
    outputs = painter(sequence, labels=sequence, use_cache=False)
    assert torch.equal(loss, outputs.loss)
    assert torch.equal(logits, outputs.logits)
    assert torch.equal(painter.model(sequence, use_cache=False, return_dict=False)[0], painter.model(sequence)[0])
    pixels, tokens = painter.vqgan(expected()["image"], return_dict=False)
    assert torch.equal(painter.vqgan.decode(tokens), pixels)


@pytest.mark.parametrize("keyword", ["past_key_values", "position_ids", "atention_mask", "lables", "is_causal"])
def test_no_keyword_vanishes(painter: PaiPainterForImageGeneration, keyword: str) -> None:
    """The key/value cache was once passed under a new name, swallowed, and wrong pictures were painted."""
    for part in (painter, painter.model):
        with pytest.raises(TypeError, match=f"forward has no option {keyword}"):
            part(whole_sequence(), **{keyword: torch.ones(1)})
    for call in (painter.vqgan, painter.vqgan.encode, painter.vqgan.decode, painter.decode_images):
        with pytest.raises(TypeError, match=keyword):
            call(expected()["image"], **{keyword: 1})
    if keyword == "past_key_values":
        return  # which `generate` still reads as `cache`
    with pytest.raises((TypeError, ValueError), match=keyword):
        painter.generate_images(expected()["text_ids"], **{keyword: torch.ones(1)})


@torch.no_grad()
def test_what_transformers_passes_through_by_design(painter: PaiPainterForImageGeneration) -> None:
    sequence = whole_sequence()
    outputs = painter(
        sequence,
        labels=sequence,
        num_items_in_batch=torch.tensor(3 * 47),
        output_hidden_states=True,
        output_attentions=None,
    )
    close(outputs.loss, painter(sequence, labels=sequence).loss)
    assert len(outputs.hidden_states) == painter.config.num_hidden_layers + 1


def test_embeddings_are_not_resized_and_nothing_is_half_done(painter: PaiPainterForImageGeneration) -> None:
    before = painter.get_input_embeddings()
    with pytest.raises(ValueError, match="can't be resized: they hold the VQGAN's image tokens"):
        painter.resize_token_embeddings(400)
    assert painter.get_input_embeddings() is before
    assert painter.config.vocab_size == 320
    painter(whole_sequence())
