# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint: finds out what it is, reads it, and writes it in another layout."""

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.folder_pai_painter import naming_damaged_weights
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.model_files_pai_painter import check_finite, refuse_git_lfs_pointer
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from ..printable import printable
from ..whole_files import new_folder
from .checkpoint_kinds import kind_of, unpack
from .checkpoint_reading import CheckpointError, ReadModel, read_vq_config
from .easynlp_layout import read_easynlp, write_easynlp
from .from_paddlenlp import read_paddlenlp
from .from_taming import read_taming

Layout = Literal["native", "easynlp"]
DType = Literal["float32", "float16", "bfloat16"]
_SAME_WEIGHT = 1e-5  # largest difference: a VQGAN that went through another program may have been rounded
_NO_ENCODER = "the VQGAN is decoder only: the model can't encode pictures or be trained on them (see --vqgan)"


@dataclass(frozen=True)
class ConversionReport:
    """
    What [`convert`] did: `read` are files; `ignored` are weights, entries and files that the model doesn't use; `notes`
    say what the user should know about the result. A VQGAN alone has no transformer parameters.
    """

    origin: str
    output: Path
    transformer_parameters: int
    vqgan_parameters: int
    dtype: str
    read: list[str]
    ignored: list[str]
    notes: list[str]

    def lines(self) -> list[str]:
        """The report as text."""
        transformer, vqgan = self.transformer_parameters, self.vqgan_parameters
        parts = f"{transformer:,} transformer + {vqgan:,} VQGAN = {transformer + vqgan:,}"
        return [
            f"{self.output}: {'a painter' if transformer else 'a VQGAN'}, from a checkpoint of {self.origin}",
            f"Read: {', '.join(self.read)}",
            f"Ignored: {', '.join(self.ignored) or 'nothing'}",
            f"Parameters: {parts if transformer else f'{vqgan:,}'}, in {self.dtype}",
            *(f"Note: {note}" for note in self.notes),
        ]


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    to: Layout = "native",
    vqgan: str | os.PathLike | None = None,
    config: str | os.PathLike | None = None,
    vq_config: PaiPainterVQConfig | str | os.PathLike | None = None,
    dtype: DType | None = None,
    force: bool = False,
) -> ConversionReport:
    """
    Converts a checkpoint. Nothing in it is run, and `output` is there whole or not at all.

    Args:
        source: A folder of EasyNLP or its archive (`.tgz`), one of its `pytorch_model_step_N.bin`, a `.ckpt` of
            taming-transformers, a folder of PaddleNLP or its `.pdparams`, or a folder of this package.
        output: A new folder.
        to: `"native"`, which `from_pretrained` reads, or `"easynlp"`.
        vqgan: A folder of this package with the whole VQGAN, for a model whose VQGAN has no encoder.
        config: taming's YAML, or a JSON with PaddleNLP's `num_attention_heads`; by default the one beside the weights.
        vq_config: The VQGAN's sizes, or a file with them, if it isn't VQGAN f16_16384 and the checkpoint lacks them.
        dtype: The precision to save in; by default the checkpoint's.
        force: Replace a model that is in `output`.

    Raises:
        OSError: if a file is missing, or if `output` can't be written.
        ValueError: if the checkpoint is damaged or unknown, or if its parts don't fit each other.
    """
    source, output = Path(source), Path(output)
    for name, value, choices in (("to", to, get_args(Layout)), ("dtype", dtype or "float32", get_args(DType))):
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    if not source.exists():
        raise FileNotFoundError(f"There is no file or folder {source}.")
    inputs = [source, *(Path(path) for path in (vqgan, config) if path is not None)]
    if isinstance(vq_config, str | os.PathLike):
        inputs.append(Path(vq_config))
        vq_config = read_vq_config(Path(vq_config))
    with new_folder(output, inputs, force) as (whole, scraps):
        packed = source.is_file() and tarfile.is_tarfile(source)
        place = unpack(source, scraps / source.name) if packed else source
        found = _read(place, None if config is None else Path(config), vq_config)
        if found.origin == "pai-painter" and to == "native" and dtype is None and vqgan is None:
            raise CheckpointError(f"{source} is in the native layout already: please set --to, --dtype or --vqgan.")
        if vqgan is not None:
            _add_encoder(found.model, Path(vqgan))
            found.read.append(str(vqgan))
        if dtype is not None:
            found.model.to(getattr(torch, dtype))
            found.model.config.dtype = found.model.dtype
            check_finite(found.model.state_dict(), f"{source} in {dtype}")
        notes = _write(found, whole, to)
    vqgan_parameters = _vqgan_of(found.model).num_parameters()
    return ConversionReport(
        found.origin,
        output,
        transformer_parameters=found.model.num_parameters() - vqgan_parameters,
        vqgan_parameters=vqgan_parameters,
        dtype=str(found.model.dtype).removeprefix("torch."),
        read=[printable(name) for name in found.read],
        ignored=found.ignored,
        notes=notes,
    )


