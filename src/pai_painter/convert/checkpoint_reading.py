# SPDX-License-Identifier: Apache-2.0
"""Reads weights and settings as data, and accounts for every weight."""

import errno
import json
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import PreTrainedModel

from ..model.configuration_pai_painter import PaiPainterVQConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from ..printable import printable

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_UNKNOWN_NAME = re.compile(r"GLOBAL (.+) was not an allowed global by default")

Model = TypeVar("Model", bound=PreTrainedModel)


class CheckpointError(ValueError):
    """A checkpoint that can't be converted; the message is one printable line."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass
class ConversionReport:
    """What was read from a checkpoint, as a model of this package, and what the user should know about the result."""

    origin: str  # the program that made it
    model: PaiPainterForImageGeneration | PaiPainterVQModel
    processor: PaiPainterProcessor | PaiPainterImageProcessor
    read: list[str]  # files
    ignored: list[str] = field(default_factory=list)  # weights, entries and files that the model doesn't use
    notes: list[str] = field(default_factory=list)
    output: Path = Path()

    def lines(self) -> list[str]:
        """The report as text."""
        alone = isinstance(self.model, PaiPainterVQModel)
        whole = self.model.num_parameters()
        vqgan = whole if alone else self.model.vqgan.num_parameters()
        parts = f"{vqgan:,}" if alone else f"{whole - vqgan:,} transformer + {vqgan:,} VQGAN = {whole:,}"
        lines = [
            f"{self.output}: {'a VQGAN' if alone else 'a painter'}, from a checkpoint of {self.origin}",
            f"Read: {', '.join(self.read)}",
            f"Ignored: {', '.join(self.ignored) or 'nothing'}",
            f"Parameters: {parts}, in {str(self.model.dtype).removeprefix('torch.')}",
            *(f"Note: {note}" for note in self.notes),
        ]
        return [printable(line) for line in lines]


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Loads a state dict, alone or from a Lightning checkpoint, and the names of what else is in the file."""
    content = _load_torch_file(path)
    if isinstance(content, dict) and "state_dict" in content:
        return check_tensors(content.pop("state_dict"), path), grouped(content)
    return check_tensors(content, path), []


def _load_torch_file(path: Path) -> Any:
    """
    Loads what `torch.save` wrote, with PyTorch's own weights-only reader, which runs nothing.

    It refuses files that name a class it doesn't know, as the callbacks in Lightning's checkpoints do. Each such name
    gets a stand-in that does nothing.
    """
    # The reader sets items of plain dictionaries only.
    stand_ins: dict[str, Any] = {"collections.defaultdict": lambda *args: {}}
    mapped = None
    while True:
        known: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
        try:
            mapped = _can_be_mapped(path) if mapped is None else mapped
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(known):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a truncated file gives
                raise
            unknown = _UNKNOWN_NAME.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
            if unknown is None or unknown[1] in stand_ins:
                raise CheckpointError(
                    f"{path} is damaged or no checkpoint of PyTorch, and nothing in it was executed: {_reason(error)}."
                ) from error
            inert = dict.fromkeys(("__init__", "__setstate__"), lambda *args: None)
            stand_in = type(_shown(unknown[1]), (), inert)
            stand_ins |= {unknown[1]: stand_in, f"builtins.{unknown[1]}": stand_in}  # a prefix the message leaves out


def _can_be_mapped(path: Path) -> bool:
    """Whether a file is in today's format, which can be mapped into memory; finds damage, which PyTorch doesn't."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def _reason(error: Exception) -> str:
    """The line of PyTorch's message that names the cause; the others advise how to run what is in the file."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-2] if isinstance(error, pickle.UnpicklingError) and len(lines) > 1 else lines[0]
    return printable(line.rpartition("WeightsUnpickler error:")[2].strip().rstrip("."), 200)


def fill_model(model_class: type[Model], config: Any, weights: Mapping[str, torch.Tensor], source: Path) -> Model:
    """
    Builds a model from a state dict, in evaluation mode and in its precision (float32 if there are several). Weights
    that are missing, unexpected or of the wrong shape are all listed in the error; each must hold finite numbers.
    """
    for name, tensor in weights.items():
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(f"The weight {_shown(name)} of {source} holds no floating-point numbers.")
    dtypes = {tensor.dtype for tensor in weights.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    try:
        return model_class.from_pretrained(None, config=config, state_dict=dict(weights), dtype=dtype)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def check_tensors(content: object, source: Path) -> dict[str, torch.Tensor]:
    """Refuses what isn't a dictionary of tensors."""
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{source} holds no weights, which would be a dictionary of tensors.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise CheckpointError(f"{source} holds an object of type {kind} under {_shown(name)!r}, not a tensor.")
    return content


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a YAML or JSON file as plain data (without YAML's aliases, which can stand for billions of values)."""
    text = path.read_bytes()
    try:
        if path.suffix == ".json":  # not all of JSON is YAML: 1e-06 would be a string
            settings = json.loads(text)
        elif any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it uses YAML's aliases (*name), please write their values out")
        else:
            settings = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as settings: {printable(str(error), 200)}.") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings, which would be names with values.")
    return settings


def read_vq_config(path: Path) -> PaiPainterVQConfig:
    """
    Reads a VQGAN's sizes from a VQGAN's or a painter's folder or config.json, or from a file with taming's names
    (`ddconfig`, `n_embed`, `embed_dim`).
    """
    fields = read_settings(path / "config.json" if path.is_dir() else path)
    fields = fields.get("vq_config", fields)
    try:
        if "ddconfig" in fields:
            return PaiPainterVQConfig.from_ddconfig(fields["ddconfig"], fields["n_embed"], fields["embed_dim"])
        sizes = {name: value for name, value in fields.items() if name in PaiPainterVQConfig.__annotations__}
        if not sizes:
            raise ValueError("it has none of a VQGAN's sizes")
        return PaiPainterVQConfig(**sizes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} doesn't describe a VQGAN: {str(error).rstrip('.')}.") from error


def grouped(names: Iterable[object]) -> list[str]:
    """Names for the report: `blocks.0.attn.mask` and `blocks.1.attn.mask` become `blocks.N.attn.mask (2)`."""
    found = Counter(re.sub(r"(?<![^.])\d+(?![^.])", "N", _shown(name)) for name in names)
    return [name if count == 1 else f"{name} ({count})" for name, count in found.items()]


def _shown(name: object) -> str:
    return printable(name if isinstance(name, str) else f"a {type(name).__name__}", 80)
