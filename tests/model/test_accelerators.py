# SPDX-License-Identifier: Apache-2.0
"""What makes decoding fast on accelerators, as far as it can be held without one: one graph a step, and no waiting."""

import pytest
import torch
from model_fixtures import CODES, PAINTERS, TEXT_LENGTH, expected, golden_painter
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers.cache_utils import StaticCache

from pai_painter import PaiPainterForImageGeneration
from pai_painter.model.sampling_pai_painter import GumbelSampler


@torch.no_grad()
@pytest.mark.parametrize("folder", PAINTERS)
def test_a_step_never_waits_for_a_number(folder: str) -> None:
    """Fake tensors have no numbers: whatever asked for one on the host would raise."""
    config = golden_painter(folder).config
    with FakeTensorMode():
        painter = PaiPainterForImageGeneration(config).eval()
        cache = StaticCache(config=config, max_cache_len=config.max_position_embeddings)
        sampler = GumbelSampler([1, 2], TEXT_LENGTH, temperature=0.9, top_k=10, top_p=0.9)
        ids = sequence = torch.zeros(2, TEXT_LENGTH, dtype=torch.long)
        for _ in range(3):
            logits = painter(ids, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            ids = sampler(sequence, logits).argmax(-1, keepdim=True)
            sequence = torch.cat([sequence, ids], dim=1)
        pixels = painter.vqgan.decode(torch.zeros(2, CODES, dtype=torch.long))
        assert ids.shape == (2, 1)
        assert pixels.shape[0] == 2
        with pytest.raises(DataDependentOutputException):
            int(ids.max())


@torch.no_grad()
def test_all_steps_run_the_same_graph() -> None:
    """With a static cache there are two graphs, for the caption and for a code, however long the picture gets."""
    painter, captions = golden_painter(), expected()["text_ids"]
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(painter, fullgraph=True, backend=counter)
    cache = StaticCache(config=painter.config, max_cache_len=painter.config.max_position_embeddings)
    ids, codes = captions, []
    for _ in range(CODES):
        ids = compiled(ids, cache=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        codes.append(ids)
    assert counter.frame_count == 2
    assert torch.equal(torch.cat(codes, 1), expected()["greedy_codes"])


def test_the_static_cache_can_be_set_once_for_all() -> None:
    """`generate` compiles for it by itself where that pays; the codes are the same."""
    painter, captions = golden_painter(), expected()["text_ids"]
    painter.generation_config.cache_implementation = "static"
    assert torch.equal(painter.generate(captions, do_sample=False)[:, TEXT_LENGTH:], expected()["greedy_codes"])
    painted = painter.generate_images(captions, seed=0, use_cache=True)  # an option of `generate` leads there
    assert torch.equal(painted.image_tokens, golden_painter().generate_images(captions, seed=0).image_tokens)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}], ids=str)
def test_noise_is_made_where_the_logits_are(options: dict[str, int]) -> None:
    sampler = GumbelSampler([1, 2], 4, **options)
    noisy = sampler(torch.zeros(2, 4), torch.zeros(2, 8, device="meta"))
    assert noisy.device.type == sampler.log_likelihood.device.type == sampler.seeds.device.type == "meta"
