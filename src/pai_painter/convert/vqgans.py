# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint doesn't say of its VQGAN: its sizes, and an encoder for one that has none."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.folder_pai_painter import naming_damaged_weights
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from .safe_pickle import CheckpointError

__all__ = ["add_encoder", "read_settings", "read_vq_config"]

_MAX_SETTINGS = 2**20
_SAME_WEIGHT = 1e-5  # apart: a VQGAN that went through another program may have been rounded


def read_settings(path: Path) -> dict[str, Any]:
    """
    Reads a YAML or JSON file as data: numbers, texts, lists and dictionaries.

    Raises:
        OSError: if it can't be read.
        CheckpointError: if it is something else, or asks for objects.
    """
    with path.open("rb") as file:
        text = file.read(_MAX_SETTINGS + 1)
    if len(text) > _MAX_SETTINGS:
        raise CheckpointError(f"{path} is far too long for a file of settings.")
    try:
        # Not all of JSON is YAML: 1e-06 would be a text.
        settings = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as settings: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings, which would be names and values.")
    return settings


def read_vq_config(path: str | os.PathLike) -> PaiPainterVQConfig:
    """
    Reads a VQGAN's sizes: from a VQGAN's folder or its config.json, a painter's, or a file with taming's names
    (`ddconfig`, `n_embed`, `embed_dim`).

    Raises:
        OSError: if it can't be read.
        ValueError: if it isn't a VQGAN's.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    fields = read_settings(path)
    if isinstance(fields.get("vq_config"), dict):
        fields = fields["vq_config"]
    if isinstance(fields.get("model"), dict) and isinstance(fields["model"].get("params"), dict):
        fields = fields["model"]["params"]
    try:
        if isinstance(fields.get("ddconfig"), dict):
            return PaiPainterVQConfig.from_ddconfig(fields["ddconfig"], fields["n_embed"], fields["embed_dim"])
        known = set(PaiPainterVQConfig.__annotations__)
        if not known & fields.keys():
            raise ValueError("it has none of a VQGAN's sizes")
        return PaiPainterVQConfig(**{name: value for name, value in fields.items() if name in known})
    except KeyError as error:
        raise CheckpointError(f"{path} doesn't describe a VQGAN: {error.args[0]} is missing.") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} doesn't describe a VQGAN: {str(error).rstrip('.')}.") from error


def add_encoder(painter: PaiPainterForImageGeneration, vqgan_name: str | os.PathLike) -> None:
    """
    Gives a painter with a decoder-only VQGAN the whole VQGAN, in place. The VQGAN must be the same one: an encoder
    that was trained with another codebook finds codes that mean something else.

    Args:
        painter: whose VQGAN has no encoder.
        vqgan_name: a VQGAN's folder or a painter's, of this program.

    Raises:
        OSError: if there is no such folder.
        ValueError: if it isn't a whole VQGAN, or not this painter's.
    """
    name = os.fspath(vqgan_name)
    if painter.vqgan.config.has_encoder:
        raise CheckpointError(f"The model has a whole VQGAN already: please leave out the other one ({name}).")
    if not (Path(name) / "config.json").is_file():
        raise OSError(f"{name} holds no VQGAN: it must be a folder with config.json and model.safetensors.")
    with naming_damaged_weights(name):
        vqgan = PaiPainterVQModel.from_pretrained(name, dtype=painter.dtype)
    if not vqgan.config.has_encoder:
        raise CheckpointError(f"The VQGAN {name} has no encoder either.")
    wanted, found = painter.vqgan.state_dict(), vqgan.state_dict()
    for weight, tensor in wanted.items():
        if weight not in found or found[weight].shape != tensor.shape:
            raise CheckpointError(f"The VQGAN {name} has other sizes than the model's: {weight} doesn't fit.")
        if not torch.allclose(found[weight], tensor, rtol=0, atol=_SAME_WEIGHT):
            raise CheckpointError(
                f"The VQGAN {name} isn't the model's: {weight} has other numbers, so its codes would mean other "
                f"pictures."
            )
    painter.vqgan.config.has_encoder = True
    painter.vqgan.config.encoder_attention = vqgan.config.encoder_attention
    for part in ("encoder", "quant_conv"):  # the rest stays the model's own
        painter.vqgan.register_module(part, vqgan.get_submodule(part))
