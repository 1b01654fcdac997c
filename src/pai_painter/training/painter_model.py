# SPDX-License-Identifier: Apache-2.0
"""The painter that a run starts from: a trained one, or a new one around a trained VQGAN."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..model.configuration_pai_painter import PaiPainterConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from ..model.tokenization_pai_painter import PaiPainterTokenizer
from ..model_hash import architecture_of
from ..painter_folder import find_file, load_processor, naming_damaged_weights, read_painter_folder
from .arguments import PainterModelArguments

__all__ = ["build_painter", "naming_damaged_files", "take_vqgan", "with_vqgan"]


def build_painter(model: PainterModelArguments) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    """
    The painter, in float32, and its processor.

    Raises:
        ValueError: if configuration, VQGAN and vocabulary are damaged or don't fit each other.
        OSError: if one of them isn't there.
    """
    dropout = {} if model.dropout is None else {"embd_pdrop": model.dropout, "resid_pdrop": model.dropout}
    with naming_damaged_files(str(model.model_name_or_path or model.config_name)):
        painter, processor = (_new if model.model_name_or_path is None else _trained)(model, dropout)
    if model.gradient_checkpointing:
        painter.activation_checkpointing_enable()
    return painter, processor


@contextmanager
def naming_damaged_files(name: str) -> Iterator[None]:
    """
    While a model's files are read.

    Raises:
        ValueError: for any error of the libraries that doesn't say of itself what is wrong with the files.
    """
    try:
        with naming_damaged_weights(name):
            yield
    except (OSError, ValueError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raises nothing more special
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} can't be loaded: one of its files is damaged ({type(error).__name__}: {reason})."
        ) from error


def take_vqgan(painter: PaiPainterForImageGeneration) -> PaiPainterVQModel:
    """
    Takes the frozen VQGAN out of the painter, so that it is neither wrapped, sharded nor held in checkpoints.
    [`with_vqgan`] puts it back for a while.
    """
    vqgan = painter.vqgan.requires_grad_(False).eval()
    painter.register_module("vqgan", None)
    return vqgan


@contextmanager
def with_vqgan(painter: PaiPainterForImageGeneration, vqgan: PaiPainterVQModel) -> Iterator[None]:
    """While it lasts, the painter is whole and can be saved."""
    painter.register_module("vqgan", vqgan)
    try:
        yield
    finally:
        painter.register_module("vqgan", None)


def _trained(
    model: PainterModelArguments, dropout: dict[str, float]
) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    name = str(model.model_name_or_path)
    folder = read_painter_folder(name, revision=model.revision)
    if folder.adapter is not None:
        raise ValueError(
            f"{name} is an adapter: please merge it into its base first (`pai-painter merge {name} OUTPUT`) and train "
            f"the result."
        )
    for field, rate in dropout.items():
        setattr(folder.config, field, rate)
    processor = load_processor(folder)
    attention = model.attn_implementation
    painter = PaiPainterForImageGeneration.from_pretrained(
        name, config=folder.config, dtype=torch.float32, attn_implementation=attention, **folder.hub_options
    )
    return painter, processor


def _new(
    model: PainterModelArguments, dropout: dict[str, float]
) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    for name in (str(model.vqgan), str(model.config_name)):
        if not os.path.isfile(name) and find_file(name, "config.json") is None:
            raise OSError(f"{name} has no config.json.")
    with naming_damaged_files(str(model.vqgan)):
        vqgan = PaiPainterVQModel.from_pretrained(model.vqgan, dtype=torch.float32)
    config = _config_for(vqgan, str(model.config_name), str(model.vqgan))
    config.update(dropout)
    words = str(model.tokenizer_name or model.config_name)
    if not any(find_file(words, file) for file in ("tokenizer.json", "vocab.txt")):
        raise ValueError(f"{words} has no vocabulary (vocab.txt or tokenizer.json): please set `tokenizer_name`.")
    sizes = {"image_vocab_size": config.image_vocab_size, "model_max_length": config.text_length}
    tokenizer = PaiPainterTokenizer.from_pretrained(words, **sizes)
    processor = PaiPainterProcessor(PaiPainterImageProcessor(size=vqgan.config.resolution), tokenizer)
    processor.check_model(config)
    painter = PaiPainterForImageGeneration._from_config(config, attn_implementation=model.attn_implementation)
    painter.vqgan.load_state_dict(vqgan.state_dict())
    return painter, processor


def _config_for(vqgan: PaiPainterVQModel, name: str, vqgan_name: str) -> PaiPainterConfig:
    """The configuration of a new painter. It may leave its VQGAN out, but must not name another."""
    settings: dict[str, Any] = PaiPainterConfig.get_config_dict(name)[0]
    model_type, wanted = settings.get("model_type"), PaiPainterConfig.model_type
    if model_type != wanted:
        raise ValueError(f"{name} is no painter's configuration: its model_type is {model_type!r}, not {wanted!r}.")
    found = architecture_of(vqgan.config)
    size = settings.get("image_vocab_size", PaiPainterConfig.image_vocab_size)
    if size != found["num_embeddings"]:
        raise ValueError(
            f"{name} wants {size} image tokens (`image_vocab_size`), but the VQGAN {vqgan_name} has "
            f"{found['num_embeddings']}; they must be equal."
        )
    config = PaiPainterConfig.from_dict({"vq_config": found, **settings})
    own = architecture_of(config.vq_config)
    differences = [f"`{key}` {own[key]} instead of {found[key]}" for key in found if own[key] != found[key]]
    if differences:
        raise ValueError(
            f"The `vq_config` of {name} isn't that of the VQGAN {vqgan_name}: it has {', '.join(differences)}; please "
            f"leave `vq_config` out to take the VQGAN's."
        )
    return config
