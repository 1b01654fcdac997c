# SPDX-License-Identifier: Apache-2.0
"""Adapters in the pipeline, by diffusers' names."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE, LoraBaseMixin
from safetensors import safe_open
from safetensors.torch import load_file

from .lora_pai_painter import active_lora, has_lora, load_lora, lora_layers, painter_names, take_lora_out
from .model_files_pai_painter import (
    HUB_OPTIONS,
    find_model_file,
    naming_damaged_weights,
    read_adapter_folder,
    resolve_hub_options,
)

__all__ = ["LoraPipelineMixin"]

_Source = str | os.PathLike | Mapping[str, torch.Tensor]
_Lora = tuple[dict[str, torch.Tensor], dict[str, Any] | None, str]  # weights, peft's settings, what errors call it


class LoraPipelineMixin(LoraBaseMixin):
    """
    Adapters under diffusers' names: the methods below, and `set_adapters`, `enable_lora`, `disable_lora`,
    `get_active_adapters` and `get_list_adapters`.
    """

    model: Any  # the painter
    _lora_loadable_modules = ["model"]
    _fused_scale = 1.0

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: _Source,
        adapter_name: str = "default",
        *,
        weight_name: str | None = None,
        **hub_options: Any,
    ) -> None:
        """
        Loads an adapter into the pipeline's model and makes it the active one.

        Args:
            pretrained_model_name_or_path_or_dict: the adapter's folder, file or Hub repository, or a state dict, whose
                alpha is its rank. The model under it is the one that is here, whatever it names.
            adapter_name: what to call it; a second adapter needs another name.
            weight_name: the file; by default peft's `adapter_model.safetensors` with its settings, or diffusers'
                `pytorch_lora_weights.safetensors`.
            hub_options: `subfolder`, `revision`, `cache_dir`, `token`, `local_files_only` and `force_download`.

        An `OSError` says that there is no such folder, file or repository, or no adapter in it; a `ValueError` that the
        name is taken, or that the adapter is damaged or doesn't fit the model.
        """
        weights, settings, source = _read(pretrained_model_name_or_path_or_dict, weight_name, **hub_options)
        with self._without_offloading():
            load_lora(self.model, weights, settings, source, adapter_name)

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: _Source,
        *,
        weight_name: str | None = None,
        return_lora_metadata: bool = False,
        **hub_options: Any,
    ) -> Any:
        """What [`load_lora_weights`] reads, under diffusers' names; with peft's settings if asked."""
        weights, settings, _ = _read(pretrained_model_name_or_path_or_dict, weight_name, **hub_options)
        named = cls.pack_weights(weights, "model")
        return (named, settings) if return_lora_metadata else named

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        model_lora_layers: torch.nn.Module | Mapping[str, torch.Tensor],
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        model_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        """
        Saves an adapter as diffusers does: one file, with peft's settings in its metadata.

        Args:
            model_lora_layers: the pipeline's model, with one active adapter, or a state dict.
            model_lora_adapter_metadata: for a state dict, peft's settings, `LoraConfig.to_dict()`.
            others: see diffusers' `save_lora_weights`; `safe_serialization` must be `True`.
        """
        if not safe_serialization or not (weight_name or ".safetensors").endswith(".safetensors"):
            raise ValueError("LoRA weights are saved as .safetensors only.")
        if isinstance(model_lora_layers, torch.nn.Module):
            model_lora_layers, config = active_lora(cast(Any, model_lora_layers))
            model_lora_adapter_metadata = model_lora_adapter_metadata or config.to_dict()
        named = painter_names(model_lora_layers)
        cls._save_lora_weights(
            os.fspath(save_directory),
            {"model": {name: weight.detach().cpu().contiguous() for name, weight in named.items()}},
            {"model": model_lora_adapter_metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
        )

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Takes adapters out of the model; a `ValueError` if there is no such adapter, or if it is fused."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self._check_names(names)
        if self.fused_loras & set(names):
            raise ValueError(f"{', '.join(names)} can't be deleted while fused: please call `unfuse_lora` first.")
        with self._without_offloading():
            super().delete_adapters(names)
            if not has_lora(self.model):
                take_lora_out(self.model)

    def unload_lora_weights(self) -> None:
        """Takes all adapters out. What is fused stays in the weights, so that they can be saved."""
        if has_lora(self.model):
            with self._without_offloading():
                take_lora_out(self.model)
        self._merged_adapters: set[str] = set()

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Adds the active adapters to the weights: painting is as fast as without them. See diffusers' `fuse_lora`."""
        if not has_lora(self.model) or self.num_fused_loras or lora_scale == 0:
            raise ValueError("`fuse_lora` needs an adapter, none that is fused already, and a `lora_scale` above 0.")
        self._check_names(adapter_names or [])
        with self._without_offloading():
            super().fuse_lora(components or self._lora_loadable_modules, lora_scale, safe_fusing, adapter_names)
        self._fused_scale = lora_scale

    def unfuse_lora(self, components: list[str] | None = None) -> None:
        """Takes the fused adapters out of the weights again, up to rounding; they stay active."""
        with self._without_offloading():
            super().unfuse_lora(components or self._lora_loadable_modules)
            for layer in lora_layers(self.model):
                layer.unscale_layer(self._fused_scale)  # which fusing multiplies in, and diffusers leaves there
        self._fused_scale = 1.0

    def _check_names(self, names: list[str]) -> None:
        there = self.get_list_adapters().get("model", [])
        if not set(names) <= set(there):
            raise ValueError(f"Unknown adapter {', '.join(names)}; loaded: {', '.join(there) or 'none'}.")

    @contextmanager
    def _without_offloading(self) -> Iterator[None]:
        """Layers can't be changed while offloading has their weights elsewhere."""
        device = self._execution_device
        whole_model, layers, groups = self._optionally_disable_offloading(self)
        if groups:
            raise ValueError("Adapters can't be changed after `enable_group_offload`: please load them first.")
        try:
            yield
        finally:
            if whole_model:
                self.enable_model_cpu_offload(device=device)
            elif layers:
                self.enable_sequential_cpu_offload(device=device)


