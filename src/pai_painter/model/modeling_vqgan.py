# SPDX-License-Identifier: Apache-2.0
"""
The VQGAN: pixels ⇄ image tokens.

A convolutional encoder shrinks a picture to a small grid of vectors, each is replaced by the nearest entry of a
codebook, and a decoder paints the picture back. The network and its parameter names are those of VQGAN
(taming-transformers, MIT, https://github.com/CompVis/taming-transformers, `VQModel`), so that its weights fit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_pai_painter import PaiPainterVQConfig
from .weight_conversion import StrictLoadingMixin

__all__ = ["PaiPainterVQEncoderOutput", "PaiPainterVQModel", "PaiPainterVQOutput", "with_forward_hook"]


@dataclass
class PaiPainterVQEncoderOutput(ModelOutput):
    """
    Args:
        image_tokens (`torch.LongTensor` of shape `(batch, num_image_tokens)`): Indices of the codebook, raster order.
        quantized (`torch.FloatTensor` of shape `(batch, embed_dim, image_grid, image_grid)`): Their codebook entries.
    """

    image_tokens: torch.Tensor | None = None
    quantized: torch.Tensor | None = None


@dataclass
class PaiPainterVQOutput(ModelOutput):
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch, out_channels, resolution, resolution)`): The picture after
            going through the tokens, about [-1, 1], not clipped.
        image_tokens (`torch.LongTensor` of shape `(batch, num_image_tokens)`): The tokens it went through.
    """

    pixel_values: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None


def with_forward_hook(method: Callable) -> Callable:
    """
    For methods that are called instead of `forward`: what accelerate hangs on it (offloading, placement) runs first,
    as diffusers' `apply_forward_hook` sees to it for its VAEs.
    """

    @wraps(method)
    def hooked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(self, "_hf_hook", None)
        if hook is not None:
            args, kwargs = hook.pre_forward(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    return hooked


def _norm(channels: int, config: PaiPainterVQConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_num_groups, channels, eps=config.norm_eps)


class VQResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, config: PaiPainterVQConfig):
        super().__init__()
        self.norm1 = _norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # (B, in, h, w) -> (B, out, h, w)
        branch = self.conv1(F.silu(self.norm1(hidden_states)))
        branch = self.conv2(self.dropout(F.silu(self.norm2(branch))))
        return self.nin_shortcut(hidden_states) + branch


class VQAttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the grid."""

    def __init__(self, channels: int, config: PaiPainterVQConfig):
        super().__init__()
        self.norm = _norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # (B, C, h, w)
        normed = self.norm(hidden_states)
        query, key, value = (  # (B, 1, h*w, C): one head
            layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.squeeze(1).transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        return hidden_states + self.proj_out(attended)


class VQDownsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # (B, C, h, w) -> (B, C, h/2, w/2)
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


class VQUpsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # (B, C, h, w) -> (B, C, 2h, 2w)
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


class VQLevel(nn.Module):
    """The blocks of one resolution, each followed by attention if `attention` is set."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, attention: bool, config: PaiPainterVQConfig
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_blocks - 1)
        self.block = nn.ModuleList(VQResnetBlock(width, out_channels, config) for width in widths)
        self.attn = nn.ModuleList(VQAttentionBlock(out_channels, config) for _ in widths if attention)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.block):
            hidden_states = block(hidden_states)
            if len(self.attn):
                hidden_states = self.attn[index](hidden_states)
        return hidden_states


class VQMiddle(nn.Module):
    def __init__(self, channels: int, attention: bool, config: PaiPainterVQConfig):
        super().__init__()
        self.block_1 = VQResnetBlock(channels, channels, config)
        self.attn_1 = VQAttentionBlock(channels, config) if attention else nn.Identity()
        self.block_2 = VQResnetBlock(channels, channels, config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(hidden_states)))


