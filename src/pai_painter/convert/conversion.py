# SPDX-License-Identifier: Apache-2.0
"""One checkpoint into another layout: finds out what it is, reads it, writes it and checks what was written."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.folder_pai_painter import naming_damaged_weights
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.model_files_pai_painter import refuse_git_lfs_pointer
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from .archives import is_archive, unpack
from .easynlp import read_easynlp, write_easynlp
from .kinds import kind_of, model_folder
from .output import new_folder
from .paddlenlp import read_paddlenlp
from .reading import ReadModel
from .safe_pickle import CheckpointError
from .taming import read_taming
from .verification import compare_with_reference, compare_with_reloaded
from .vqgans import add_encoder, read_settings, read_vq_config

__all__ = ["ConversionReport", "DType", "Layout", "convert"]

Layout = Literal["native", "easynlp"]
DType = Literal["float32", "float16", "bfloat16"]
_REFERENCE = "expected.safetensors"


@dataclass(frozen=True)
class ConversionReport:
    """
    Args:
        origin (`str`): The program that made the checkpoint.
        output (`Path`): The folder that was written.
        layout (`str`): `"native"` or `"easynlp"`.
        transformer_parameters, vqgan_parameters (`int`): How many; a VQGAN alone has no transformer.
        dtype (`str`): In which precision.
        read (`list[str]`): The files that were read.
        ignored (`list[str]`): Weights, entries and files that the model has no use for.
        notes (`list[str]`): What its user should know.
        verification (`list[str]`): How it was checked.
    """

    origin: str
    output: Path
    layout: Layout
    transformer_parameters: int
    vqgan_parameters: int
    dtype: str
    read: list[str]
    ignored: list[str]
    notes: list[str]
    verification: list[str]

    def lines(self) -> list[str]:
        """The report for people."""
        transformer, vqgan = self.transformer_parameters, self.vqgan_parameters
        parts = f"{transformer:,} transformer + {vqgan:,} VQGAN = {transformer + vqgan:,}"
        kind = "a VQGAN" if not transformer else "a painter" if self.layout == "native" else "a painter for EasyNLP"
        return [
            f"{self.output}: {kind}, from a checkpoint of {self.origin}",
            f"Read: {', '.join(self.read)}",
            f"Ignored: {', '.join(self.ignored) or 'nothing'}",
            f"Parameters: {parts if transformer else f'{vqgan:,}'}, in {self.dtype}",
            *(f"Verified: {line}" for line in self.verification),
            *(f"Note: {note}" for note in self.notes),
        ]


@dataclass(frozen=True)
class _Options:
    vqgan: Path | None
    settings: Path | None
    vq_config: PaiPainterVQConfig | None


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    to: Layout = "native",
    vqgan: str | os.PathLike | None = None,
    config: str | os.PathLike | None = None,
    vq_config: PaiPainterVQConfig | str | os.PathLike | None = None,
    dtype: DType | None = None,
    reference: str | os.PathLike | None = None,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ConversionReport:
    """
    Converts a checkpoint. Nothing that stands in it is run, and `output` is there whole or not at all.

    Args:
        source: A folder of EasyNLP or its archive (`.tgz`), one of its `pytorch_model_step_N.bin`, a `.ckpt` of
            taming-transformers, a folder of PaddleNLP or its `.pdparams`, or a folder of this program.
        output: A new folder.
        to: `"native"`, which `from_pretrained` reads, or `"easynlp"`.
        VQGAN: The whole VQGAN (a folder of this program) for a model whose VQGAN has no encoder.
        config: taming's YAML file, or a JSON file with `num_attention_heads` for PaddleNLP; by default what lies
            beside the weights.
        vq_config: The VQGAN's sizes, or a file with them, where a checkpoint doesn't hold them and they aren't those
            of VQGAN f16_16384.
        dtype: The precision to save in; by default that of the checkpoint.
        reference: Safetensors of what the original program computes, to be compared with; by default
            `expected.safetensors` beside the weights, if it is there. See [`compare_with_reference`].
        force: Replace a model that is in `output`.
        progress: Is told what begins.

    Raises:
        OSError: if a file isn't there, or if `output` can't be written.
        ValueError: if the checkpoint is damaged, unsafe or of another kind, or if its parts don't fit each other; the
            message is one sentence.
    """
    source, output = Path(source), Path(output)
    _check_choices(source, to, dtype)
    sizes = vq_config if vq_config is None or isinstance(vq_config, PaiPainterVQConfig) else read_vq_config(vq_config)
    options = _Options(None if vqgan is None else Path(vqgan), None if config is None else Path(config), sizes)
    tell = progress or (lambda step: None)
    with new_folder(output, source, force) as (whole, scraps):
        place = source
        if source.is_file() and is_archive(source):
            tell(f"Unpacking {source}")
            unpack(source, scraps)
            place = model_folder(scraps, source)
        tell(f"Reading {source}")
        with _naming(scraps, source):
            found = _read(place, options, unchanged=to == "native" and dtype is None)
            verification = _compare(found, place, reference)
        if dtype is not None:
            _cast(found, dtype)
        tell(f"Writing and checking {output}")
        notes = _write(found, whole, to)
        verification.insert(0, compare_with_reloaded(found.model, _read_again(found, whole, to)))
    return _report(found, output, to, notes, verification)


def _report(
    found: ReadModel, output: Path, layout: Layout, notes: list[str], verification: list[str]
) -> ConversionReport:
    vqgan = found.model.vqgan if isinstance(found.model, PaiPainterForImageGeneration) else found.model
    vqgan_parameters = vqgan.num_parameters()
    return ConversionReport(
        origin=found.origin,
        output=output,
        layout=layout,
        transformer_parameters=found.model.num_parameters() - vqgan_parameters,
        vqgan_parameters=vqgan_parameters,
        dtype=str(found.model.dtype).removeprefix("torch."),
        read=found.read,
        ignored=found.ignored,
        notes=notes,
        verification=verification,
    )


def _check_choices(source: Path, to: str, dtype: str | None) -> None:
    if to not in get_args(Layout):
        raise ValueError(f"`to` must be one of {', '.join(get_args(Layout))}, got {to!r}.")
    if dtype is not None and dtype not in get_args(DType):
        raise ValueError(f"`dtype` must be one of {', '.join(get_args(DType))}, got {dtype!r}.")
    if not source.exists():
        raise FileNotFoundError(f"There is no file or folder {source}.")


@contextmanager
def _naming(scraps: Path, archive: Path) -> Iterator[None]:
    """Errors name the archive, not the folder into which it was unpacked for a moment."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(str(error).replace(str(scraps), str(archive))) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(str(error).replace(str(scraps), str(archive))) from error


