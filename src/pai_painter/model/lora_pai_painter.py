# SPDX-License-Identifier: Apache-2.0
"""
Adapters in a painter, through peft's own functions: transformers' methods for adapters ask for a version of peft that
may not exist yet (5.24 for one above the newest). peft's layers are put into the painter, which stays the class it is.
"""

import importlib
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .configuration_pai_painter import PaiPainterVQConfig
from .folder_pai_painter import (
    AdapterFolder,
    PainterFolder,
    load_processor,
    naming_damaged_weights,
    read_painter_folder,
)
from .model_files_pai_painter import check_finite
from .modeling_pai_painter import PaiPainterForImageGeneration
from .processing_pai_painter import PaiPainterProcessor
from .sampling_pai_painter import read_generation_config

__all__ = [
    "active_lora",
    "has_lora",
    "load_base",
    "load_lora",
    "load_over",
    "load_painter",
    "lora_layers",
    "painter_names",
    "require_peft",
    "save_lora",
    "take_lora_out",
]

_PREFIX = "base_model.model."  # of the names in peft's files
_OWN = ("model.embed_tokens.", "model.layers.", "lm_head.")
# Settings of an adapter that are obeyed, and those that don't matter since its weights name the layers.
_OBEYED = {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
_WITHOUT_EFFECT = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "task_type", "auto_mapping"),
}


def require_peft() -> Any:
    """
    The package peft. (It is imported by a call: transformers and diffusers take a line that looks like an import for a
    package without which the file can't be loaded.)

    Raises:
        ModuleNotFoundError: if it isn't installed.
    """
    return importlib.import_module("peft")


def has_lora(painter: PaiPainterForImageGeneration) -> bool:
    """Whether there is an adapter in the painter."""
    return bool(getattr(painter, "peft_config", None))  # which peft sets with the first adapter


def lora_layers(painter: PaiPainterForImageGeneration) -> list[Any]:
    """peft's `LoraLayer`s in the painter."""
    if not has_lora(painter):
        return []
    LoraLayer = require_peft().tuners.lora.LoraLayer
    return [module for module in painter.modules() if isinstance(module, LoraLayer)]


def active_lora(
    painter: PaiPainterForImageGeneration, state_dict: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], Any]:
    """
    The weights of the active adapter, under the painter's own names, and its `LoraConfig`; see [`save_lora`].

    Raises:
        ValueError: if there is no adapter, or if more than one is active.
    """
    if not has_lora(painter):
        raise ValueError("The painter has no adapter to save: please call `add_lora` or load one first.")
    get_peft_model_state_dict = require_peft().get_peft_model_state_dict
    active = list(lora_layers(painter)[0].active_adapters)
    if len(active) != 1:
        raise ValueError(f"Only one adapter can be saved at a time, but {len(active)} are active: {', '.join(active)}.")
    weights = get_peft_model_state_dict(painter, state_dict, active[0], save_embedding_layers=False)
    return weights, painter.peft_config[active[0]]


