# SPDX-License-Identifier: Apache-2.0
"""What the model asks of its fast way on CPUs, and what is kept ready for it between calls."""

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.sampling_pai_painter import GumbelSampler
from .decoding import DecodingLoop, StopWhen, is_as_built
from .speculative_decoding import SpeculativeDecodingLoop
from .speed import PaintingSpeed, SpeedName, find_speed


def can_decode(
    model: PreTrainedModel, speed: SpeedName | PaintingSpeed = "exact", generate_options: Sequence[str] = ()
) -> bool:
    """
    Whether [`decode`] draws the model's tokens, which [`~decoding.is_as_built`] decides unless there are
    `generate_options`, names of options that only `generate` has. Otherwise `generate` does, and a `speed` that rounds
    is a `ValueError`.
    """
    is_exact = find_speed(speed, model.device).is_exact
    if not generate_options and is_as_built(model):
        return True
    if is_exact:
        return False
    raise ValueError(
        "Only `speed='exact'` goes with options of `generate`, adapters that aren't merged, quantised layers, hooks, "
        "autocast, a model in training mode, attention other than sdpa and eager, and further settings in "
        "`generation_config`."
    )


def decode(
    model: PreTrainedModel,
    ids: torch.Tensor,
    copies: int,
    sampler: GumbelSampler,
    speed: SpeedName | PaintingSpeed = "exact",
    stop_when: Sequence[StopWhen] = (),
) -> torch.Tensor:
    """
    Draws the image tokens of a model for which [`can_decode`] holds, as `generate` would; a single picture's by
    speculative decoding. See [`~decoding.DecodingLoop.write`]. Rounded weights are kept until the model's change.
    """
    loop = _ready(model).loop(model, len(ids) * copies, find_speed(speed, model.device))
    return loop.write(ids, copies, sampler, stop_when)


def rounded_vqgan(model: PreTrainedModel, speed: SpeedName | PaintingSpeed) -> tuple[PaiPainterVQModel, int] | None:
    """
    The model's VQGAN without its encoder, in the precision of a speed, and how many pictures it decodes at once, or
    `None` if that speed leaves it as it is.
    """
    dtype = find_speed(speed, model.device).dtype
    # In half precision the numbers of one picture stay nearer to the processor than those of several.
    return None if dtype is None else (_ready(model).vqgan(model.vqgan, dtype), 1)


@dataclass
class _Ready:
    """Rounded copies of a model, each with a stamp of the weights it is from."""

    loops: dict[tuple, DecodingLoop] = field(default_factory=dict)
    vqgans: dict[tuple, PaiPainterVQModel] = field(default_factory=dict)

    def loop(self, model: PreTrainedModel, rows: int, speed: PaintingSpeed) -> DecodingLoop:
        if speed.is_exact:  # takes a tenth of a second, and keeping a copy of all weights wouldn't be worth that
            return _new_loop(model, rows, speed)
        key = (rows, speed, _stamp(model.model, model.lm_head))
        loop = self.loops.get(key)
        if loop is None:
            loop = _new_loop(model, rows, speed)
            self.loops = {key: loop}  # never two at once
        return copy.copy(loop)  # the same weights, but a cache of its own for each thread

    def vqgan(self, vqgan: PaiPainterVQModel, dtype: torch.dtype) -> PaiPainterVQModel:
        key = (dtype, _stamp(vqgan.decoder, vqgan.post_quant_conv, vqgan.quantize))
        if key not in self.vqgans:
            self.vqgans = {key: _rounded(vqgan, dtype)}
        return self.vqgans[key]


# Beside the models rather than in them, so that copying, saving and pickling a model don't meet it.
_READY: weakref.WeakKeyDictionary[nn.Module, _Ready] = weakref.WeakKeyDictionary()


def _ready(model: nn.Module) -> _Ready:
    return _READY.setdefault(model, _Ready())


def _new_loop(model: PreTrainedModel, rows: int, speed: PaintingSpeed) -> DecodingLoop:
    is_speculative = speed.num_draft_tokens and rows == 1
    return SpeculativeDecodingLoop(model, speed) if is_speculative else DecodingLoop(model, rows, speed)


def _stamp(*parts: nn.Module) -> tuple[tuple[int, float], ...]:
    """
    Another one as soon as weights are replaced or written to. PyTorch counts what is written, but not through `.data`,
    as peft merges adapters; so they are summed up, in float32, in which half precision's last digit isn't lost, and
    with factors, since the plain sum stays the same if rows are swapped.
    """
    parameters = (each.detach() for part in parts for each in part.parameters())
    return tuple((each.data_ptr(), _checksum(each)) for each in parameters)


def _checksum(weight: torch.Tensor) -> float:
    rows = weight.float().reshape(len(weight), -1)
    return float(torch.linspace(1, 2, len(rows)) @ (rows @ torch.linspace(1, 2, rows.shape[1])))


def _rounded(vqgan: PaiPainterVQModel, dtype: torch.dtype) -> PaiPainterVQModel:
    """The decoding half of a VQGAN in another precision, its pixels' channels side by side, as oneDNN likes them."""
    config = copy.deepcopy(vqgan.config)
    config.has_encoder = False
    with torch.device("meta"):
        rounded = PaiPainterVQModel(config)
    weights = {name: weight.to(dtype) for name, weight in vqgan.state_dict().items() if name in rounded.state_dict()}
    rounded.load_state_dict(weights, assign=True)
    return cast(PaiPainterVQModel, rounded.to(memory_format=torch.channels_last).eval())
