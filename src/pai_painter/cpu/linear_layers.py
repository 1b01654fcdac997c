# SPDX-License-Identifier: Apache-2.0
"""
Linear layers prepared for generation on the CPU.

Almost all time goes into products of a few rows with all weights of the model. `nn.Linear` reads them as they are
stored; here they are put once into the order, or the precision, in which the processor reads them fastest.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

LinearLayer = Callable[[torch.Tensor], torch.Tensor]  # (rows, in_features) -> (rows, out_features)


def plain_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearLayer:
    """`F.linear` over weights (out_features, in_features) as they are."""
    return partial(F.linear, weight=weight, bias=bias)


def packed_linear(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> LinearLayer:
    """
    The same product from weights in the order of oneDNN's blocks. Sums are rounded in another order than by `F.linear`;
    nothing else differs.

    The operators are private ones, which torch.compile uses for constant weights: drawing four or eight pictures takes
    a third to a half less time (`benchmarks/packing.py`). Where they are gone, or not for such weights or this
    processor, this is [`plain_linear`].

    Weights are (out_features, in_features); `rows` is how many there usually are, and others work, too.
    """
    try:
        product = torch.ops.mkldnn._linear_pointwise
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    except (AttributeError, RuntimeError):
        return plain_linear(weight, bias)
    return lambda inputs: product(inputs, packed, bias, "none", [], "")


class Int8Linear:
    """
    The product of 8-bit integers: weights with one scale per output, inputs with one per row, computed at each call.
    Sums are kept in 32 bits, the bias in float32.
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
        # Without VNNI, x86 adds two products in 16 bits, which inputs of 8 bits may overflow, and those of 7 don't.
        processor = torch.cpu.get_capabilities()
        self.reduce_range = processor.get("architecture") == "x86_64" and not processor.get("avx512_vnni")
        self.bias = torch.zeros_like(scales) if bias is None else bias.float()
        self.weight = torch.ops.quantized.linear_prepack(quantized, None)
        # The operator takes one scale for all rows from the smallest and largest number in them, so that a row would
        # change its neighbours. Each row is scaled to [-1, 1] beforehand, and one more row holds both ends.
        self.ends = torch.zeros(1, weight.shape[1], dtype=torch.float32)
        self.ends[0, 0], self.ends[0, -1] = -1, 1

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        given, inputs = inputs.dtype, inputs.float()
        if len(inputs) == 1:
            return torch.ops.quantized.linear_dynamic(inputs, self.weight, self.reduce_range).add_(self.bias).to(given)
        largest = torch.linalg.vector_norm(inputs, float("inf"), dim=-1, keepdim=True)
        largest.clamp_(min=torch.finfo(torch.float32).tiny)
        scaled = torch.cat([inputs / largest, self.ends])
        products = torch.ops.quantized.linear_dynamic(scaled, self.weight, self.reduce_range)[:-1]
        return torch.addcmul(self.bias, products, largest).to(given)
