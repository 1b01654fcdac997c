# SPDX-License-Identifier: Apache-2.0
"""
PaddleNLP's painters: `model_state.pdparams`, a pickle of NumPy arrays, and `vocab.txt`.

Their transformer is the one of EasyNLP; the linear layers are stored as (in, out), and the head has rows for caption
tokens, too, which are never predicted. Of the VQGAN they have what painting needs: codebook and decoder.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..model.configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model_hash import architecture_of
from .reading import ReadModel, read_vocabulary
from .safe_pickle import CheckpointError, NumPyArray, printable, read_pickle
from .vqgans import read_settings
from .weights import Weight, described, fill_model

__all__ = ["read_paddlenlp"]

_TABLE = "StructuredToParameterName@@"  # Paddle's own: names of names
_HEADS = ("lm_head.decoder_weight", "lm_head.weight")
_RENAMINGS = [
    (r"gpt\.embeddings\.word_embeddings\.weight", "model.embed_tokens.weight"),
    (r"gpt\.embeddings\.position_embeddings\.weight", "model.embed_positions"),
    (r"gpt\.decoder\.layers\.(\d+)\.self_attn\.([qkv]|out)_proj\.(weight|bias)", r"model.layers.\1.attn.\2_proj.\3"),
    (r"gpt\.decoder\.layers\.(\d+)\.linear([12])\.(weight|bias)", r"model.layers.\1.mlp.fc_\2.\3"),
    (r"gpt\.decoder\.layers\.(\d+)\.norm([12])\.(weight|bias)", r"model.layers.\1.ln_\2.\3"),
    (r"gpt\.decoder\.norm\.(weight|bias)", r"model.norm.\1"),
    (r"lm_head\.(?:decoder_weight|weight)", "lm_head.weight"),
    (r"vqgan_detokenizer\.embedding\.weight", "vqgan.quantize.embedding.weight"),
    (r"vqgan_detokenizer\.(post_quant_conv|decoder)\.(.+)", r"vqgan.\1.\2"),
]
_LINEAR = re.compile(r"model\.layers\.\d+\.(attn|mlp)\..*\.weight")
_USUAL_HEAD = 64  # numbers of an attention head, in all models that were published


def read_paddlenlp(
    source: Path, vq_config: PaiPainterVQConfig | None = None, settings: Path | None = None
) -> ReadModel:
    """
    Reads a painter of PaddleNLP; its VQGAN has no encoder.

    Args:
        source: a folder with one `.pdparams`, or that file; `vocab.txt` is beside it.
        vq_config: the VQGAN's sizes, if it isn't VQGAN f16_16384: they aren't written down.
        settings: a JSON file with `num_attention_heads`, which the weights don't tell; by default
            `model_config.json` or `config.json` beside the weights, and without one 64 numbers make a head.

    Raises:
        OSError: if a file isn't there.
        ValueError: if one is damaged or unsafe, or if weights, sizes and vocabulary don't fit each other.
    """
    file = source if source.is_file() else _only_weights(source)
    arrays = _read_arrays(file)
    vq_config = PaiPainterVQConfig() if vq_config is None else vq_config
    vq_config = PaiPainterVQConfig(**{**architecture_of(vq_config), "has_encoder": False})
    settings = _find_settings(file.parent) if settings is None else settings
    config = _config(arrays, vq_config, settings, file)
    processor = read_vocabulary(file.parent / "vocab.txt", config)
    weights, names = {}, {}
    for name, array in arrays.items():
        ours = _native_name(name)
        weights[ours] = _weight(name, ours, array, config)
        names[ours] = name
    model = fill_model(PaiPainterForImageGeneration, config, weights, str(file), names)
    unused = f"{names['lm_head.weight']}, rows {config.image_vocab_size}…{config.vocab_size - 1} (caption tokens)"
    return ReadModel(
        "PaddleNLP",
        model,
        processor,
        read=[file.name, "vocab.txt", *([settings.name] if settings else [])],
        ignored=[unused, _TABLE],
    )


def _only_weights(folder: Path) -> Path:
    found = sorted(folder.glob("*.pdparams"))
    if len(found) != 1:
        raise OSError(f"{folder} has {len(found) or 'no'} files *.pdparams: please name one.")
    return found[0]


def _read_arrays(file: Path) -> dict[str, torch.Tensor]:
    content = read_pickle(file)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file} holds no weights, which would be a dictionary of arrays.")
    arrays = {}
    for name in list(content):
        value = content.pop(name)  # so that no array is held twice
        if name == _TABLE:
            continue
        if not isinstance(name, str) or not isinstance(value, NumPyArray):
            raise CheckpointError(f"{file} holds {described(value)} under {printable(name)!r}, where an array must be.")
        array = value.array.copy()  # writable: the pickle's bytes aren't
        if array.dtype == np.uint16:  # NumPy has no bfloat16, so Paddle writes its bits
            arrays[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            arrays[name] = torch.from_numpy(array)
    return arrays


def _config(
    arrays: dict[str, torch.Tensor], vq_config: PaiPainterVQConfig, settings: Path | None, file: Path
) -> PaiPainterConfig:
    """The sizes, as far as the weights show them."""
    words, positions = (_sizes(arrays, f"gpt.embeddings.{name}_embeddings.weight") for name in ("word", "position"))
    layers = {int(found[1]) for name in arrays if (found := re.match(r"gpt\.decoder\.layers\.(\d{1,4})\.", name))}
    width, text_length = words[1], positions[0] - vq_config.num_image_tokens
    if not width or not layers:
        raise CheckpointError(f"{file} holds no painter of PaddleNLP: it has no gpt.embeddings and gpt.decoder.layers.")
    codes, _ = _sizes(arrays, "vqgan_detokenizer.embedding.weight")
    if text_length < 1 or words[0] <= vq_config.num_embeddings or codes not in (0, vq_config.num_embeddings):
        raise CheckpointError(
            f"{file} has {positions[0]} positions and {codes or 'no'} image codes, which doesn't fit a VQGAN of "
            f"{vq_config.num_image_tokens} codes a picture out of {vq_config.num_embeddings}: please give the VQGAN's "
            f"sizes with --vq-config."
        )
    inner = arrays.get("gpt.decoder.layers.0.linear1.bias")
    heads = _num_heads(width, settings)
    try:
        return PaiPainterConfig(
            vq_config=vq_config,
            image_vocab_size=vq_config.num_embeddings,
            text_vocab_size=words[0] - vq_config.num_embeddings,
            text_length=text_length,
            hidden_size=width,
            num_hidden_layers=len(layers),
            num_attention_heads=heads,
            intermediate_size=4 * width if inner is None else inner.numel(),
        )
    except ValueError as error:
        raise CheckpointError(f"{file} can't be the weights of a painter: {str(error).rstrip('.')}.") from error


def _sizes(arrays: dict[str, torch.Tensor], name: str) -> tuple[int, int]:
    """Rows and columns of a table, which may be missing."""
    if name not in arrays or arrays[name].ndim != 2:
        return 0, 0
    rows, columns = arrays[name].shape
    return rows, columns


def _find_settings(folder: Path) -> Path | None:
    for name in ("model_config.json", "config.json"):
        if (folder / name).is_file():
            return folder / name
    return None


def _num_heads(width: int, settings: Path | None) -> int:
    heads = None if settings is None else _first_value(read_settings(settings), "num_attention_heads")
    if heads is None and settings is None and width % _USUAL_HEAD == 0:
        return width // _USUAL_HEAD
    if type(heads) is not int:
        where = "and no file says it" if settings is None else f"and {settings} doesn't say it"
        raise CheckpointError(
            f"The weights don't tell the number of attention heads of a model {width} wide, {where}: please name a "
            f"JSON file with `num_attention_heads`, with --config."
        )
    return heads


def _first_value(settings: Any, name: str, depth: int = 0) -> Any:
    """PaddleNLP nests the settings of a model in those of the model around it."""
    if isinstance(settings, dict):
        if name in settings:
            return settings[name]
        settings = list(settings.values())
    if isinstance(settings, list) and depth < 8:
        found = (_first_value(each, name, depth + 1) for each in settings)
        return next((value for value in found if value is not None), None)
    return None


def _native_name(name: str) -> str:
    for pattern, ours in _RENAMINGS:
        if (found := re.fullmatch(pattern, name)) is not None:
            return found.expand(ours)
    return name


def _weight(name: str, ours: str, array: torch.Tensor, config: PaiPainterConfig) -> Weight:
    if ours == "model.embed_positions":
        array = array.unsqueeze(0)
    elif ours == "lm_head.weight" and len(array) == config.vocab_size:
        array = array[: config.image_vocab_size]
    elif _LINEAR.fullmatch(ours) and array.ndim == 2:
        array = array.t()
    return Weight(printable(name), tuple(array.shape), array.contiguous)