def _read(place: Path, options: _Options, unchanged: bool) -> ReadModel:
    """Reads whatever it is. `unchanged` says that neither layout nor precision is to be another one."""
    for file in [place] if place.is_file() else place.iterdir():
        if file.is_file():
            refuse_git_lfs_pointer(file)
    kind, place = kind_of(place)
    for option, value, kinds in (
        ("--vq-config", options.vq_config, ("easynlp", "paddlenlp")),
        ("--config", options.settings, ("taming", "paddlenlp")),
    ):
        if value is not None and kind not in kinds:
            raise CheckpointError(f"{place} needs no {option}: please leave it out.")
    if kind == "easynlp":
        found = read_easynlp(place, options.vq_config)
    elif kind == "paddlenlp":
        found = read_paddlenlp(place, options.vq_config, options.settings)
    elif kind == "taming":
        found = read_taming(place, options.settings)
    elif unchanged and options.vqgan is None:
        raise CheckpointError(
            f"{place} is in the native layout already: please say what to change (--to, --dtype or --vqgan)."
        )
    else:
        found = _read_native(place)
    if options.vqgan is not None:
        if not isinstance(found.model, PaiPainterForImageGeneration):
            raise CheckpointError(f"{place} is a VQGAN itself and needs no --vqgan.")
        add_encoder(found.model, options.vqgan)
        found.read.append(str(options.vqgan))
    return found


def _read_native(place: Path) -> ReadModel:
    if (place / "adapter_config.json").is_file():
        raise CheckpointError(f"{place} is an adapter: please make a whole model of it first (`pai-painter merge`).")
    model_class: type[PaiPainterForImageGeneration] | type[PaiPainterVQModel] = PaiPainterForImageGeneration
    processor_class: type[PaiPainterProcessor] | type[PaiPainterImageProcessor] = PaiPainterProcessor
    if read_settings(place / "config.json")["model_type"] == PaiPainterVQModel.config_class.model_type:
        model_class, processor_class = PaiPainterVQModel, PaiPainterImageProcessor
    with naming_damaged_weights(str(place)):
        model = model_class.from_pretrained(place, use_safetensors=True).eval()
    processor = processor_class.from_pretrained(place)
    if isinstance(processor, PaiPainterProcessor):
        processor.check_model(model.config)
    return ReadModel("pai-painter", model, processor, read=["config.json", "model.safetensors"])


def _cast(found: ReadModel, dtype: DType) -> None:
    found.model.to(getattr(torch, dtype))
    found.model.config.dtype = found.model.dtype
    too_large = [name for name, weight in found.model.state_dict().items() if not weight.isfinite().all()]
    if too_large:
        raise CheckpointError(f"The weight {too_large[0]} has numbers too large for {dtype}: please take bfloat16.")


def _compare(found: ReadModel, source: Path, reference: str | os.PathLike | None) -> list[str]:
    """With what the original program computed, in float32, as far as it is at hand."""
    beside = (source if source.is_dir() else source.parent) / _REFERENCE
    if reference is None and not beside.is_file():
        return []
    dtype = found.model.dtype
    compared = compare_with_reference(found.model.float(), beside if reference is None else Path(reference))
    found.model.to(dtype)
    return [compared]


def _write(found: ReadModel, folder: Path, to: Layout) -> list[str]:
    """Writes the folder, and gives what is to be known of it."""
    model, processor = found.model, found.processor
    if to == "easynlp":
        if not isinstance(model, PaiPainterForImageGeneration) or not isinstance(processor, PaiPainterProcessor):
            raise CheckpointError("EasyNLP's layout is for painters; this checkpoint is a VQGAN alone.")
        return write_easynlp(model, processor, folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    vqgan = model.vqgan if isinstance(model, PaiPainterForImageGeneration) else model
    if vqgan.config.has_encoder:
        return []
    return [
        "the VQGAN is decoder only: the model paints, but can't encode pictures or be trained on them; --vqgan gives "
        "it the whole VQGAN"
    ]


def _read_again(found: ReadModel, folder: Path, to: Layout) -> PaiPainterForImageGeneration | PaiPainterVQModel:
    if to == "easynlp":
        return read_easynlp(folder, cast(PaiPainterForImageGeneration, found.model).vqgan.config).model
    type(found.processor).from_pretrained(folder)
    return type(found.model).from_pretrained(folder)
