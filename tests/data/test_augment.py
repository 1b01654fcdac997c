# SPDX-License-Identifier: Apache-2.0
"""Shifts and flips."""

import pytest
import torch

from pai_painter.data.augment import shift_and_flip


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(64, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def shifted(picture: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """By index arithmetic: what lies outside is the nearest border pixel."""
    _, height, width = picture.shape
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    return picture[:, rows][:, :, columns]


def test_every_result_is_a_shift_perhaps_mirrored(pictures: torch.Tensor) -> None:
    results = shift_and_flip(pictures, 2, True, torch.Generator().manual_seed(1))
    assert results.shape == pictures.shape
    seen, mirrored = set(), 0
    for picture, result in zip(pictures, results, strict=True):
        found = [
            (down, right, mirror)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirror in (False, True)
            if torch.equal(result.flip(-1) if mirror else result, shifted(picture, down, right))
        ]
        assert len(found) == 1
        seen.add(found[0][:2])
        mirrored += found[0][2]
    assert len(seen) > 15
    assert 20 < mirrored < 44


def test_nothing_to_do(pictures: torch.Tensor) -> None:
    assert torch.equal(shift_and_flip(pictures, 0, False, torch.Generator()), pictures)
    results = shift_and_flip(pictures, 0, True, torch.Generator().manual_seed(0))
    assert all(
        torch.equal(result, picture) or torch.equal(result, picture.flip(-1))
        for result, picture in zip(results, pictures, strict=True)
    )


def test_the_generator_decides(pictures: torch.Tensor) -> None:
    one, same, other = (shift_and_flip(pictures, 2, True, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
