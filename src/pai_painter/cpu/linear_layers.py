# SPDX-License-Identifier: Apache-2.0
"""
Linear layers made ready to paint on the CPU.

While codes are written one after another, almost all time goes into products of a few rows with all weights of the
model. PyTorch's `nn.Linear` reads the weights as they are stored; here they are put once into the order, or the
precision, in which the processor reads them fastest. None of these layers can be trained.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

__all__ = ["Int8Linear", "LinearLayer", "PackedLinear", "PlainLinear", "can_pack"]

LinearLayer = Callable[[torch.Tensor], torch.Tensor]  # (rows, in_features) -> (rows, out_features)


class PlainLinear:
    """
    `F.linear` over the weights as they are.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`)
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*)
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight, self.bias = weight, bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self.weight, self.bias)


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN is there and has an order of its own for weights of this kind."""
    return torch.backends.mkldnn.is_available() and weight.dtype in (torch.float32, torch.bfloat16)


class PackedLinear:
    """
    The same product from weights in the order of oneDNN's blocks, by the operators that torch.compile uses for
    constant weights. Sums are rounded in another order than by `F.linear`; nothing else differs.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): float32 or bfloat16; see [`can_pack`].
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*)
        rows (`int`): How many rows there usually are; others work, too.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: int):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.bias = bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


class Int8Linear:
    """
    The product of integers of 8 bits: weights by one scale for each output, inputs by one for each row, as each call
    finds it. Sums are kept in 32 bits, the bias in float32.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`)
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*)
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        weight = weight.float()
        scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (out_features,)
        integers = (weight / scales[:, None]).round().to(torch.int8)
        with warnings.catch_warnings():
            # PyTorch means to replace its quantised tensors. Of what it has in their place, nothing multiplies a
            # single row as fast (oneDNN's qlinear, _weight_int8pack_mm: half as long again).
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            quantized = torch._make_per_channel_quantized_tensor(
                integers, scales.double(), torch.zeros_like(scales).long(), axis=0
            )
        self.bias = torch.zeros_like(scales) if bias is None else bias.float()
        self.weight = torch.ops.quantized.linear_prepack(quantized, None)
        # The operator takes one scale for all rows from the smallest and largest number in them, so that a row would
        # change its neighbours. Each row is scaled to [-1, 1] beforehand, and one more row holds both ends.
        self.ends = torch.zeros(1, weight.shape[1], dtype=torch.float32)
        self.ends[0, 0], self.ends[0, -1] = -1, 1

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        given, inputs = inputs.dtype, inputs.float()
        if len(inputs) == 1:
            return torch.ops.quantized.linear_dynamic(inputs, self.weight, False).add_(self.bias).to(given)
        largest = torch.linalg.vector_norm(inputs, float("inf"), dim=-1, keepdim=True)
        largest.clamp_(min=torch.finfo(torch.float32).tiny)
        scaled = torch.cat([inputs / largest, self.ends])
        products = torch.ops.quantized.linear_dynamic(scaled, self.weight, False)[:-1]
        return torch.addcmul(self.bias, products, largest).to(given)