def _read(place: Path, settings: Path | None, vq_config: PaiPainterVQConfig | None) -> ReadModel:
    for file in [place] if place.is_file() else place.iterdir():
        if file.is_file():
            refuse_git_lfs_pointer(file)
    kind, place = kind_of(place)
    if vq_config is not None and kind not in ("easynlp", "paddlenlp"):
        raise CheckpointError(f"{place} needs no --vq-config: please leave it out.")
    if settings is not None and kind not in ("taming", "paddlenlp"):
        raise CheckpointError(f"{place} needs no --config: please leave it out.")
    if kind == "easynlp":
        return read_easynlp(place, vq_config)
    if kind == "paddlenlp":
        return read_paddlenlp(place, vq_config, settings)
    return read_taming(place, settings) if kind == "taming" else _read_native(place, kind == "vqgan")


def _read_native(place: Path, alone: bool) -> ReadModel:
    if (place / "adapter_config.json").is_file():
        raise CheckpointError(f"{place} is an adapter: please merge it into its model first (`pai-painter merge`).")
    files = ["config.json", "model.safetensors"]
    with naming_damaged_weights(str(place)):
        if alone:
            vqgan = PaiPainterVQModel.from_pretrained(place, use_safetensors=True)
            return ReadModel("pai-painter", vqgan, PaiPainterImageProcessor.from_pretrained(place), files)
        painter = PaiPainterForImageGeneration.from_pretrained(place, use_safetensors=True)
    processor = PaiPainterProcessor.from_pretrained(place)
    processor.check_model(painter.config)
    return ReadModel("pai-painter", painter, processor, files)


def _add_encoder(painter: PaiPainterForImageGeneration | PaiPainterVQModel, folder: Path) -> None:
    """Gives a painter the encoder of its VQGAN; one trained with another codebook would give other image tokens."""
    if isinstance(painter, PaiPainterVQModel) or painter.vqgan.config.has_encoder:
        raise CheckpointError(f"The checkpoint has a whole VQGAN already: please leave out --vqgan {folder}.")
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} holds no VQGAN: it must be a folder with config.json and model.safetensors.")
    with naming_damaged_weights(str(folder)):
        vqgan = PaiPainterVQModel.from_pretrained(folder, dtype=painter.dtype)
    if not vqgan.config.has_encoder:
        raise CheckpointError(f"The VQGAN {folder} has no encoder either.")
    found = vqgan.state_dict()
    for name, tensor in painter.vqgan.state_dict().items():
        same_shape = name in found and found[name].shape == tensor.shape
        if not same_shape or not torch.allclose(found[name], tensor, rtol=0, atol=_SAME_WEIGHT):
            raise CheckpointError(f"The VQGAN {folder} isn't the model's: {name} has other numbers.")
    painter.vqgan.config.has_encoder = True
    painter.vqgan.config.encoder_attention = vqgan.config.encoder_attention
    for part in ("encoder", "quant_conv"):  # the rest stays the model's own
        painter.vqgan.register_module(part, vqgan.get_submodule(part))


def _write(found: ReadModel, folder: Path, to: Layout) -> list[str]:
    """Writes the folder, and returns what its user should know."""
    if to == "easynlp":
        return write_easynlp(found.model, found.processor, folder)
    found.model.save_pretrained(folder)
    found.processor.save_pretrained(folder)
    return [] if _vqgan_of(found.model).config.has_encoder else [_NO_ENCODER]


def _vqgan_of(model: PaiPainterForImageGeneration | PaiPainterVQModel) -> PaiPainterVQModel:
    return model if isinstance(model, PaiPainterVQModel) else model.vqgan
