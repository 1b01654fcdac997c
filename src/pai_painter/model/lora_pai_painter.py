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
from .model_files_pai_painter import naming_damaged_weights, read_painter_folder
from .modeling_pai_painter import PaiPainterForImageGeneration
from .processing_pai_painter import PaiPainterProcessor, load_processor
from .sampling_pai_painter import read_generation_config
from .weight_conversion import check_finite

__all__ = [
    "active_lora",
    "has_lora",
    "load_lora",
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
    """The package peft, or a `ModuleNotFoundError`."""
    # By a call: transformers and diffusers take a line that looks like an import for a package that is needed.
    return importlib.import_module("peft")


def has_lora(painter: PaiPainterForImageGeneration) -> bool:
    """Whether there is an adapter in the painter."""
    return bool(getattr(painter, "peft_config", None))  # which peft sets with the first adapter


def lora_layers(painter: PaiPainterForImageGeneration) -> list[Any]:
    """peft's `LoraLayer`s in the painter."""
    return [module for module in painter.modules() if hasattr(module, "lora_A")]


def active_lora(
    painter: PaiPainterForImageGeneration, state_dict: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], Any]:
    """The weights of the active adapter, under the painter's own names, and its `LoraConfig`; see [`save_lora`]."""
    if not has_lora(painter):
        raise ValueError("The painter has no adapter to save: please call `add_lora` or load one first.")
    active = list(lora_layers(painter)[0].active_adapters)
    if len(active) != 1:
        raise ValueError(f"Only one adapter can be saved at a time, but {len(active)} are active: {', '.join(active)}.")
    return _weights_of(painter, active[0], state_dict), painter.peft_config[active[0]]


def _weights_of(painter: PaiPainterForImageGeneration, adapter_name: str, state_dict: Any = None) -> dict[str, Any]:
    get_weights = require_peft().get_peft_model_state_dict
    return get_weights(painter, state_dict, adapter_name, save_embedding_layers=False)


def save_lora(
    painter: PaiPainterForImageGeneration,
    folder: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """
    Saves the active adapter in peft's form (adapter_config.json, adapter_model.safetensors) with the recommended
    settings (generation_config.json). `state_dict` has the painter's weights, gathered from all processes, if its own
    are spread over them. A `ValueError` says that there is no adapter, or that more than one is active.
    """
    weights, config = active_lora(painter, state_dict)
    tensors = {f"{_PREFIX}{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    os.makedirs(folder, exist_ok=True)
    config.save_pretrained(os.fspath(folder))
    painter.generation_config.save_pretrained(folder)
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def painter_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of an adapter without diffusers' or peft's prefix; `ValueError` for other weights, or none."""
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

    The layers are those that the weights name; patterns in settings, which may be a stranger's, choose none.

    Args:
        weights: from [`painter_names`].
        settings: of peft's `LoraConfig`; without them the rank is read off the weights, and alpha is the rank.
        source: what errors call the adapter; they are `ValueError`s.
    """
    peft = require_peft()
    if adapter_name in getattr(painter, "peft_config", ()):
        raise ValueError(f"There is an adapter {adapter_name!r} already: please unload it or set `adapter_name`.")
    check_finite(weights, source)
    try:
        config = _config_of(weights, settings)
        with torch.device("meta"):  # a painter without memory, to try it on
            trial = type(painter)(painter.config)
            peft.inject_adapter_in_model(config, trial, adapter_name)
        _check_fit(weights, _weights_of(trial, adapter_name))
        if not all(math.isfinite(layer.scaling.get(adapter_name, 1.0)) for layer in lora_layers(trial)):
            raise ValueError("its scale is NaN or infinite")
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        fit = f"The adapter {source} doesn't fit {painter.name_or_path or 'the painter'}"
        raise ValueError(f"{fit}: {str(error).split('. ')[0].rstrip('.')}.") from error
    peft.inject_adapter_in_model(config, painter, adapter_name, low_cpu_mem_usage=True)
    painter._hf_peft_config_loaded = True  # so that transformers saves the adapter rather than the whole
    peft.set_peft_model_state_dict(painter, weights, adapter_name, low_cpu_mem_usage=True)
    for layer in lora_layers(painter):
        layer.set_adapter([adapter_name])
    painter.requires_grad_(False)
    painter.train(painter.training)  # the new layers, too


def _check_fit(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    misfits = [f"missing: {name}" for name in wanted if name not in found]
    misfits += [f"unexpected: {name}" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        if found[name].shape != wanted[name].shape:
            misfits.append(f"mismatched: {name} is {tuple(found[name].shape)}, must be {tuple(wanted[name].shape)}")
    if misfits:
        raise ValueError(f"{len(misfits)} of its weights don't: {'; '.join(misfits[:5])}")


def _config_of(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None) -> Any:
    """peft's `LoraConfig` for the layers that the weights name."""
    LoraConfig = require_peft().LoraConfig
    layers = list(dict.fromkeys(name.partition(".lora_")[0] for name in weights))
    if settings is None:
        first = {name: weight for name, weight in weights.items() if ".lora_A." in name or "_embedding_A" in name}
        ranks = {name.partition(".lora_")[0]: weight.shape[0] for name, weight in first.items()}
        return LoraConfig(target_modules=layers, rank_pattern=ranks, alpha_pattern=dict(ranks))
    default = LoraConfig().to_dict()
    for name, value in settings.items():
        if name not in _OBEYED | _WITHOUT_EFFECT and value != default.get(name):
            raise ValueError(f"`{name}` {value!r} in its settings is not supported")
    obeyed = {name: settings[name] for name in _OBEYED & settings.keys()}
    for key in (*obeyed.get("rank_pattern", ()), *obeyed.get("alpha_pattern", ())):
        # To peft they are regular expressions; a layer's name, or its end, is a harmless one.
        if not any(f".{layer}".endswith(f".{key}") for layer in layers):
            raise ValueError(f"{key!r} in its settings is no name of a layer that it adapts")
    names = {name: settings.get(name) for name in ("base_model_name_or_path", "revision")}
    return LoraConfig(**obeyed, **names, target_modules=layers)


def take_lora_out(painter: PaiPainterForImageGeneration) -> None:
    """Puts the layers under the adapters back, with what was merged into them."""
    for name, module in list(painter.named_modules()):
        if hasattr(module, "lora_A"):
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
        name_or_path, base, vq_config, hub_options: see [`~model_files_pai_painter.read_painter_folder`].
        dtype: the precision to compute in; `"auto"` is that of the model's file.
        painter, processor: to be used instead of loading them.
        options: for the painter's `from_pretrained`.

    Raises:
        OSError: if there is no such folder or repository, or if a file is missing in it.
        ValueError: if it isn't a painter's, or if its weights don't fit.
    """
    folder = read_painter_folder(name_or_path, vq_config, base, **hub_options)
    adapter = folder.adapter
    if adapter is not None and painter is not None:
        raise ValueError(f"{adapter.name} holds an adapter: please load it over `model` by `load_lora_weights`.")
    processor = load_processor(folder) if processor is None else processor
    if painter is None:
        painter = PaiPainterForImageGeneration.from_pretrained(
            folder.name, config=folder.config, dtype=dtype, **(options or {}), **folder.hub_options
        )
    if adapter is not None:
        with naming_damaged_weights(adapter.name):
            weights = load_file(adapter.weights)
        load_lora(painter, painter_names(weights), adapter.settings, adapter.name)
        recommended = read_generation_config(adapter.name, painter.config, **adapter.hub_options)
        painter.generation_config = recommended or painter.generation_config
    return painter, processor
