# SPDX-License-Identifier: Apache-2.0
"""Learning the codebook: where entries begin, how they move and where dead ones go."""

import pytest
import torch

from pai_painter.model.configuration_pai_painter import PaiPainterVQConfig
from pai_painter.model.modeling_vqgan import PaiPainterVQCodebook
from pai_painter.training.arguments import VQGANTrainingArguments
from pai_painter.training.codebook import CodebookLearner, k_means

CENTRES = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, 0.0], [0.0, -10.0]])


def make(codes: int = 4, blank: bool = False, decay: float = 0.9, restart_below: float = 0.0) -> CodebookLearner:
    torch.manual_seed(0)
    codebook = PaiPainterVQCodebook(PaiPainterVQConfig(num_embeddings=codes, embed_dim=2))
    options = {"codebook_decay": decay, "restart_below": restart_below, "blank_code": blank, "seed": 3}
    return CodebookLearner(codebook, VQGANTrainingArguments(output_dir="unused", **options))


def clusters(each: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (CENTRES[:, None] + 0.1 * torch.randn(4, each, 2, generator=generator)).flatten(0, 1)


def nearest_distance(points: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points, entries).min(1).values


def test_k_means_finds_clusters() -> None:
    """With more centres than clusters each cluster has one; the chunked search is the whole one."""
    centres = k_means(clusters(), 16, seed=5)
    assert nearest_distance(CENTRES, centres).max() < 0.3
    many = clusters(3000)  # more than one chunk
    means = many.view(4, 3000, 2).mean(1)
    start = next(seed for seed in range(50) if nearest_distance(means, k_means(many, 4, seed, 2)).max() < 1)
    torch.testing.assert_close(k_means(many, 4, start)[torch.cdist(means, k_means(many, 4, start)).argmin(1)], means)


def test_start_keeps_the_blank_code_apart() -> None:
    white = torch.full((20, 2), 50.0)
    latents = torch.cat([clusters(), white])
    blank = torch.cat([torch.zeros(200), torch.ones(20)]).bool()
    learner = make(17, blank=True)
    learner.start(latents, blank)
    assert learner.started
    assert torch.equal(learner.entries[0], white[0])
    assert learner.entries[1:].abs().max() < 20
    assert nearest_distance(CENTRES, learner.entries[1:]).max() < 0.3


def test_too_few_latents() -> None:
    with pytest.raises(ValueError, match=r"8 patches of pictures are too few for 16"):
        make(17, blank=True).start(clusters(3), torch.tensor([True] * 4 + [False] * 8))


def test_entries_move_to_means() -> None:
    learner = make()
    learner.go_on_from(CENTRES + 3.0)
    latents = clusters()
    codes = torch.arange(4).repeat_interleave(50)
    for step in range(150):
        assert learner.update(latents, codes, torch.ones(200), step) == 0
    torch.testing.assert_close(learner.entries.data, latents.view(4, 50, 2).mean(1), atol=1e-3, rtol=0)


def test_one_step_of_the_running_means() -> None:
    learner = make(2, decay=0.75)
    learner.go_on_from(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    latents, codes = torch.tensor([[2.0, 2.0]] * 4), torch.tensor([0, 0, 0, 1])
    learner.update(latents, codes, torch.ones(4), 0)
    # As if code 0 had always had its 3 latents, and code 1, rarer than the mean, 2.
    torch.testing.assert_close(learner.uses, torch.tensor([3.0, 0.75 * 2 + 0.25 * 1]))
    torch.testing.assert_close(learner.entries.data[0], torch.tensor([0.75 * 4 + 0.25 * 2, 0.25 * 2]))
    torch.testing.assert_close(learner.entries.data[1], torch.tensor([0.25 * 2, 0.75 * 8 + 0.25 * 2]) / 1.75)
    learner.update(latents, codes, torch.ones(4), 1)
    torch.testing.assert_close(learner.uses, torch.tensor([3.0, 0.75 * 1.75 + 0.25 * 1]))
    torch.testing.assert_close(learner.entries.data[0], torch.tensor([0.75 * 3.5 + 0.25 * 2, 0.875]))


def test_dead_codes_go_where_errors_are() -> None:
    learner = make(5, decay=0.5, restart_below=0.1)
    far = torch.tensor([[1000.0, 1000.0]])
    learner.go_on_from(torch.cat([CENTRES, far]))
    latents, codes = clusters(), torch.arange(4).repeat_interleave(50)
    errors = torch.zeros(200)
    errors[60:70] = 1.0  # in the second cluster
    restarted = [learner.update(latents, codes, errors, step) for step in range(20)]
    assert max(restarted) == 1
    assert (latents[60:70] == learner.entries[4]).all(1).any() or (
        torch.cdist(learner.entries[4:].data, CENTRES)[0].argmin() == 1
    )


def test_the_blank_code_is_never_restarted_and_nothing_goes_to_blank_patches() -> None:
    learner = make(4, blank=True, decay=0.5, restart_below=0.5)
    learner.go_on_from(torch.cat([torch.full((1, 2), 50.0), CENTRES[:3]]))
    latents = clusters()
    codes = torch.arange(4).repeat_interleave(50).clamp_min(1)  # nobody uses code 0
    for step in range(100):
        learner.update(latents, codes, torch.ones(200), step)
    assert torch.equal(learner.entries[0], torch.full((2,), 50.0))
    # All errors lie in blank patches: there is no place for dead codes, and that is no error.
    for step in range(10):
        assert learner.update(latents, torch.zeros(200, dtype=torch.long), torch.ones(200), step) == 0


def test_errors_that_are_no_numbers_dont_fail_the_draw() -> None:
    learner = make(4, decay=0.5, restart_below=0.5)
    for step in range(10):
        learner.update(clusters(), torch.zeros(200, dtype=torch.long), torch.full((200,), torch.nan), step)


def test_two_processes_stay_equal() -> None:
    one, other = make(6, decay=0.5, restart_below=0.5), make(6, decay=0.5, restart_below=0.5)
    for learner in (one, other):
        learner.start(clusters(), torch.zeros(200, dtype=torch.bool))
    restarted = 0
    for step in range(10):
        torch.manual_seed(step)
        latents, errors = torch.randn(40, 2) * 8, torch.rand(40)
        codes = torch.cdist(latents, one.entries.data).argmin(1).clamp_max(3)
        restarted += one.update(latents, codes, errors, step)
        torch.manual_seed(99)  # what else a process draws doesn't matter
        other.update(latents, codes, errors, step)
    assert restarted
    assert torch.equal(one.entries, other.entries)


def test_state_round_trip() -> None:
    learner, later = make(), make()
    learner.start(clusters(), torch.zeros(200, dtype=torch.bool))
    learner.update(clusters(), torch.arange(4).repeat(50), torch.ones(200), 0)
    state = {name: value.clone() if torch.is_tensor(value) else value for name, value in learner.state_dict().items()}
    later.load_state_dict(state)
    later.entries.copy_(learner.entries)  # they are the VQGAN's, and come with it
    assert later.started
    for each in (learner, later):
        each.update(clusters(), torch.arange(4).repeat(50).flip(0), torch.ones(200), 1)
    assert torch.equal(learner.entries, later.entries)
    assert not learner.entries.requires_grad
