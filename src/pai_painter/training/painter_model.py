# SPDX-License-Identifier: Apache-2.0
"""The painter that a run starts from: a trained one, or a new one around a trained VQGAN."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model.configuration_pai_painter import PaiPainterConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.model_files_pai_painter import find_model_file, read_painter_folder
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor, load_processor
from ..model.tokenization_pai_painter import PaiPainterTokenizer
from ..model_hash import architecture_of
from .arguments import PainterModelArguments


def build_painter(model: PainterModelArguments) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    """
    The painter, in float32, and its processor. Raises `ValueError` if configuration, VQGAN and vocabulary are damaged
    or don't fit each other, and `OSError` if one of them isn't there.
    """
    with naming_damaged_files(str(model.model_name_or_path or model.config_name)):
        painter, processor = _new(model) if model.model_name_or_path is None else _trained(model)
    if model.gradient_checkpointing:
        painter.activation_checkpointing_enable()
    return painter, processor


@contextmanager
def naming_damaged_files(name: str) -> Iterator[None]:
    """While a model's files are read: errors that don't say what is wrong with them become a `ValueError`."""
    try:
        yield
    except (OSError, ValueError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{name} can't be loaded, one of its files is damaged: {error!r}.") from error


def take_vqgan(painter: PaiPainterForImageGeneration) -> PaiPainterVQModel:
    """Takes the frozen VQGAN out of the painter, so that it is neither wrapped, sharded nor in checkpoints."""
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


def _trained(model: PainterModelArguments) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    name = str(model.model_name_or_path)
    folder = read_painter_folder(name, revision=model.revision)
    if folder.adapter is not None:
        raise ValueError(f"{name} is an adapter: please train what `pai-painter merge {name} OUTPUT` makes of it.")
    folder.config.update(_dropout(model))
    processor = load_processor(folder)
    options = {"attn_implementation": model.attn_implementation, **folder.hub_options}
    painter = PaiPainterForImageGeneration.from_pretrained(name, config=folder.config, dtype=torch.float32, **options)
    return painter, processor


def _new(model: PainterModelArguments) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    vqgan_name, name = str(model.vqgan), str(model.config_name)
    for part in (vqgan_name, name):
        if not os.path.isfile(part) and find_model_file(part, "config.json") is None:
            raise OSError(f"{part} has no config.json.")
    with naming_damaged_files(vqgan_name):
        vqgan = PaiPainterVQModel.from_pretrained(vqgan_name, dtype=torch.float32)
    settings, found = PaiPainterConfig.get_config_dict(name)[0], architecture_of(vqgan.config)
    if settings.get("model_type") != PaiPainterConfig.model_type:
        raise ValueError(f"{name} isn't a painter's configuration: its model_type is {settings.get('model_type')!r}.")
    config = PaiPainterConfig.from_dict({"vq_config": found, **settings})
    if architecture_of(config.vq_config) != found:
        raise ValueError(f"The `vq_config` of {name} isn't that of the VQGAN {vqgan_name}: please leave it out.")
    config.update(_dropout(model))
    words = str(model.tokenizer_name or model.config_name)
    if not any(find_model_file(words, file) for file in ("tokenizer.json", "vocab.txt")):
        raise ValueError(f"{words} has no vocabulary (vocab.txt or tokenizer.json): please set `tokenizer_name`.")
    tokenizer = PaiPainterTokenizer.from_pretrained(
        words, image_vocab_size=config.image_vocab_size, model_max_length=config.text_length
    )
    processor = PaiPainterProcessor(PaiPainterImageProcessor(size=vqgan.config.resolution), tokenizer)
    processor.check_model(config)
    painter = PaiPainterForImageGeneration._from_config(config, attn_implementation=model.attn_implementation)
    painter.vqgan.load_state_dict(vqgan.state_dict())
    return painter, processor


def _dropout(model: PainterModelArguments) -> dict[str, float]:
    return {} if model.dropout is None else {"embd_pdrop": model.dropout, "resid_pdrop": model.dropout}
