# SPDX-License-Identifier: Apache-2.0
"""
Reads the painters of PaddleNLP: `model_state.pdparams`, a pickle of NumPy arrays, and `vocab.txt`.

The transformer is EasyNLP's; its linear layers are stored as (in, out), and its head also has rows for caption tokens,
which are never predicted. Of the VQGAN there is what painting needs: codebook and decoder.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..model.configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.processing_pai_painter import PaiPainterProcessor
from ..model.tokenization_pai_painter import PaiPainterTokenizer
from ..model_hash import architecture_of
from ..printable import printable
from .checkpoint_reading import CheckpointError, ConversionReport, check_tensors, fill_model

_TABLE = "StructuredToParameterName@@"  # Paddle's own: names of names
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
_USUAL_HEAD = 64  # width of an attention head in all published models


def read_paddlenlp(
    file: Path, vq_config: PaiPainterVQConfig | None = None, settings: Path | None = None
) -> ConversionReport:
    """
    Reads a painter from its `.pdparams` and the `vocab.txt` beside it; its VQGAN has no encoder.

    Neither the VQGAN's sizes nor the number of attention heads is in the weights. The latter is in `settings`, by
    default `model_config.json` or `config.json` beside the weights; without one, attention heads are 64 wide.
    """
    arrays = _read_arrays(file)
    vq_config = PaiPainterVQConfig(**{**architecture_of(vq_config or PaiPainterVQConfig()), "has_encoder": False})
    beside = [file.parent / "model_config.json", file.parent / "config.json"]
    settings = settings or next((path for path in beside if path.is_file()), None)
    config = _read_config(arrays, vq_config, settings, file)
    tokenizer = PaiPainterTokenizer.from_pretrained(
        file.parent, image_vocab_size=config.image_vocab_size, model_max_length=config.text_length
    )
    processor = PaiPainterProcessor(PaiPainterImageProcessor(size=vq_config.resolution), tokenizer)
    processor.check_model(config)
    weights = {}
    for name, array in arrays.items():
        ours = _native_name(name)
        if ours in weights:
            raise CheckpointError(f"{file} holds {ours} twice, once as {name}.")
        weights[ours] = _as_native(ours, array, config)
    model = fill_model(PaiPainterForImageGeneration, config, weights, file)
    unused = f"lm_head, rows {config.image_vocab_size}…{config.vocab_size - 1} (caption tokens)"
    read = [file.name, "vocab.txt", *([settings.name] if settings else [])]
    return ConversionReport("PaddleNLP", model, processor, read, [unused, _TABLE])


def _read_config(
    arrays: dict[str, torch.Tensor], vq_config: PaiPainterVQConfig, settings: Path | None, file: Path
) -> PaiPainterConfig:
    """The sizes, as far as the weights show them."""
    layers = {int(found[1]) for name in arrays if (found := re.match(r"gpt\.decoder\.layers\.(\d{1,4})\.", name))}
    try:
        words, width = arrays["gpt.embeddings.word_embeddings.weight"].shape
        positions, _ = arrays["gpt.embeddings.position_embeddings.weight"].shape
        return PaiPainterConfig(
            vq_config=vq_config,
            image_vocab_size=vq_config.num_embeddings,
            text_vocab_size=words - vq_config.num_embeddings,
            text_length=positions - vq_config.num_image_tokens,
            hidden_size=width,
            num_hidden_layers=len(layers),
            num_attention_heads=_num_heads(width, settings),
            intermediate_size=len(arrays["gpt.decoder.layers.0.linear1.bias"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} contains no painter of PaddleNLP with {vq_config.num_image_tokens} image tokens and a codebook of "
            f"{vq_config.num_embeddings} ({str(error).rstrip('.')}); other sizes are given with --vq-config."
        ) from error


def _num_heads(width: int, settings: Path | None) -> int:
    if settings is None and width % _USUAL_HEAD == 0:
        return width // _USUAL_HEAD
    # PaddleNLP nests a model's settings in those of the model around it, so the text is searched.
    text = "" if settings is None else settings.read_text(encoding="utf-8")
    found = re.search(r'"num_attention_heads"\s*:\s*(\d{1,6})\b', text)
    if found is None:
        raise CheckpointError(
            "The weights don't tell `num_attention_heads`: please name a JSON file with it (--config)."
        )
    return int(found[1])


def _native_name(name: str) -> str:
    for pattern, ours in _RENAMINGS:
        if (found := re.fullmatch(pattern, name)) is not None:
            return found.expand(ours)
    return name


def _as_native(name: str, array: torch.Tensor, config: PaiPainterConfig) -> torch.Tensor:
    if name == "model.embed_positions":
        return array.unsqueeze(0)
    if name == "lm_head.weight" and array.shape[:1] == (config.vocab_size,):
        return array[: config.image_vocab_size]
    return array.t() if _LINEAR.fullmatch(name) and array.ndim == 2 else array


class _DType:
    """A number type: a letter, a size and an order of bytes."""

    def __init__(self, code: str, *_: object):
        if not re.fullmatch(r"[fiub]\d{1,2}", code):
            raise ValueError(f"an array of {code}, which are no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """An array, once the pickle has given its content."""

    value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")
        self.value = array.astype(dtype.dtype.newbyteorder("="), order="C")


_CALLS: dict[str, Callable] = {
    "numpy.dtype": _DType,
    "numpy.ndarray": lambda: None,  # only named, never called
    "__builtin__.bytes": lambda: b"",  # of an empty array
    "_codecs.encode": lambda text, _: text.encode("latin-1"),
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (call := _CALLS.get(f"{module}.{name}")) is None:
            raise ValueError(f"it names {module}.{name}, but must hold arrays only")
        return lambda *args: call(*args)  # a new one each time, since a pickle may set attributes of what it gets


def _read_arrays(path: Path) -> dict[str, torch.Tensor]:
    """Reads a pickled dictionary of arrays, and runs nothing."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file).load()
        if isinstance(content, dict):
            content = {name: _as_tensor(value) for name, value in content.items() if name != _TABLE}
    except OSError:
        raise
    except Exception as error:
        reason = printable(str(error), 200).rstrip(".") or "it ends too early"
        raise CheckpointError(f"{path} is damaged or refused, and nothing in it was executed: {reason}.") from error
    return check_tensors(content, path)


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.value.dtype == np.uint16:  # NumPy has no bfloat16, so Paddle writes its bits
        return torch.from_numpy(value.value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value.value)