def save_lora(
    painter: PaiPainterForImageGeneration,
    folder: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """
    Saves the active adapter in peft's form (adapter_config.json, adapter_model.safetensors) with the recommended
    settings (generation_config.json).

    Args:
        state_dict: the painter's weights, gathered from all processes, if its own are spread over them.

    Raises:
        ValueError: if there is no adapter, or if more than one is active.
    """
    weights, config = active_lora(painter, state_dict)
    tensors = {f"{_PREFIX}{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    os.makedirs(folder, exist_ok=True)
    config.save_pretrained(os.fspath(folder))
    painter.generation_config.save_pretrained(folder)
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def painter_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The weights of an adapter under the painter's own names, without diffusers' or peft's prefix.

    Raises:
        ValueError: if there are other weights, or none.
    """
    if not state_dict:
        raise ValueError("There are no LoRA weights in the state dict.")
    weights = {}
    for name, weight in state_dict.items():
        own = str(name).removeprefix(_PREFIX)
        own = own.removeprefix("model.") if own.removeprefix("model.").startswith(_OWN) else own
        if not own.startswith(_OWN) or ".lora_" not in own or not isinstance(weight, torch.Tensor):
            raise ValueError(f"{name!r} is no LoRA weight of a painter, such as `model.lm_head.lora_A.weight`.")
        weights[own] = weight
    return weights


def load_lora(
    painter: PaiPainterForImageGeneration,
    weights: dict[str, torch.Tensor],
    settings: Mapping[str, Any] | None = None,
    source: str = "in the state dict",
    adapter_name: str = "default",
) -> None:
    """
    Puts an adapter into a painter, frozen, and makes it the active one. If that fails, the painter is as it was.

    The layers are those that the weights name; patterns in settings, which may be a stranger's, choose none. No memory
    is taken before sizes have been compared.

    Args:
        weights: from [`painter_names`].
        settings: of peft's `LoraConfig`; without them the rank is read off the weights, and alpha is the rank.
        source: what errors call the adapter.

    Raises:
        ModuleNotFoundError: if peft isn't installed.
        ValueError: if the name is taken, or if weights or settings don't fit the painter.
    """
    peft = require_peft()
    if has_lora(painter) and adapter_name in painter.peft_config:
        raise ValueError(f"There is an adapter {adapter_name!r} already: please unload it or set `adapter_name`.")
    check_finite(weights, source)
    active = list(lora_layers(painter)[0].active_adapters) if has_lora(painter) else []
    try:
        config = _config_of(weights, settings)
        with torch.device("meta"):  # by itself, peft takes the memory for a moment
            peft.inject_adapter_in_model(config, painter, adapter_name, low_cpu_mem_usage=True)
        painter._hf_peft_config_loaded = True  # as in `add_lora`
        _check_fit(weights, peft.get_peft_model_state_dict(painter, None, adapter_name, save_embedding_layers=False))
        if not all(math.isfinite(layer.scaling.get(adapter_name, 1.0)) for layer in lora_layers(painter)):
            raise ValueError("its scale is NaN or infinite")
        peft.set_peft_model_state_dict(painter, weights, adapter_name, low_cpu_mem_usage=True)
        for layer in lora_layers(painter):
            layer.set_adapter([adapter_name])
    except BaseException as error:
        for layer in lora_layers(painter) if active else []:
            layer.delete_adapter(adapter_name)
            layer.set_adapter(active)
        if active:
            painter.peft_config.pop(adapter_name, None)
        else:
            take_lora_out(painter)
        if not isinstance(error, (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError)):
            raise
        fit = f"The adapter {source} doesn't fit {painter.name_or_path or 'the painter'}"
        raise ValueError(f"{fit}: {str(error).split('. ')[0].rstrip('.')}.") from error
    painter.requires_grad_(False)
    painter.train(painter.training)  # the new layers, too


def _config_of(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None) -> Any:
    """peft's `LoraConfig` for the layers that the weights name."""
    LoraConfig = require_peft().LoraConfig
    layers = list(dict.fromkeys(name.partition(".lora_")[0] for name in weights))
    if settings is None:
        first = {name: weight for name, weight in weights.items() if ".lora_A." in name or "_embedding_A" in name}
        ranks = {name.partition(".lora_")[0]: weight.shape[0] for name, weight in first.items()}
        return LoraConfig(target_modules=layers, rank_pattern=ranks, alpha_pattern=dict(ranks))
    patterns = dict.fromkeys(("exclude_modules", "layers_pattern", "layers_to_transform"))
    given = vars(LoraConfig(**{**settings, **patterns, "target_modules": layers}))
    default = vars(LoraConfig(target_modules=layers))
    for name, value in given.items():
        if name not in _OBEYED | _WITHOUT_EFFECT and value != default[name]:
            raise ValueError(f"`{name}` in its settings is not supported")
    for key in (*given["rank_pattern"], *given["alpha_pattern"]):
        # To peft they are regular expressions; a layer's name, or its end, is a harmless one.
        if not any(f".{layer}".endswith(f".{key}") for layer in layers):
            raise ValueError(f"{key!r} in its settings is no name of a layer that it adapts")
    names = {name: given[name] for name in ("base_model_name_or_path", "revision")}
    return LoraConfig(**{name: given[name] for name in _OBEYED}, **names, target_modules=layers)


def _check_fit(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    problems = [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected: {name}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name].shape != found[name].shape:
            shapes = f"is {tuple(found[name].shape)}, must be {tuple(wanted[name].shape)}"
            problems.append(f"mismatched: {name} {shapes}")
    if problems:
        raise ValueError(f"{len(problems)} of its weights don't: {'; '.join(problems[:5])}")


def take_lora_out(painter: PaiPainterForImageGeneration) -> None:
    """Puts the layers under the adapters back, with what was merged into them."""
    LoraLayer = require_peft().tuners.lora.LoraLayer
    for name, module in list(painter.named_modules()):
        if isinstance(module, LoraLayer):
            painter.set_submodule(name, module.get_base_layer())
    if hasattr(painter, "peft_config"):
        del painter.peft_config
    painter._hf_peft_config_loaded = False


def load_painter(
    name_or_path: str | os.PathLike,
    base: str | os.PathLike | None = None,
    dtype: torch.dtype | str = torch.float32,
    vq_config: PaiPainterVQConfig | dict | None = None,
    painter: PaiPainterForImageGeneration | None = None,
    processor: PaiPainterProcessor | None = None,
    options: dict[str, Any] | None = None,
    **hub_options: Any,
) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    """
    A painter and its processor from the folder of a whole model or of an adapter, whose base gives everything but the
    adapter and the recommended settings.

    Args:
        name_or_path, base, vq_config, hub_options: see [`~folder_pai_painter.read_painter_folder`].
        dtype: the precision to compute in; `"auto"` is that of the model's file.
        painter, processor: to be used instead of loading them.
        options: for the painter's `from_pretrained`.

    Raises:
        OSError: if there is no such folder or repository, or if a file is missing in it.
        ValueError: if it isn't a painter's, if its weights don't fit, or if an adapter's comes with `painter`.
    """
    folder = read_painter_folder(name_or_path, vq_config, base, **hub_options)
    if folder.adapter is not None and painter is not None:
        raise ValueError(f"{folder.adapter.name} holds an adapter: please load it over `model` by `load_lora_weights`.")
    processor = load_processor(folder) if processor is None else processor
    painter = load_base(folder, dtype, options) if painter is None else painter
    if folder.adapter is not None:
        load_over(painter, folder.adapter)
    return painter, processor


def load_base(
    folder: PainterFolder, dtype: torch.dtype | str, options: dict[str, Any] | None = None
) -> PaiPainterForImageGeneration:
    """The painter in a folder; for an adapter's folder, its base."""
    with naming_damaged_weights(folder.name):
        return PaiPainterForImageGeneration.from_pretrained(
            folder.name, config=folder.config, dtype=dtype, **(options or {}), **folder.hub_options
        )


def load_over(painter: PaiPainterForImageGeneration, adapter: AdapterFolder) -> None:
    """Loads an adapter over its base, with the settings that its folder recommends."""
    with naming_damaged_weights(adapter.name):
        weights = load_file(adapter.weights)
    load_lora(painter, painter_names(weights), adapter.settings, adapter.name)
    settings = read_generation_config(adapter.name, painter.config, **adapter.hub_options)
    if settings is not None:
        painter.generation_config = settings
