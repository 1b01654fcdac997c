# SPDX-License-Identifier: Apache-2.0
"""The pipeline's way with LoRA adapters: diffusers' methods."""

import os
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin

from .lora import has_lora, load_lora, lora_layers, take_lora_out
from .painter_folder import read_adapter_folder

__all__ = ["LoraPipelineMixin"]


class LoraPipelineMixin(LoraBaseMixin):
    """
    Adapters in the pipeline, under diffusers' names: those below, and `set_adapters`, `disable_lora`, `enable_lora`,
    `delete_adapters`, `get_active_adapters`, `get_list_adapters`.
    """

    model: Any  # the painter
    _lora_loadable_modules = ["model"]
    _fused_scale = 1.0

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str | None = None,
        *,
        revision: str = "main",
        cache_dir: str | os.PathLike | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> None:
        """
        Loads an adapter over the pipeline's model and makes it the active one.

        Args:
            pretrained_model_name_or_path: the adapter's folder or Hub repository.
            adapter_name: what to call it; by default `"default"`. A second one needs a name.
            revision, cache_dir, token, local_files_only, force_download: as everywhere on the Hub.

        Raises:
            ModuleNotFoundError: if peft isn't installed.
            OSError: if there is no such folder or repository.
            ValueError: if it is no adapter, if the name is taken, or if the adapter doesn't fit the model.
        """
        hub_options: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        name = os.fspath(pretrained_model_name_or_path)
        # Whatever the adapter names, its base is the model that is here; whether it fits is seen on loading.
        adapter = read_adapter_folder(name, base=self.model.name_or_path, **hub_options)
        if adapter is None:
            raise ValueError(f"{name} holds no adapter: it has no adapter_config.json.")
        load_lora(self.model, adapter, adapter_name or "default")

    def unload_lora_weights(self) -> None:
        """Takes all adapters out. What was fused before stays in the weights, so that they can be saved."""
        if has_lora(self.model):
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
            ValueError: if there is no adapter, if it is fused already, or if `lora_scale` is 0.
        """
        if not has_lora(self.model):
            raise ValueError("There is no adapter to fuse; `load_lora_weights` loads one.")
        if self.num_fused_loras:
            raise ValueError(f"Fused already: {', '.join(sorted(self.fused_loras))}; please call `unfuse_lora` first.")
        if lora_scale == 0:
            raise ValueError("`lora_scale` must not be 0; to paint without adapters there is `disable_lora`.")
        super().fuse_lora(components or self._lora_loadable_modules, lora_scale, safe_fusing, adapter_names)
        self._fused_scale = lora_scale

    def unfuse_lora(self, components: list[str] | None = None) -> None:
        """Takes the fused adapters out of the weights again, up to rounding; they stay active."""
        super().unfuse_lora(components or self._lora_loadable_modules)
        for layer in lora_layers(self.model) if has_lora(self.model) else []:
            layer.unscale_layer(self._fused_scale)  # which fusing has multiplied in, and diffusers leaves there
        self._fused_scale = 1.0
