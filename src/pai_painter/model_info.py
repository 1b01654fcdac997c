# SPDX-License-Identifier: Apache-2.0
"""What a painter is, read from its folder without its weights: what `pai-painter info` shows."""

import math
import os
from typing import Any

from huggingface_hub import ModelCard
from safetensors import safe_open

from .model.model_files_pai_painter import (
    PainterFolder,
    find_model_file,
    naming_damaged_weights,
    read_painter_folder,
)
from .model.modeling_pai_painter import PaiPainterForImageGeneration
from .model.sampling_pai_painter import default_generation_config, read_generation_config
from .model.weight_conversion import build_without_memory
from .printable import printable

_CARD_FIELDS = ("license", "language", "base_model", "datasets")
_SETTINGS = ("temperature", "top_k", "top_p", "best_of")
_MAX_TEXT = 600


def describe_model(name_or_path: str | os.PathLike, revision: str = "main") -> dict[str, str]:
    """
    Facts, by name, of a whole model, native or EasyNLP's, or a LoRA adapter in a folder or a Hub repository.

    Raises:
        OSError: if there is no such folder or repository.
        ValueError: if it isn't a painter's.
    """
    name = os.fspath(name_or_path)
    folder = read_painter_folder(name, revision=revision)
    config, vq_config = folder.config, folder.vq_config
    model = build_without_memory(PaiPainterForImageGeneration, folder.name, config)
    vqgan = sum(parameter.numel() for parameter in model.vqgan.parameters())
    together = sum(parameter.numel() for parameter in model.parameters())
    settings = default_generation_config(config).to_dict()
    for part in (folder, folder.adapter):  # an adapter's settings come before its base's
        saved = read_generation_config(part.name, config, **part.hub_options) if part is not None else None
        settings = settings if saved is None else saved.to_dict()
    return {
        **_describe_adapter(folder),
        "layout": folder.layout,
        "transformer": f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, "
        f"{config.hidden_size} wide",
        "parameters": f"{together - vqgan:,} transformer + {vqgan:,} VQGAN = {together:,}",
        "memory of the weights": f"{_megabytes(together * 4)} in float32, {_megabytes(together * 2)} in bfloat16",
        "captions": f"{config.text_length} word pieces of {config.text_vocab_size:,}",
        "pictures": f"{vq_config.resolution}×{vq_config.resolution} pixels",
        "image tokens": f"{config.num_image_tokens} per picture ({config.image_grid}×{config.image_grid}), "
        f"out of {config.image_vocab_size:,}",
        **({} if vq_config.has_encoder else {"vqgan": "decoder only: it paints, but can't encode pictures"}),
        "recommended settings": ", ".join(
            f"{option} {settings[option]}" for option in _SETTINGS if settings.get(option) is not None
        ),
        **_read_card(find_model_file(name, "README.md", **(folder.adapter or folder).hub_options)),
    }


def _describe_adapter(folder: PainterFolder) -> dict[str, str]:
    adapter = folder.adapter
    if adapter is None:
        return {}
    with naming_damaged_weights(adapter.name), safe_open(adapter.weights, "pt") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    rank, alpha = (_printable(adapter.settings.get(field)) for field in ("r", "lora_alpha"))
    return {
        "adapter": f"LoRA of rank {rank}, alpha {alpha}: {parameters:,} parameters",
        "base": _printable(folder.name),
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _read_card(path: str | None) -> dict[str, str]:
    """What the model's card says of its training: fields of its front matter, and its first paragraph."""
    if path is None:
        return {"card": "none: nothing is known about its training"}
    card = ModelCard.load(path, ignore_metadata_errors=True)
    fields = card.data.to_dict()
    facts = {field: _printable(fields[field]) for field in _CARD_FIELDS if field in fields}
    return {**facts, "card": _first_paragraph(card.text)}


def _first_paragraph(text: str) -> str:
    for block in text.replace("\r\n", "\n").split("\n\n"):
        if block.strip() and block.strip()[0] not in "#!<|[-`":  # a heading, a picture, a comment, a table, a list
            return _printable(block)
    return "says nothing in words"


def _printable(value: Any) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, list) else value, _MAX_TEXT)
