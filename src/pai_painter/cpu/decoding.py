# SPDX-License-Identifier: Apache-2.0
"""
Drawing image tokens on the CPU: the steps of `generate`, and nothing else.

`GenerationMixin.generate` serves every model and every way to decode; for 256 small steps its overhead takes as long as
some of the model's layers. This is the same arithmetic for one way, the seeded draw, over prepared weights and a
key/value cache of the final size. It draws the same tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..model.sampling_pai_painter import GumbelSampler
from .linear_layers import Int8Linear, LinearLayer, packed_linear, plain_linear
from .speed import PaintingSpeed

# With fewer rows, float32 weights stream from memory as fast in the order that they are stored in.
_ROWS_THAT_PACKING_SPEEDS_UP = 3

# What a generation configuration may say besides what decides how tokens are drawn.
_OWN_SETTINGS = {
    *("max_length", "do_sample", "temperature", "top_k", "top_p", "best_of", "use_cache", "cache_implementation"),
    *("compile_config", "disable_compile", "transformers_version", "_from_model_config"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),  # which change no token; see `ImageGenerationMixin`
}
# The attention functions whose results `DecodingLoop` computes.
_ATTENTION = {"sdpa": ALL_ATTENTION_FUNCTIONS.get("sdpa"), "eager": ALL_ATTENTION_FUNCTIONS.get("eager")}

StopWhen = Callable[[torch.Tensor], bool]  # all ids so far (rows, length) -> whether to stop


def is_as_built(model: PreTrainedModel) -> bool:
    """
    Whether the model is as it was built, on the CPU, and in evaluation mode: without adapters, quantised layers, layers
    and attention of another kind, offloading or other hooks, autocast, and settings for `generate` beyond the draw, all
    of which work in `generate`.
    """
    attention = model.config._attn_implementation
    if model.device.type != "cpu" or model.training or attention not in _ATTENTION:
        return False
    if ALL_ATTENTION_FUNCTIONS.get(attention) is not _ATTENTION[attention] or torch.is_autocast_enabled("cpu"):
        return False
    if model.generation_config.to_diff_dict().keys() - _OWN_SETTINGS:
        return False
    parts = [model, model.lm_head, *model.model.modules()]
    activations = [part.act for part in parts if hasattr(part, "act")]  # are called as they are
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    return (
        all(type(part) is nn.Linear and part.weight.device.type == "cpu" for part in linear)
        and all(type(part.weight) is nn.Parameter for part in linear)  # torchao quantises the weights, not the layers
        and len(linear) == 6 * model.config.num_hidden_layers + 1
        and all(type(part).forward in model.known_forwards for part in parts if part not in activations)
        # accelerate and diffusers put a `forward` of theirs into the module itself
        and not any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts)
    )


@dataclass(frozen=True)
class _Block:
    """A block's layers over two dimensions, (rows * positions, width)."""

    norm_1: LinearLayer
    qkv: LinearLayer  # queries, keys and values in one product
    scaling: float
    out_proj: LinearLayer
    norm_2: LinearLayer
    fc_1: LinearLayer
    act: nn.Module
    fc_2: LinearLayer


