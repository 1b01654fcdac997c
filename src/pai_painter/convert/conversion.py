# SPDX-License-Identifier: Apache-2.0
"""Converts a checkpoint: finds out which program made it, reads it, and writes it in another layout."""

import os
import tarfile
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.lora_pai_painter import load_painter
from ..model.model_files_pai_painter import refuse_git_lfs_pointer
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.weight_conversion import check_finite
from ..whole_files import new_folder
from .checkpoint_reading import CheckpointError, ConversionReport, read_settings, read_vq_config
from .easynlp_layout import read_easynlp, write_easynlp
from .from_paddlenlp import read_paddlenlp
from .from_taming import read_taming

Layout = Literal["native", "easynlp"]
DType = Literal["float32", "float16", "bfloat16"]
MAX_ARCHIVE_BYTES = 16 * 2**30  # unpacked; the large painter with its optimizer has about 6
_BY_SUFFIX = {".bin": "easynlp", ".ckpt": "taming", ".pdparams": "paddlenlp"}
_BY_MODEL_TYPE = {"artist": "easynlp", "pai_painter": "painter", "pai_painter_vqgan": "vqgan"}
_KNOWN = "EasyNLP's folders and their .tgz, .ckpt files of taming-transformers, and PaddleNLP's .pdparams"
_SAME_WEIGHT = 1e-5  # largest difference: a VQGAN that went through another program may have been rounded
_NO_ENCODER = "the VQGAN is decoder only: the model can't encode pictures or be trained on them (see --vqgan)"


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
        if to == "easynlp":
            found.notes += write_easynlp(found.model, found.processor, whole)
        else:
            vqgan_config: Any = getattr(found.model.config, "vq_config", found.model.config)
            found.notes += [] if vqgan_config.has_encoder else [_NO_ENCODER]
            found.model.save_pretrained(whole)
            found.processor.save_pretrained(whole)
    found.output = output
    return found


def unpack(path: Path, folder: Path, max_bytes: int = MAX_ARCHIVE_BYTES) -> Path:
    """Unpacks an archive, and gives the folder in it that holds more than another folder."""
    size = 0
    folder.mkdir(exist_ok=True)
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                size += member.size
                if size > max_bytes:
                    raise CheckpointError(f"{path} unpacks to more than {max_bytes:,} bytes, more than a model needs.")
                archive.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, UnicodeError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CheckpointError(f"{path} is damaged or refused: {error}.") from error
    while len(inside := [place for place in folder.iterdir() if not place.name.startswith("._")]) == 1:
        if not inside[0].is_dir():
            break
        folder = inside[0]
    return folder


def _kind_of(source: Path) -> tuple[str, Path]:
    """Finds out which program made a checkpoint, and gives the folder or file to read."""
    found = ""
    if source.is_dir():
        config = source / "config.json"
        model_type = str(read_settings(config).get("model_type")) if config.is_file() else None
        if model_type in _BY_MODEL_TYPE:
            return _BY_MODEL_TYPE[model_type], source
        found = "" if model_type is None else f" (its config.json has the model_type {model_type!r})"
        files = [path for path in sorted(source.iterdir()) if path.suffix in (".pdparams", ".ckpt")]
        if len(files) > 1:
            raise CheckpointError(f"{source} has {len(files)} files of weights: please name one, e.g. {files[0]}.")
        source = files[0] if files else source
    if source.suffix not in _BY_SUFFIX:
        raise CheckpointError(f"{source} is no known checkpoint{found}; supported are {_KNOWN}.")
    return _BY_SUFFIX[source.suffix], source


def _read(place: Path, settings: Path | None, vq_config: PaiPainterVQConfig | None) -> ConversionReport:
    for file in [place] if place.is_file() else place.iterdir():
        if file.is_file():
            refuse_git_lfs_pointer(file)
    kind, place = _kind_of(place)
    if vq_config is not None and kind not in ("easynlp", "paddlenlp"):
        raise CheckpointError(f"{place} needs no --vq-config: please leave it out.")
    if settings is not None and kind not in ("taming", "paddlenlp"):
        raise CheckpointError(f"{place} needs no --config: please leave it out.")
    if kind == "easynlp":
        return read_easynlp(place, vq_config)
    if kind == "paddlenlp":
        return read_paddlenlp(place, vq_config, settings)
    if kind == "taming":
        return read_taming(place, settings)
    files = ["config.json", "model.safetensors"]
    if kind == "vqgan":
        vqgan = PaiPainterVQModel.from_pretrained(place, use_safetensors=True)
        return ConversionReport("pai-painter", vqgan, PaiPainterImageProcessor.from_pretrained(place), files)
    return ConversionReport("pai-painter", *load_painter(place, dtype="auto", options={"use_safetensors": True}), files)


def _add_encoder(painter: PaiPainterForImageGeneration | PaiPainterVQModel, folder: Path) -> None:
    """Gives a painter the encoder of its VQGAN; one trained with another codebook would give other image tokens."""
    if isinstance(painter, PaiPainterVQModel) or painter.vqgan.config.has_encoder:
        raise CheckpointError(f"The checkpoint has a whole VQGAN already: please leave out --vqgan {folder}.")
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} contains no VQGAN: it must be a folder with config.json and model.safetensors.")
    vqgan = PaiPainterVQModel.from_pretrained(folder, dtype=painter.dtype)
    if not vqgan.config.has_encoder:
        raise CheckpointError(f"The VQGAN {folder} has no encoder either.")
    found = vqgan.state_dict()
    for name, tensor in painter.vqgan.state_dict().items():
        same_shape = name in found and found[name].shape == tensor.shape
        if not same_shape or not torch.allclose(found[name], tensor, rtol=0, atol=_SAME_WEIGHT):
            raise CheckpointError(f"The VQGAN {folder} isn't the model's: {name} has different values.")
    painter.vqgan.config.has_encoder = True
    painter.vqgan.config.encoder_attention = vqgan.config.encoder_attention
    for part in ("encoder", "quant_conv"):  # the rest stays the model's own
        painter.vqgan.register_module(part, vqgan.get_submodule(part))
