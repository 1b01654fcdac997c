# SPDX-License-Identifier: Apache-2.0
"""Linear layers for painting on the CPU, against `F.linear`."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from pai_painter.cpu.linear_layers import Int8Linear, packed_linear, plain_linear

SHAPES = [(16, 16), (48, 16), (16384, 32), (7, 5)]


def weights(shape: tuple[int, int], with_bias: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=generator)
    return weight, torch.randn(shape[0], generator=generator) if with_bias else None


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_changes_the_order_of_sums_only(dtype: torch.dtype, shape: tuple[int, int], with_bias: bool) -> None:
    weight, bias = weights(shape, with_bias)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    for planned, rows in ((1, 1), (4, 4), (4, 1), (1, 9)):
        inputs = torch.randn(rows, shape[1]).to(dtype)
        wanted = F.linear(inputs, weight, bias)
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.06, "rtol": 0.02}
        torch.testing.assert_close(packed_linear(weight, bias, planned)(inputs), wanted, **tolerance)
        assert torch.equal(plain_linear(weight, bias)(inputs), wanted)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_integers_are_as_near_as_eight_bits_allow(shape: tuple[int, int], with_bias: bool) -> None:
    weight, bias = weights(shape, with_bias)
    weight[1] *= 1000  # scales are each output's own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = Int8Linear(weight, bias)
    for rows in (1, 3, 1):
        inputs = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
        inputs *= torch.tensor([1e-3, 1.0, 1e3])[:rows, None]  # … and each row's own
        error = layer(inputs) - F.linear(inputs, weight, bias)
        # At worst, half a step of the weights' rounding and one of the inputs', whose zero point is rounded, too.
        step = weight.abs().amax(1) * inputs.abs().amax(1, keepdim=True)
        assert (error.abs() <= step * shape[1] * (0.5 / 127 + 2 / 254) * 1.1 + 1e-5).all()
        assert error.abs().mean() / step.mean() < 0.02 * shape[1] ** 0.5
    assert layer(torch.randn(2, shape[1], dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_row_of_integers_does_not_depend_on_its_neighbours() -> None:
    layer = Int8Linear(*weights((48, 16), True))
    row = torch.randn(1, 16)
    for neighbour in (torch.zeros(1, 16), 1e4 * torch.ones(1, 16), torch.randn(1, 16)):
        both = layer(torch.cat([row, neighbour]))
        assert torch.equal(both[0], layer(torch.cat([row, row]))[0])
    assert torch.equal(layer(torch.cat([neighbour, row]))[1], both[0])


def test_zeros_are_no_trouble_for_integers() -> None:
    weight, bias = weights((48, 16), True)
    weight[3] = 0
    layer = Int8Linear(weight, bias)
    assert torch.equal(layer(torch.zeros(2, 16))[0], bias)
    assert layer(torch.randn(2, 16))[0, 3] == bias[3]