class DecodingLoop:
    """
    A painter's transformer, prepared to draw the image tokens of a number of pictures at once.

    Its weights are views or copies of the model's at this moment: after they change, create another one.

    Args:
        model ([`PaiPainterForImageGeneration`]): One for which [`is_as_built`] holds.
        rows (`int`): Pictures generated at once.
        speed ([`PaintingSpeed`]): What may be rounded.
        positions (`int`): Positions of each picture that usually go through the layers at once.
    """

    def __init__(self, model: PreTrainedModel, rows: int, speed: PaintingSpeed, positions: int = 1):
        self.config, self.rows = model.config, rows * positions
        self.int8 = self.rows <= speed.int8_rows
        # What is not in the linear layers takes no longer in float32, and needn't be rounded twice.
        self.dtype = model.dtype if self.int8 or speed.dtype is None else speed.dtype
        self.num_heads = self.config.num_attention_heads
        transformer = model.model
        self.embed_tokens = transformer.embed_tokens.weight.detach()
        self.embed_positions = self._rounded(transformer.embed_positions[0])
        self.blocks = [
            _Block(
                norm_1=self._norm(layer.ln_1),
                qkv=self._linear(layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj),
                scaling=layer.attn.scaling,
                out_proj=self._linear(layer.attn.out_proj),
                norm_2=self._norm(layer.ln_2),
                fc_1=self._linear(layer.mlp.fc_1),
                act=layer.mlp.act,
                fc_2=self._linear(layer.mlp.fc_2),
            )
            for layer in transformer.layers
        ]
        self.norm = self._norm(transformer.norm)
        self.lm_head = self._linear(model.lm_head)
        self.caches: list[torch.Tensor] = []

    def _rounded(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to(self.dtype)

    def _norm(self, norm: nn.LayerNorm) -> LinearLayer:
        weight, bias = self._rounded(norm.weight), self._rounded(norm.bias)
        return partial(F.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)

    def _linear(self, *layers: nn.Linear) -> LinearLayer:
        """One layer, or several over the same input as one."""
        weight = torch.cat([layer.weight.detach() for layer in layers]) if layers[1:] else layers[0].weight.detach()
        bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
        if self.int8:
            return Int8Linear(weight, bias)
        weight, bias = self._rounded(weight), None if bias is None else self._rounded(bias)
        streams = weight.dtype == torch.float32 and self.rows < _ROWS_THAT_PACKING_SPEEDS_UP
        return plain_linear(weight, bias) if streams else packed_linear(weight, bias, self.rows)

    @torch.no_grad()
    def write(
        self, ids: torch.Tensor, copies: int, sampler: GumbelSampler, stop_when: Sequence[StopWhen] = ()
    ) -> torch.Tensor:
        """
        Image tokens (captions * copies, num_image_tokens), fewer columns if it was stopped.

        Args:
            ids (`torch.LongTensor` of shape `(captions, length)`): Caption ids, and perhaps the first image tokens.
            copies: pictures of each of them, one after another.
            sampler ([`GumbelSampler`]): Draws the image tokens; it has a seed for each picture.
            stop_when: called after each token with all ids so far; the first that says so ends the writing.
        """
        start, text_length, length = ids.shape[1], self.config.text_length, self.config.max_position_embeddings
        written = ids.new_empty(len(ids) * copies, length)  # (B, T)
        written[:, :start] = ids.repeat_interleave(copies, dim=0)
        logits = self._begin(ids, copies)
        try:
            for position in range(start, length):
                written[:, position] = sampler.draw(logits, position - text_length)
                told = [stop(written[:, : position + 1]) for stop in stop_when]
                if any(told):
                    return written[:, text_length : position + 1]
                if position + 1 < length:
                    logits = self._logits(written[:, position : position + 1], position)
            return written[:, text_length:]
        finally:
            self.caches = []

    def _begin(self, ids: torch.Tensor, copies: int) -> torch.Tensor:
        """Logits (captions * copies, image_vocab_size) after `ids`; keys and values go into new caches."""
        self.caches = [self._new_cache(len(ids)) for _ in self.blocks]
        logits = self._logits(ids, 0).repeat_interleave(copies, dim=0)
        self.caches = [cache.repeat_interleave(copies, dim=1) for cache in self.caches]
        return logits

    def _new_cache(self, rows: int) -> torch.Tensor:
        """Room for the keys and values of a block: (2, B, nh, T, hs)."""
        heads, length = self.num_heads, self.config.max_position_embeddings
        return torch.zeros(2, rows, heads, length, self.config.hidden_size // heads, dtype=self.dtype)

    def _logits(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        """Logits (B, image_vocab_size) in float32 after ids (B, T) at the positions from `start` on."""
        return self._head(self._hidden(ids, start)[:, -1])

    def _all_logits(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        """
        Logits (B * T, image_vocab_size) in float32 after each of ids (B, T) at the positions from `start` on, whose
        keys and values replace those that are there already.
        """
        return self._head(self._hidden(ids, start).flatten(0, 1))

    def _hidden(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        """What the blocks make of ids (B, T): (B, T, C)."""
        batch, length = ids.shape
        hidden = F.embedding(ids, self.embed_tokens).to(self.dtype) + self.embed_positions[start : start + length]
        hidden = hidden.flatten(0, 1)  # (B * T, C)
        mask = self._mask(start, length)
        for block, cache in zip(self.blocks, self.caches, strict=True):
            attended = self._attend(block, block.qkv(block.norm_1(hidden)), batch, start, cache, mask)
            hidden = hidden + block.out_proj(attended)
            hidden = hidden + block.fc_2(block.act(block.fc_1(block.norm_2(hidden))))
        return hidden.unflatten(0, (batch, length))

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(hidden)).float()

    def _attend(
        self, block: _Block, qkv: torch.Tensor, batch: int, start: int, cache: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention (B * T, C) of new positions to all so far, whose keys and values go into the cache."""
        new = qkv.unflatten(0, (batch, -1)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        end = start + new.shape[3]  # (3, B, nh, T, hs)
        cache[:, :, :, start:end] = new[1:]
        keys, values = cache[:, :, :, :end]
        attended = F.scaled_dot_product_attention(new[0], keys, values, mask, scale=block.scaling)  # (B, nh, T, hs)
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)

    def _mask(self, start: int, length: int) -> torch.Tensor | None:
        """What new positions may look at, (T, S); everything, if there is one."""
        if length == 1:
            return None
        end, unmasked = start + length, self.config.num_unmasked
        new, seen = torch.arange(start, end)[:, None], torch.arange(end)
        return (seen <= new) | ((seen < unmasked) & (new < unmasked))
