# SPDX-License-Identifier: Apache-2.0
"""Configurations of the VQGAN and of the painter (GPT over image tokens)."""

from typing import Any

from transformers.utils.versions import require_version

# First of all: this file is read before the others where the code came along with the weights, and another version
# would fail in a less helpful way, or pass the key/value cache under another name.
require_version("transformers>=5.24,<6", "PAI-Painter's code is written for it: pip install 'transformers>=5.24,<6'")

# isort: split
# ruff: noqa: E402
from collections.abc import Callable
from functools import wraps

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig

__all__ = ["EasyNLPArtistConfig", "PaiPainterConfig", "PaiPainterVQConfig"]

_MOST_LAYERS = 1000  # of a kind: building a module takes time and memory even if its weights have none
# What transformers itself stores in a `config.json` or passes on, beside its own fields and private names.
_OF_TRANSFORMERS = {
    *("attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type", "name_or_path"),
    *("num_labels", "output_attentions", "quantization_config", "torch_dtype"),
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
}


def _plain_errors(cls: type) -> type:
    """`@strict` wraps what is wrong in exceptions that are no `ValueError`; this gives the sentence itself."""

    def plain(function: Callable) -> Callable:
        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except StrictDataclassError as error:
                raise ValueError(str(error.__cause__ or error)) from error

        return checked

    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, plain(getattr(cls, name)))
    return cls


