# SPDX-License-Identifier: Apache-2.0
"""
The painter: caption ids → image tokens → pixels.

A GPT in minGPT's shape (MIT, https://github.com/karpathy/minGPT, as used by taming-transformers and EasyNLP) over one
sequence, `text_length` caption ids and then the image tokens of one picture in raster order. It reads both kinds of
ids and predicts image tokens only. Pads of the caption are attended to like any other token, as in training.
"""

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationConfig
from transformers.masking_utils import create_causal_mask, create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from .generation_pai_painter import ImageGenerationMixin, PaiPainterImageOutput
from .model_files_pai_painter import HUB_OPTIONS
from .modeling_vqgan import PaiPainterVQModel
from .sampling_pai_painter import (
    complete_generation_config,
    default_generation_config,
    read_generation_config,
)
from .weight_conversion import StrictLoadingMixin

__all__ = ["PaiPainterForImageGeneration", "PaiPainterImageOutput", "PaiPainterModel", "PaiPainterPreTrainedModel"]


# Options of every model in transformers that reach `forward` as further keywords: its decorators take the first two out
# of what the layers do, and `Trainer` passes the last one on to the loss.
_RECORDED = {"output_hidden_states", "output_attentions"}
_FOR_THE_LOSS = {"num_items_in_batch"}


def refuse_unknown(kwargs: dict[str, Any], known: set[str], where: str) -> None:
    """A `TypeError` if there are keywords beside those that are known; one that vanished would change the result."""
    unknown = sorted(name for name in kwargs.keys() - known if kwargs[name] is not None)
    if unknown:
        raise TypeError(f"{where} has no option {', '.join(unknown)}.")


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (B, nh, T, hs)
    key: torch.Tensor,  # (B, nh, S, hs)
    value: torch.Tensor,  # (B, nh, S, hs)
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights  # (B, T, nh, hs), (B, nh, T, S)


class PaiPainterAttention(nn.Module):
    def __init__(self, config: PaiPainterConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, C)
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # (B, nh, T, hs)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # (B, nh, S, hs)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attn_pdrop if self.training else 0.0
        attended, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.out_proj(attended.flatten(2)), weights


class PaiPainterMLP(nn.Module):
    def __init__(self, config: PaiPainterConfig):
        super().__init__()
        width = cast(int, config.intermediate_size)  # the configuration fills it in
        self.fc_1 = nn.Linear(config.hidden_size, width)
        self.act = ACT2FN[config.hidden_act]
        self.fc_2 = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc_2(self.act(self.fc_1(hidden_states)))