class PaiPainterVQEncoder(nn.Module):
    """Pixels (batch, 3, resolution, resolution) → latents (batch, latent_channels, image_grid, image_grid)."""

    def __init__(self, config: PaiPainterVQConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        width, resolution = config.base_channels, config.resolution
        for level, multiplier in enumerate(config.channel_multiplier):
            attention = config.encoder_attention and resolution in config.attn_resolutions
            out_width = config.base_channels * multiplier
            stage = VQLevel(width, out_width, config.num_res_blocks, attention, config)
            width = out_width
            if level < len(config.channel_multiplier) - 1:
                stage.downsample = VQDownsample(width)
                resolution //= 2
            self.down.append(stage)
        self.mid = VQMiddle(width, config.encoder_attention, config)
        self.norm_out = _norm(width, config)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_in(pixel_values)
        for level, stage in enumerate(self.down):
            hidden_states = stage(hidden_states)
            if level < len(self.down) - 1:
                hidden_states = stage.downsample(hidden_states)  # type: ignore[operator]
        hidden_states = self.mid(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


class PaiPainterVQDecoder(nn.Module):
    """Latents (batch, latent_channels, image_grid, image_grid) → pixels (batch, 3, resolution, resolution)."""

    def __init__(self, config: PaiPainterVQConfig):
        super().__init__()
        width = config.base_channels * config.channel_multiplier[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = VQMiddle(width, True, config)
        stages, resolution = [], config.image_grid
        for level, multiplier in reversed(list(enumerate(config.channel_multiplier))):
            out_width = config.base_channels * multiplier
            attention = resolution in config.attn_resolutions
            stage = VQLevel(width, out_width, config.num_res_blocks + 1, attention, config)
            width = out_width
            if level > 0:
                stage.upsample = VQUpsample(width)
                resolution *= 2
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))  # taming numbers levels by resolution, finest first
        self.norm_out = _norm(width, config)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden_states = self.mid(self.conv_in(latents))
        for level in reversed(range(len(self.up))):
            hidden_states = self.up[level](hidden_states)
            if level > 0:
                hidden_states = self.up[level].upsample(hidden_states)  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


class PaiPainterVQCodebook(nn.Module):
    """The vectors that image tokens stand for, and the search for the nearest."""

    def __init__(self, config: PaiPainterVQConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_embeddings, config.embed_dim)

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """The index of the nearest entry, (batch, h * w) in raster order, for latents (batch, embed_dim, h, w)."""
        vectors = latents.flatten(2).transpose(1, 2).float()  # (B, h*w, D)
        # By the layer's own call, so that offloading hooks bring its weights along.
        entries = self.embedding(torch.arange(self.embedding.num_embeddings, device=latents.device)).float()  # (N, D)
        # Always in float32: in half precision many entries are equally far away.
        with torch.autocast(latents.device.type, enabled=False):
            # |v - e|² = |v|² + |e|² - 2 v·e, in taming's order of operations, so that near-ties fall alike.
            distances = vectors.pow(2).sum(-1, keepdim=True) + entries.pow(2).sum(-1) - 2 * vectors @ entries.t()
            return distances.argmin(-1)

    def forward(self, image_tokens: torch.Tensor, grid: int) -> torch.Tensor:
        """Image tokens (batch, grid²) → their entries (batch, embed_dim, grid, grid)."""
        return self.embedding(image_tokens).transpose(1, 2).unflatten(2, (grid, grid))


class PaiPainterVQModel(StrictLoadingMixin, PreTrainedModel):
    """
    The VQGAN. [`~PaiPainterVQModel.encode`] turns pixels into image tokens, [`~PaiPainterVQModel.decode`] turns image
    tokens into pixels; calling the model does both.

    `from_pretrained` takes a VQGAN's folder or a painter's, of which it loads the VQGAN alone.
    """

    config_class = PaiPainterVQConfig
    base_model_prefix = "vqgan"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["VQResnetBlock", "VQAttentionBlock"]
    # Its attention is always PyTorch's SDPA (one head, too wide for flash attention); whichever attention a painter
    # is loaded with, its VQGAN must not refuse it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The rest of a painter's folder (native, EasyNLP's), when the VQGAN is loaded alone.
    _keys_to_ignore_on_load_unexpected = [r"^model\.", r"^lm_head\.", r"^transformer\."]
    _own_parts = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")

    def __init__(self, config: PaiPainterVQConfig):
        super().__init__(config)
        if config.has_encoder:
            self.encoder = PaiPainterVQEncoder(config)
        self.decoder = PaiPainterVQDecoder(config)
        self.quantize = PaiPainterVQCodebook(config)
        if config.has_encoder:  # here, as in taming: a seed starts the weights in this order
            self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own start for convolutions and norms, taming's for the codebook."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1.0 / module.num_embeddings, 1.0 / module.num_embeddings)

    def encode_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Pixels → latents (batch, embed_dim, image_grid, image_grid) before they are replaced by codebook entries. A
        `ValueError` if the shape is another one, or if the VQGAN has no encoder.
        """
        if not self.config.has_encoder:
            raise ValueError(
                "This VQGAN has no encoder: it decodes image tokens, but can't encode pictures. "
                "`pai-painter convert MODEL OUTPUT --vqgan VQGAN` adds an encoder."
            )
        wanted = (self.config.in_channels, self.config.resolution, self.config.resolution)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != wanted:
            raise ValueError(
                f"This VQGAN encodes pictures of shape (batch, {', '.join(map(str, wanted))}), got "
                f"{tuple(pixel_values.shape)}; PaiPainterImageProcessor prepares them."
            )
        return self.quant_conv(self.encoder(pixel_values))

    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        """Codebook entries (batch, embed_dim, image_grid, image_grid) → pixels, not clipped."""
        return self.decoder(self.post_quant_conv(quantized))

    @with_forward_hook
    def encode(self, pixel_values: torch.Tensor) -> PaiPainterVQEncoderOutput:
        """
        The image tokens of pictures, `pixel_values` (batch, in_channels, resolution, resolution) in [-1, 1]. A
        `ValueError` if the shape is another one, or if the VQGAN has no encoder.
        """
        image_tokens = self.quantize.nearest(self.encode_latents(pixel_values))
        return PaiPainterVQEncoderOutput(image_tokens, self.quantize(image_tokens, self.config.image_grid))

    @with_forward_hook
    def decode(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """
        Image tokens (batch, num_image_tokens) → pixels (batch, out_channels, resolution, resolution) in about [-1, 1],
        not clipped. A `ValueError` if there are too few or too many tokens for a picture.
        """
        if image_tokens.ndim != 2 or image_tokens.shape[1] != self.config.num_image_tokens:
            raise ValueError(
                f"This VQGAN decodes image tokens of shape (batch, {self.config.num_image_tokens}), got "
                f"{tuple(image_tokens.shape)}."
            )
        return self.decode_latents(self.quantize(image_tokens, self.config.image_grid))

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor) -> PaiPainterVQOutput:
        """Encodes and decodes pictures, see [`~PaiPainterVQModel.encode`]: what the VQGAN alone loses."""
        image_tokens = self.encode(pixel_values).image_tokens
        return PaiPainterVQOutput(pixel_values=self.decode(image_tokens), image_tokens=image_tokens)