class _StrictConfig(PreTrainedConfig):
    """A configuration that takes no keyword which it doesn't have, and that also reads EasyNLP's `config.json`."""

    @classmethod
    def _translated(cls, config_dict: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """EasyNLP's names in ours; any other configuration as it is."""
        return config_dict

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Reads a native configuration or EasyNLP's (`model_type: "artist"`); for its VQGAN see `vq_config`."""
        return super().from_dict(cls._translated(config_dict, kwargs), **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Reads the file; EasyNLP's names are translated here already, so that it is not taken for another model's."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._translated(config_dict, kwargs), kwargs

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(name for name in kwargs if name not in _OF_TRANSFORMERS and not name.startswith("_"))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no {', '.join(map(repr, unknown))}: please check the spelling, or, if a "
                f"newer version of pai-painter wrote this configuration, upgrade to it."
            )
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers' own, but unknown options are a `TypeError` unless `return_unused_kwargs` asks for them."""
        config, unused = super().from_pretrained(pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs)
        if return_unused_kwargs:
            return config, unused
        if unused:
            raise TypeError(f"{cls.__name__}.from_pretrained() has no option {', '.join(map(repr, sorted(unused)))}.")
        return config


@_plain_errors
@strict
class PaiPainterVQConfig(_StrictConfig):
    r"""
    Shape of a VQGAN. The defaults are taming-transformers' `f16_16384`: 256×256 pixels ⇄ 16×16 tokens of 16,384.

    Args:
        resolution (`int`, *optional*, defaults to 256): Side of the square pictures, in pixels.
        in_channels, out_channels (`int`, *optional*, defaults to 3): Channels of pictures, encoded and decoded.
        base_channels (`int`, *optional*, defaults to 128): Channels of the first level (taming's `ch`).
        channel_multiplier (`list[int]`, *optional*, defaults to `[1, 1, 2, 2, 4]`): Channels of each level as
            multiples of `base_channels`. Each level but the last halves the resolution.
        num_res_blocks (`int`, *optional*, defaults to 2): Residual blocks at each level of the encoder;
            the decoder has one more.
        attn_resolutions (`list[int]`, *optional*, defaults to `[16]`): Resolutions whose residual blocks are
            followed by self-attention.
        encoder_attention (`bool`, *optional*, defaults to `True`): `False` leaves all attention layers out of the
            encoder, so that a token says more about its own patch and less about its neighbours.
        has_encoder (`bool`, *optional*, defaults to `True`): `False` for a VQGAN that only decodes, as in PaddleNLP's
            checkpoints.
        latent_channels (`int`, *optional*, defaults to 256): Latent channels (taming's `z_channels`).
        embed_dim (`int`, *optional*, defaults to 256): Width of a codebook entry.
        num_embeddings (`int`, *optional*, defaults to 16384): Number of codebook entries (taming's `n_embed`).
        dropout (`float`, *optional*, defaults to 0.0): Dropout inside the residual blocks.
        norm_num_groups (`int`, *optional*, defaults to 32): Groups of every GroupNorm.
        norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of every GroupNorm.

    Raises:
        ValueError: if a value has another type, or if the sizes don't fit together.
    """

    model_type = "pai_painter_vqgan"
    base_config_key = "vq_config"

    resolution: int = 256
    in_channels: int = 3
    out_channels: int = 3
    base_channels: int = 128
    channel_multiplier: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: list[int] | tuple[int, ...] = (16,)
    encoder_attention: bool = True
    has_encoder: bool = True
    latent_channels: int = 256
    embed_dim: int = 256
    num_embeddings: int = 16384
    dropout: float | int = 0.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-6

    @property
    def image_grid(self) -> int:
        """Image tokens along one side of a picture."""
        return self.resolution // 2 ** (len(self.channel_multiplier) - 1)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens of one picture."""
        return self.image_grid**2

    @classmethod
    def _translated(cls, config_dict: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """EasyNLP says nothing of its VQGAN, which is the default."""
        return {"model_type": cls.model_type} if config_dict.get("model_type") == "artist" else config_dict

    @classmethod
    def from_ddconfig(
        cls, ddconfig: dict[str, Any], n_embed: int, embed_dim: int, **kwargs: Any
    ) -> "PaiPainterVQConfig":
        """
        Reads the names of taming-transformers (`model.params` of its YAML files): its `ddconfig`, the number of
        codebook entries, and their width.

        Raises:
            ValueError: if an entry is missing or unknown, or if `double_z` is true (a KL autoencoder, not a VQGAN).
        """
        given = dict(ddconfig)
        if given.pop("double_z", False):
            raise ValueError("`double_z: true` belongs to a KL autoencoder; a VQGAN has `double_z: false`.")
        names = {"z_channels": "latent_channels", "out_ch": "out_channels", "ch": "base_channels"}
        names |= {"ch_mult": "channel_multiplier"}
        names |= {name: name for name in ("resolution", "in_channels", "num_res_blocks", "attn_resolutions", "dropout")}
        unknown, missing = sorted(set(given) - set(names)), sorted(set(names) - set(given))
        if unknown or missing:
            raise ValueError(
                f"A VQGAN's `ddconfig` has exactly {sorted(names)} (and `double_z`); "
                f"missing here: {missing or 'none'}, unknown: {unknown or 'none'}."
            )
        fields = {ours: given[theirs] for theirs, ours in names.items()}
        for name in ("channel_multiplier", "attn_resolutions"):
            fields[name] = list(fields[name])
        return cls(num_embeddings=n_embed, embed_dim=embed_dim, **fields, **kwargs)

    def validate_architecture(self) -> None:
        """Part of `@strict`'s checks: sizes that can't be built are refused with the value that is wrong."""
        _require_positive(self, "resolution", "in_channels", "out_channels", "base_channels")
        _require_positive(self, "num_res_blocks", most=_MOST_LAYERS)
        _require_positive(self, "latent_channels", "embed_dim", "num_embeddings", "norm_num_groups")
        multipliers = self.channel_multiplier
        if not 1 <= len(multipliers) <= 31 or not all(1 <= multiplier <= _MOST_LAYERS for multiplier in multipliers):
            raise ValueError(
                f"`channel_multiplier` must hold at most 31 numbers from 1 to {_MOST_LAYERS}, got {multipliers}."
            )
        halvings = 2 ** (len(self.channel_multiplier) - 1)
        if self.resolution % halvings:
            raise ValueError(
                f"`resolution` ({self.resolution}) must be divisible by {halvings}: "
                f"{len(self.channel_multiplier)} levels halve it {len(self.channel_multiplier) - 1} times."
            )
        for multiplier in (1, *self.channel_multiplier):
            if self.base_channels * multiplier % self.norm_num_groups:
                raise ValueError(
                    f"`base_channels` × {multiplier} = {self.base_channels * multiplier} must be divisible by "
                    f"`norm_num_groups` ({self.norm_num_groups})."
                )
        _require_rates(self, "dropout")


@_plain_errors
@strict
class PaiPainterConfig(_StrictConfig):
    r"""
    Shape of a painter: a GPT that reads `text_length` caption ids and writes the image tokens of one picture,
    and its VQGAN. The defaults are `pai-painter-base-zh`.

    Ids `0 … image_vocab_size - 1` are image tokens; caption token `t` has the id `image_vocab_size + t`.

    Args:
        vq_config (`PaiPainterVQConfig` or `dict`, *optional*): The VQGAN; f16_16384 if not given.
        image_vocab_size (`int`, *optional*, defaults to 16384): Number of image tokens, the width of the head.
        text_vocab_size (`int`, *optional*, defaults to 21128): Number of caption tokens.
        text_length (`int`, *optional*, defaults to 32): Caption positions before the first image token.
        hidden_size (`int`, *optional*, defaults to 768): Width of the transformer.
        num_hidden_layers (`int`, *optional*, defaults to 12): Number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 12): Attention heads of a block.
        intermediate_size (`int`, *optional*): Width of the MLP; 4 × `hidden_size` if not given.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the MLP; `"gelu"` is the exact (erf) one.
        embd_pdrop, resid_pdrop, attn_pdrop (`float`, *optional*, defaults to 0.0): Dropout after the embeddings, on
            the residual branches and on the attention weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of every LayerNorm.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of new weights.
        num_unmasked (`int`, *optional*, defaults to 0): The first `num_unmasked` positions see each other in both
            directions (minGPT's `n_unmasked`); at most `text_length`.
        vocabulary_fingerprint (`str`, *optional*): [`PaiPainterTokenizer.fingerprint`] of the vocabulary that the model
            was trained with, noted when model and processor meet. Another vocabulary is refused then.

    Raises:
        ValueError: if a value has another type, or if the sizes don't fit together.
    """

    model_type = "pai_painter"
    tokenizer_class = "PaiPainterTokenizer"  # for AutoTokenizer, of a folder that has no tokenizer_config.json
    sub_configs_defaults = {"vq_config": PaiPainterVQConfig}
    keys_to_ignore_at_inference = ["cache"]

    vq_config: dict | PreTrainedConfig | None = None
    image_vocab_size: int = 16384
    text_vocab_size: int = 21128
    text_length: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    embd_pdrop: float | int = 0.0
    resid_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    num_unmasked: int = 0
    vocabulary_fingerprint: str | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size

    @classmethod
    def _translated(cls, config_dict: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """
        Takes `vq_config` out of `kwargs`: the VQGAN of an EasyNLP checkpoint, if it isn't f16_16384. The caption's
        length is `block_size` minus the number of image tokens.
        """
        if config_dict.get("model_type") != "artist":
            return config_dict
        vq_config = kwargs.pop("vq_config", None) or {}
        if not isinstance(vq_config, PaiPainterVQConfig):
            vq_config = PaiPainterVQConfig(**vq_config)
        required = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size"}
        required |= {"img_vocab_size": "image_vocab_size", "text_vocab_size": "text_vocab_size"}
        optional = {"n_unmasked": "num_unmasked"} | {name: name for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
        missing = sorted((set(required) | {"block_size"}) - set(config_dict))
        if missing:
            raise ValueError(f"This config.json says it is EasyNLP's (`artist`) but lacks {', '.join(missing)}.")
        if not _fits(config_dict, vq_config):
            raise ValueError(
                f"This EasyNLP folder has {config_dict['block_size']} positions and {config_dict['img_vocab_size']} "
                f"image tokens, which doesn't fit a VQGAN of {vq_config.num_image_tokens} tokens per picture out of "
                f"{vq_config.num_embeddings}. EasyNLP doesn't store its VQGAN's shape: please pass "
                f"`vq_config=PaiPainterVQConfig(...)`, or make a native folder of it, `pai-painter convert FOLDER "
                f"OUTPUT --vq-config SIZES.json`."
            )
        fields = {ours: config_dict[theirs] for theirs, ours in (required | optional).items() if theirs in config_dict}
        text_length = config_dict["block_size"] - vq_config.num_image_tokens
        return {**fields, "model_type": cls.model_type, "text_length": text_length, "vq_config": vq_config.to_dict()}

    @property
    def image_grid(self) -> int:
        """Image tokens along one side of a picture."""
        return self.vq_config.image_grid  # type: ignore[union-attr]  # a PaiPainterVQConfig by now

    @property
    def num_image_tokens(self) -> int:
        """Image tokens of one picture."""
        return self.vq_config.num_image_tokens  # type: ignore[union-attr]

    @property
    def vocab_size(self) -> int:
        """Ids that the model reads: image tokens and caption tokens. (It writes `image_vocab_size` of them.)"""
        return self.image_vocab_size + self.text_vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """Positions of a sequence: the caption and one picture."""
        return self.text_length + self.num_image_tokens

    def validate_architecture(self) -> None:
        """Part of `@strict`'s checks: sizes that can't be built are refused with the value that is wrong."""
        _require_positive(self, "image_vocab_size", "text_vocab_size", "text_length", "hidden_size")
        _require_positive(self, "num_attention_heads", "intermediate_size")
        _require_positive(self, "num_hidden_layers", most=_MOST_LAYERS)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be divisible by `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if not isinstance(self.vq_config, PaiPainterVQConfig):
            raise ValueError(f"`vq_config` must be a PaiPainterVQConfig, got {type(self.vq_config).__name__}.")
        if self.image_vocab_size != self.vq_config.num_embeddings:
            raise ValueError(
                f"`image_vocab_size` ({self.image_vocab_size}) must be the size of the VQGAN's codebook "
                f"(`vq_config.num_embeddings` = {self.vq_config.num_embeddings})."
            )
        if not 0 <= self.num_unmasked <= self.text_length:
            raise ValueError(
                f"`num_unmasked` must lie between 0 and `text_length` ({self.text_length}), "
                f"got {self.num_unmasked}: an unmasked image token would see the tokens that it predicts."
            )
        if self.tie_word_embeddings:
            raise ValueError("`tie_word_embeddings` must be false: the head has no rows for the caption tokens.")
        _require_rates(self, "embd_pdrop", "resid_pdrop", "attn_pdrop")


class EasyNLPArtistConfig(PreTrainedConfig):
    """
    Stands for EasyNLP's `model_type: "artist"` in AutoConfig. Reading such a `config.json` gives a
    [`PaiPainterConfig`]; only if it doesn't fit the VQGAN of the published models and no `vq_config` is given, it stays
    as it is: enough for tokenizer and processor, which don't need the VQGAN.
    """

    model_type = "artist"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See [`PaiPainterConfig.from_dict`]."""
        if kwargs.get("vq_config") is None and not _fits(config_dict, PaiPainterVQConfig()):
            return super().from_dict(config_dict, **kwargs)
        return PaiPainterConfig.from_dict(config_dict, **kwargs)


def _fits(easynlp: dict[str, Any], vq_config: PaiPainterVQConfig) -> bool:
    return easynlp.get("block_size", 0) > vq_config.num_image_tokens and (
        easynlp.get("img_vocab_size") == vq_config.num_embeddings
    )


def _require_positive(config: PreTrainedConfig, *names: str, most: int = 2**31 - 1) -> None:
    for name in names:
        if not 1 <= getattr(config, name) <= most:
            raise ValueError(f"`{name}` must lie between 1 and {most:,}, got {getattr(config, name):,}.")


def _require_rates(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"`{name}` is a dropout rate and must lie in [0, 1), got {getattr(config, name)}.")
