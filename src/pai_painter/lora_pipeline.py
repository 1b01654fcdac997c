# SPDX-License-Identifier: Apache-2.0
"""The pipeline's way with LoRA adapters: diffusers' methods."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from diffusers.loaders.lora_base import LoraBaseMixin

from .lora import load_lora, require_peft
from .lora_layers import active_lora, has_lora, lora_layers, put_lora_in, take_lora_out
from .lora_weights import COMPONENT, find_lora, lora_settings, painter_names, read_lora
from .painter_folder import AdapterFolder

__all__ = ["LoraPipelineMixin"]

Layers = torch.nn.Module | Mapping[str, torch.Tensor]


class _OfClassOrPipeline:
    """A method that diffusers calls on the class, with all that it needs, and that a pipeline fills in itself."""

    def __init__(self, function: Callable):
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, pipeline: Any, cls: type) -> Callable:
        return partial(self.function, cls, pipeline)


class LoraPipelineMixin(LoraBaseMixin):
    """
    Adapters in the pipeline, under diffusers' names: those below, and `enable_lora`, `disable_lora`,
    `get_active_adapters`, `get_list_adapters`.
    """

    model: Any  # the painter
    _lora_loadable_modules = [COMPONENT]
    _fused_scale = 1.0

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> None:
        """
        Loads an adapter over the pipeline's model and makes it the active one.

        Args:
            pretrained_model_name_or_path_or_dict: the adapter's folder, file or Hub repository, or a state dict whose
                names have peft's prefix, diffusers' or none. A state dict doesn't say alpha, which is then the rank.
            adapter_name: what to call it; by default `"default"`. A second one needs a name.
            weight_name: the file; by default peft's `adapter_model.safetensors` with its settings, or diffusers'
                `pytorch_lora_weights.safetensors`.
            subfolder: the folder inside the folder or repository.
            revision, cache_dir, token, local_files_only, force_download: as everywhere on the Hub.

        Raises:
            ModuleNotFoundError: if peft isn't installed.
            OSError: if there is no such folder, file or repository.
            ValueError: if it is no adapter, if the name is taken, or if the adapter doesn't fit the model.
        """
        options: dict[str, Any] = {
            "weight_name": weight_name,
            "subfolder": subfolder,
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        require_peft()
        adapter_name = adapter_name or "default"
        # Whatever the adapter names, its base is the model that is here; whether it fits is seen on loading.
        found = _find(pretrained_model_name_or_path_or_dict, self.model.name_or_path, **options)
        with self._without_offloading():
            if isinstance(found, AdapterFolder):
                load_lora(self.model, found, adapter_name)
                return
            weights, settings = (painter_names(found), None) if isinstance(found, Mapping) else read_lora(found)
            name = "in the state dict" if isinstance(found, Mapping) else found
            put_lora_in(self.model, weights, lambda: lora_settings(weights, settings), name, adapter_name)

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | Mapping[str, torch.Tensor],
        *,
        return_lora_metadata: bool = False,
        **options: Any,
    ) -> Any:
        """
        The weights of an adapter, under diffusers' names, `model.` and the name in the painter.

        Args:
            pretrained_model_name_or_path_or_dict, options: see [`~LoraPipelineMixin.load_lora_weights`].
            return_lora_metadata: give peft's settings, if they are known, as a second value.

        Raises:
            OSError: if there is no such folder, file or repository.
            ValueError: if it is no adapter.
        """
        found = _find(pretrained_model_name_or_path_or_dict, "", **options)
        weights, settings = (painter_names(found), None) if isinstance(found, Mapping) else read_lora(found)
        state_dict = cls.pack_weights(weights, COMPONENT)
        return (state_dict, settings) if return_lora_metadata else state_dict

    @_OfClassOrPipeline
    def save_lora_weights(
        cls: Any,
        pipeline: Any,
        save_directory: str | os.PathLike,
        model_lora_layers: Layers | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        model_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        """
        Saves an adapter as diffusers does: one file, `pytorch_lora_weights.safetensors`, with peft's settings in its
        metadata. (The pipeline's `save_pretrained` saves peft's folder, from which a pipeline can be loaded as well.)

        Args:
            save_directory: the folder; made if it doesn't exist.
            model_lora_layers: a state dict, or the model with one active adapter; by default the pipeline's own.
            is_main_process: whether this process writes.
            weight_name: the file's name.
            save_function: writes in place of safetensors, called with the state dict and the path.
            safe_serialization: must be `True`.
            model_lora_adapter_metadata: peft's settings, `LoraConfig.to_dict()`, for a state dict. Without them alpha
                will be the rank when it is loaded.

        Raises:
            ValueError: if there is no adapter, if more than one is active, or if an option isn't supported.
        """
        if not safe_serialization or (weight_name is not None and not weight_name.endswith(".safetensors")):
            raise ValueError("LoRA weights are saved as .safetensors only.")
        if model_lora_layers is None and pipeline is None:
            raise ValueError("Please give `model_lora_layers`, or call `save_lora_weights` on a pipeline.")
        layers = pipeline.model if model_lora_layers is None else model_lora_layers
        if isinstance(layers, torch.nn.Module):
            layers, own_settings = active_lora(cast(Any, layers))
            model_lora_adapter_metadata = model_lora_adapter_metadata or own_settings
        weights = {name: weight.detach().cpu().contiguous() for name, weight in painter_names(layers).items()}
        if is_main_process:
            cls._save_lora_weights(
                os.fspath(save_directory),
                {COMPONENT: weights},
                {COMPONENT: model_lora_adapter_metadata},
                weight_name=weight_name,
                save_function=save_function,
            )

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """
        Makes adapters the active ones, each with a weight.

        Args:
            adapter_names: one or several.
            adapter_weights: a number, or one for each adapter; also as `{"model": number}`. By default 1.

        Raises:
            ValueError: if there is no such adapter, or if the weights are more, fewer or for another component.
        """
        for weights in adapter_weights if isinstance(adapter_weights, list) else [adapter_weights]:
            if isinstance(weights, dict) and set(weights) != {COMPONENT}:
                raise ValueError(
                    f"`adapter_weights` are for the component {COMPONENT!r}, got {', '.join(map(repr, weights))}."
                )
        super().set_adapters(adapter_names, adapter_weights)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """
        Takes adapters out of the model.

        Raises:
            ValueError: if there is no such adapter, or if it is fused.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self._check_names(names)
        fused = sorted(set(names) & set(self.fused_loras))
        if fused:
            raise ValueError(f"{', '.join(fused)} is fused with the weights: please call `unfuse_lora` first.")
        with self._without_offloading():
            super().delete_adapters(names)
            if not has_lora(self.model):
                take_lora_out(self.model)

    def unload_lora_weights(self) -> None:
        """Takes all adapters out. What was fused before stays in the weights, so that they can be saved."""
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
        """
        Adds the active adapters to the weights: painting is as fast as without them.

        Args:
            components: `["model"]`, which is the default.
            lora_scale: how much of them; not 0.
            safe_fusing: refuse adapters that aren't finite.
            adapter_names: which ones, instead of the active ones.

        Raises:
            ValueError: if there is no such adapter, if it is fused already, or if `lora_scale` is 0.
        """
        if not has_lora(self.model):
            raise ValueError("There is no adapter to fuse; `load_lora_weights` loads one.")
        if self.num_fused_loras:
            raise ValueError(f"Fused already: {', '.join(sorted(self.fused_loras))}; please call `unfuse_lora` first.")
        if lora_scale == 0:
            raise ValueError("`lora_scale` must not be 0; to paint without adapters there is `disable_lora`.")
        self._check_names(adapter_names or [])
        with self._without_offloading():
            super().fuse_lora(components or self._lora_loadable_modules, lora_scale, safe_fusing, adapter_names)
        self._fused_scale = lora_scale

    def unfuse_lora(self, components: list[str] | None = None) -> None:
        """Takes the fused adapters out of the weights again, up to rounding; they stay active."""
        with self._without_offloading():
            super().unfuse_lora(components or self._lora_loadable_modules)
            for layer in lora_layers(self.model) if has_lora(self.model) else []:
                layer.unscale_layer(self._fused_scale)  # which fusing has multiplied in, and diffusers leaves there
        self._fused_scale = 1.0

    def enable_lora_hotswap(self, **kwargs: Any) -> None:
        """
        Raises:
            ValueError: always.
        """
        raise ValueError("Adapters can't be exchanged in place: please load both and choose by `set_adapters`.")

    def _check_names(self, names: list[str]) -> None:
        there = list(self.model.peft_config) if has_lora(self.model) else []
        unknown = [name for name in names if name not in there]
        if unknown:
            raise ValueError(f"There is no adapter {', '.join(map(repr, unknown))}, only {', '.join(there) or 'none'}.")

    @contextmanager
    def _without_offloading(self) -> Iterator[None]:
        """Layers can't be changed while offloading has their weights elsewhere."""
        device = self._execution_device
        whole_model, layers, groups = self._optionally_disable_offloading(self)
        if groups:
            raise ValueError("Adapters can't be changed after `enable_group_offload`: please load them before.")
        try:
            yield
        finally:
            if whole_model:
                self.enable_model_cpu_offload(device=device)
            elif layers:
                self.enable_sequential_cpu_offload(device=device)


def _find(
    source: str | os.PathLike | Mapping[str, torch.Tensor],
    base: str,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> AdapterFolder | str | Mapping[str, torch.Tensor]:
    if isinstance(source, Mapping):
        if weight_name is not None or subfolder is not None:
            raise ValueError(
                "`weight_name` and `subfolder` are for a folder or a repository, but a state dict is given."
            )
        return source
    if subfolder and os.path.isdir(source):
        source, subfolder = os.path.join(source, subfolder), None
    return find_lora(
        source,
        weight_name,
        base,
        revision=revision or "main",
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
        **({"subfolder": subfolder} if subfolder else {}),
    )
