# SPDX-License-Identifier: Apache-2.0
"""The painter that a run starts from: a trained one, or a new one around a trained VQGAN."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model.configuration_pai_painter import PaiPainterConfig
from ..model.folder_pai_painter import find_file, load_processor, naming_damaged_weights, read_painter_folder
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from ..model.tokenization_pai_painter import PaiPainterTokenizer
from ..model_hash import architecture_of
from .arguments import PainterModelArguments

__all__ = ["build_painter", "take_vqgan", "with_vqgan"]


def build_painter(model: PainterModelArguments) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    """
    The painter, in float32, and its processor.

    Raises:
        ValueError: if configuration, VQGAN and vocabulary don't fit each other.
        OSError: if one of them isn't there.
    """
    dropout = {} if model.dropout is None else {"embd_pdrop": model.dropout, "resid_pdrop": model.dropout}
    if model.model_name_or_path is not None:
        painter, processor = _trained(model, dropout)
    else:
        painter, processor = _new(model, dropout)
    if model.gradient_checkpointing:
        painter.activation_checkpointing_enable()
    return painter, processor


def take_vqgan(painter: PaiPainterForImageGeneration) -> PaiPainterVQModel:
    """
    Takes the frozen VQGAN out of the painter: it is no part of what is trained, wrapped, spread over processes and
    held in checkpoints. [`with_vqgan`] puts it back for a while.
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


def _trained(model: PainterModelArguments, dropout: dict) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    name = str(model.model_name_or_path)
    folder = read_painter_folder(name, revision=model.revision)
    if folder.adapter is not None:
        raise ValueError(
            f"{name} is an adapter: please make a whole painter of it first (`pai-painter merge {name} OUTPUT`) and "
            f"train that."
        )
    config = folder.config
    for field, rate in dropout.items():
        setattr(config, field, rate)
    processor = load_processor(folder)
    with naming_damaged_weights(name):
        painter = PaiPainterForImageGeneration.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            attn_implementation=model.attn_implementation,
            **folder.hub_options,
        )
    return painter, processor


def _new(model: PainterModelArguments, dropout: dict) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    for name in (str(model.vqgan), str(model.config_name)):
        if not os.path.isfile(name) and find_file(name, "config.json") is None:
            raise OSError(f"{name} has no config.json.")
    with naming_damaged_weights(str(model.vqgan)):
        vqgan = PaiPainterVQModel.from_pretrained(model.vqgan, dtype=torch.float32)
    config = _config_for(vqgan, str(model.config_name), str(model.vqgan))
    config.update(dropout)
    tokenizer = _load_tokenizer(str(model.tokenizer_name or model.config_name), config)
    processor = PaiPainterProcessor(PaiPainterImageProcessor(size=vqgan.config.resolution), tokenizer)
    processor.check_model(config)
    painter = PaiPainterForImageGeneration._from_config(config, attn_implementation=model.attn_implementation)
    painter.vqgan.load_state_dict(vqgan.state_dict())
    return painter, processor


def _config_for(vqgan: PaiPainterVQModel, name: str, vqgan_name: str) -> PaiPainterConfig:
    """The configuration of a new painter. It may leave its VQGAN out, but must not name another."""
    config_dict, _ = PaiPainterConfig.get_config_dict(name)
    if config_dict.get("model_type") != PaiPainterConfig.model_type:
        raise ValueError(
            f"{name} is no painter's configuration: its model_type is {config_dict.get('model_type')!r}, but must be "
            f"{PaiPainterConfig.model_type!r}."
        )
    found = architecture_of(vqgan.config)
    if config_dict.get("image_vocab_size", PaiPainterConfig.image_vocab_size) != found["num_embeddings"]:
        raise ValueError(
            f"{name} wants {config_dict.get('image_vocab_size', PaiPainterConfig.image_vocab_size)} image codes "
            f"(`image_vocab_size`), but the VQGAN {vqgan_name} has {found['num_embeddings']}; they must be equal."
        )
    config = PaiPainterConfig.from_dict({"vq_config": found, **config_dict})
    wanted = architecture_of(config.vq_config)
    differences = [f"`{key}` {wanted[key]} instead of {found[key]}" for key in found if wanted[key] != found[key]]
    if differences:
        raise ValueError(
            f"The `vq_config` of {name} isn't that of the VQGAN {vqgan_name}: it has {', '.join(differences)}; please "
            f"leave `vq_config` out to take the VQGAN's."
        )
    return config


def _load_tokenizer(name: str, config: PaiPainterConfig) -> PaiPainterTokenizer:
    if not any(find_file(name, file) for file in ("tokenizer.json", "vocab.txt")):
        raise ValueError(f"{name} has no vocabulary (vocab.txt or tokenizer.json): please set `tokenizer_name`.")
    return PaiPainterTokenizer.from_pretrained(
        name, image_vocab_size=config.image_vocab_size, model_max_length=config.text_length
    )
