# SPDX-License-Identifier: Apache-2.0
"""The moving average, and how it changes places with the weights."""

import pytest
import torch

from pai_painter.training.average import WeightAverage


def test_formula() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    average = WeightAverage([parameter], 0.75)
    expected = None
    for value in (torch.tensor([3.0, -1.0]), torch.tensor([5.0, 7.0]), torch.tensor([0.5, 0.25])):
        parameter.data.copy_(value)
        average.update()
        expected = value if expected is None else 0.75 * expected + 0.25 * value
    torch.testing.assert_close(average.weights[0], expected)


def test_in_place_and_back() -> None:
    model = torch.nn.Linear(3, 3)
    average = WeightAverage(model.parameters(), 0.9)
    average.update()
    averaged = model.weight.detach().clone()
    model.weight.data.normal_()
    own = model.weight.detach().clone()
    with average.in_place():
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, own)
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert torch.equal(model.weight, own)
    assert torch.equal(average.weights[0], averaged)


def test_state() -> None:
    parameter = torch.nn.Parameter(torch.randn(4))
    average = WeightAverage([parameter], 0.5)
    for _ in range(2):
        average.update()
    other = WeightAverage([torch.nn.Parameter(torch.randn(4))], 0.5)
    other.load_state_dict(average.state_dict())
    assert other.updates == 2
    assert torch.equal(other.weights[0], average.weights[0])