class PaiPainterBlock(GradientCheckpointingLayer):
    def __init__(self, config: PaiPainterConfig, layer_idx: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = PaiPainterAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PaiPainterMLP(config)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.attn(self.ln_1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.resid_dropout(attended)
        return hidden_states + self.resid_dropout(self.mlp(self.ln_2(hidden_states)))


class PaiPainterPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """What both classes share: how weights start, are loaded and saved."""

    config_class = PaiPainterConfig
    base_model_prefix = "model"
    input_modalities = ("text",)
    output_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PaiPainterBlock", "VQResnetBlock", "VQAttentionBlock"]
    _skip_keys_device_placement = ["cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": PaiPainterBlock,
        "attentions": OutputRecorder(PaiPainterAttention, index=1),
    }
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.mask$"]  # minGPT keeps its causal mask as a buffer

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PaiPainterModel):
            init.normal_(module.embed_positions, mean=0.0, std=self.config.initializer_range)


class PaiPainterModel(PaiPainterPreTrainedModel):
    """The transformer without its head: ids → hidden states."""

    # The rest of a painter's folder, when the transformer is loaded alone.
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.mask$", r"^vqgan\.", r"^lm_head\."]
    _own_parts = ("embed_tokens", "embed_positions", "layers", "norm")

    def __init__(self, config: PaiPainterConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Parameter(torch.zeros(1, config.max_position_embeddings, config.hidden_size))
        self.embd_dropout = nn.Dropout(config.embd_pdrop)
        self.layers = nn.ModuleList(PaiPainterBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): Caption ids (from `image_vocab_size` on), then
                image tokens. With `cache`, only what comes after them.
            attention_mask (`torch.Tensor`, *optional*): Leave it out: captions are attended to with their pads.
            cache (`Cache`, *optional*): Keys and values of earlier positions.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, length, hidden_size)`, *optional*): Instead of ids.
            use_cache (`bool`, *optional*): Give `cache` back.
        """
        refuse_unknown(kwargs, _RECORDED, "PaiPainterModel.forward")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Please give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        length, table = inputs_embeds.shape[1], self.config.max_position_embeddings
        past_length = cache.get_seq_length() if cache is not None else 0
        if length + (past_length if isinstance(past_length, int) else 0) > table:  # a static cache's is a tensor
            raise ValueError(f"Caption and picture have {table} positions, got {length} ids after {past_length}.")
        positions = torch.arange(length, device=inputs_embeds.device) + past_length  # (T,)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=positions.unsqueeze(0),
            or_mask_function=prefix_mask(self.config),
        )
        hidden_states = self.embd_dropout(inputs_embeds + self.embed_positions[:, positions])
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, cache=cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), cache=cache if use_cache else None)


def prefix_mask(config: PaiPainterConfig) -> Callable | None:
    """What is added to the causal mask: the first `num_unmasked` positions see each other both ways."""
    unmasked = config.num_unmasked
    if not unmasked:
        return None
    if "flash" in config._attn_implementation:
        raise ValueError(
            "Flash attention doesn't support this model's prefix mask (`num_unmasked`); "
            "please load it with `attn_implementation='sdpa'`."
        )
    return lambda batch, head, query, key: (query < unmasked) & (key < unmasked)


class PaiPainterForImageGeneration(PaiPainterPreTrainedModel, ImageGenerationMixin):
    """
    The painter with its head and its VQGAN.

    [`~PaiPainterForImageGeneration.generate`] is transformers' own and gives caption ids and image tokens;
    [`~ImageGenerationMixin.generate_images`] gives pixels and follows the seed rule.
    """

    _own_parts = ("model", "lm_head", "vqgan")
    known_forwards: frozenset[Callable]

    def __init__(self, config: PaiPainterConfig):
        super().__init__(config)
        self.model = PaiPainterModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.image_vocab_size, bias=False)
        self.vqgan = PaiPainterVQModel(cast(PaiPainterVQConfig, config.vq_config))
        self.loss_type = "ForCausalLM"
        self.generation_config = default_generation_config(config)
        self.post_init()

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | os.PathLike | None,
        **kwargs: Any,
    ) -> None:
        """Called on loading; see [`~sampling_pai_painter.complete_generation_config`]."""
        if generation_config is None and pretrained_model_name_or_path is not None:
            # transformers passes over a damaged file in silence.
            hub_options = {key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()}
            read_generation_config(pretrained_model_name_or_path, self.config, **hub_options)
        super().adjust_generation_fn(
            generation_config, from_auto_class, from_pipeline, pretrained_model_name_or_path, **kwargs
        )
        self.generation_config = complete_generation_config(self.generation_config, self.config)

    @staticmethod
    def create_masks_for_generate(config: PaiPainterConfig, **kwargs: Any) -> Any:
        """The mask that `generate` draws ahead of `forward` for a static cache: it has the prefix, too."""
        return create_masks_for_generate(config=config, or_mask_function=prefix_mask(config), **kwargs)

    def _validate_generated_length(self, generation_config: GenerationConfig, *args: Any) -> None:
        super()._validate_generated_length(generation_config, *args)
        longest, asked = self.config.max_position_embeddings, generation_config.max_length
        if asked > longest:
            raise ValueError(f"Please lower `max_new_tokens` or `max_length`: {asked} ids are more than {longest}.")

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refused: ids below `image_vocab_size` are the VQGAN's tokens and those above it the tokenizer's."""
        raise ValueError(
            "A painter's embeddings can't be resized: they hold the VQGAN's image tokens, then the tokenizer's caption "
            "tokens. Another vocabulary needs a painter that is trained with another `text_vocab_size`."
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""
        Args:
            input_ids, attention_mask, cache, inputs_embeds, use_cache: see [`PaiPainterModel`].
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*): Usually `input_ids` themselves. They are
                shifted inside, so that each position predicts the next; what is no image token (a caption id, -100) is
                ignored.
            logits_to_keep (`int` or `torch.LongTensor` of shape `(kept,)`, *optional*, defaults to 0): Compute the head
                (and the loss) at the last positions only, or at these; 0 means all.
            kwargs: `output_hidden_states` and `output_attentions`, `return_dict`, and `num_items_in_batch`, the labels
                of the whole batch that aren't -100: what of them is predicted divides the loss.

        Returns:
            `CausalLMOutputWithPast`: `loss` (mean cross-entropy in nats, if there are labels) and `logits`
            (batch, length or kept, image_vocab_size).

        Raises:
            TypeError: if there are other keywords.
            ValueError: if there are too many ids, or if `labels` hold anything but ids of this model and -100 (which an
                accelerator isn't asked about).
        """
        refuse_unknown(kwargs, _RECORDED | _FOR_THE_LOSS, "PaiPainterForImageGeneration.forward")
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{name: value for name, value in kwargs.items() if name in _RECORDED},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            targets = self._targets(labels)
            if kwargs.get("num_items_in_batch") is not None:
                # `Trainer` counts labels that aren't -100, caption ids among them; a share of them is predicted.
                counted = (labels[:, 1:] != -100).sum().clamp(min=1)
                kwargs["num_items_in_batch"] = kwargs["num_items_in_batch"] * (targets != -100).sum() / counted
            loss = self.loss_function(
                logits,
                labels,
                vocab_size=self.config.image_vocab_size,
                shift_labels=targets[:, kept].contiguous(),
                **kwargs,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """What each position predicts, (batch, length): the next label, or -100 where that is no image token."""
        images, ids = self.config.image_vocab_size, self.config.vocab_size
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            strange = labels[(labels != -100) & ((labels < 0) | (labels >= ids))]
            if len(strange):
                raise ValueError(f"`labels` must be ids from 0 to {ids - 1}, or -100 to be ignored, got {strange[0]}.")
        labels = labels.masked_fill((labels >= images) & (labels < ids), -100)
        return nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]


# Painting on the CPU computes what these do; a part with another `forward`, of its own or patched in, goes through
# `generate`.
PaiPainterForImageGeneration.known_forwards = frozenset(
    part.forward
    for part in (
        *(PaiPainterForImageGeneration, PaiPainterModel, PaiPainterBlock, PaiPainterAttention, PaiPainterMLP),
        *(nn.ModuleList, nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout),
    )
)