def _read(source: _Source, weight_name: str | None, **hub_options: Any) -> _Lora:
    """An adapter from wherever it is."""
    unknown = sorted(hub_options.keys() - HUB_OPTIONS)
    if unknown:
        raise TypeError(f"There is no option {', '.join(map(repr, unknown))}.")
    if isinstance(source, Mapping):
        if weight_name or hub_options:
            raise ValueError("A state dict is given, so please leave out options of files and repositories.")
        return {name: weight.clone() for name, weight in painter_names(source).items()}, None, "in the state dict"
    name = os.fspath(source)
    if os.path.isfile(name) and weight_name is None:
        name, weight_name = os.path.split(os.path.abspath(name))
    if not (weight_name or ".safetensors").endswith(".safetensors"):
        raise ValueError(f"LoRA weights are read from .safetensors files only, but `weight_name` is {weight_name!r}.")
    hub_options = resolve_hub_options(name, **hub_options)
    of_peft = weight_name in (None, "adapter_model.safetensors")
    adapter = read_adapter_folder(name, **hub_options) if of_peft else None
    path = adapter.weights if adapter else find_model_file(name, weight_name or LORA_WEIGHT_NAME_SAFE, **hub_options)
    if path is None:
        wanted = weight_name or f"adapter_config.json and no {LORA_WEIGHT_NAME_SAFE}"
        raise OSError(f"{name} contains no adapter: it has no {wanted}.")
    with naming_damaged_weights(path):
        weights = painter_names(load_file(path))
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    if adapter is not None:
        return weights, adapter.settings, adapter.name
    try:
        settings = None if stored is None else json.loads(stored)
        return weights, settings and {key.removeprefix("model."): value for key, value in settings.items()}, path
    except (AttributeError, ValueError) as error:
        raise ValueError(f"The {LORA_ADAPTER_METADATA_KEY} in {path} is damaged ({error}).") from error
