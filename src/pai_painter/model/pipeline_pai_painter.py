# SPDX-License-Identifier: Apache-2.0
"""The pipeline with all that belongs to it: loading from any folder, adapters, and pushing to the Hub."""

import os
from typing import Any

import torch
from accelerate import cpu_offload

from ..hub import push_saved
from ..lora import has_lora, load_painter, save_lora
from ..lora_pipeline import LoraPipelineMixin
from .configuration_pai_painter import PaiPainterVQConfig
from .modeling_pai_painter import PaiPainterForImageGeneration
from .pipeline_base_pai_painter import PaiPainterBasePipeline, PaiPainterPipelineOutput
from .pipeline_loading import Precision, component_dtype, component_quantization, device_options
from .processing_pai_painter import PaiPainterProcessor

__all__ = ["PaiPainterPipeline", "PaiPainterPipelineOutput"]


class PaiPainterPipeline(PaiPainterBasePipeline, LoraPipelineMixin):
    """
    Paints pictures from Chinese captions.

    Model and processor stand at the root of one folder, so that this pipeline, `AutoModel` and `AutoProcessor` read
    the same one. `model_index.json` is there for `DiffusionPipeline.from_pretrained`.

    Args:
        model ([`PaiPainterForImageGeneration`]): The painter with its VQGAN.
        processor ([`PaiPainterProcessor`]): Captions to ids, pixels to pictures.

    Raises:
        ValueError: if the processor was made for another model.

    Example:

    ```python
    >>> from pai_painter import DEMO_MODEL, PaiPainterPipeline

    >>> pipe = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    >>> image = pipe("红苹果", seed=0).images[0]
    ```
    """

    push_to_hub = push_saved

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        torch_dtype: Precision | None = None,
        dtype: Precision | None = None,
        attn_implementation: str | None = None,
        vq_config: PaiPainterVQConfig | dict | None = None,
        base: str | os.PathLike | None = None,
        model: PaiPainterForImageGeneration | None = None,
        processor: PaiPainterProcessor | None = None,
        device_map: str | None = None,
        max_memory: dict[int | str, int | str] | None = None,
        offload_folder: str | os.PathLike | None = None,
        quantization_config: Any = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool = True,
        trust_remote_code: bool = False,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "PaiPainterPipeline":
        """
        Builds the pipeline from a folder or a Hub repository: a whole model, native or EasyNLP's, or a LoRA adapter,
        which brings its base along.

        Args:
            pretrained_model_name_or_path: the folder's path or the repository's name, `owner/name`.
            torch_dtype, dtype: the numbers to compute with, under diffusers' name and under transformers'. By
                default float32, whatever the weights are stored in: the CPU computes half precision slowly or less
                well. `"auto"` is the precision of the file; a dict has it for the component `"model"` or `"default"`.
            attn_implementation: `"sdpa"` (default), `"eager"`, …
            vq_config: the VQGAN of an EasyNLP folder, if it isn't f16_16384.
            base: the model under an adapter, if it isn't where the adapter says.
            model, processor: components to use instead of loading them.
            device_map, max_memory, offload_folder: see [`~pipeline_loading.device_options`].
            quantization_config: see [`~pipeline_loading.component_quantization`].
            variant: which weights: those of `model.fp16.safetensors` are the variant `"fp16"`.
            use_safetensors: `True` refuses `.bin` files, `False` takes nothing else; by default safetensors go first.
            low_cpu_mem_usage: must be `True`: the weights are never in memory twice.
            trust_remote_code: makes no difference: code that is in the repository is never run here.
            subfolder: the folder inside the folder or the repository.
            revision, cache_dir, token, local_files_only, force_download: as everywhere on the Hub.

        Raises:
            OSError: if there is no such folder or repository, if a file is missing in it, or if an adapter's base is.
            ValueError: if it isn't a painter's, if its weights are damaged or don't fit its configuration, or if an
                option is out of range or contradicts another one.
        """
        if not low_cpu_mem_usage:
            raise ValueError("`low_cpu_mem_usage=False` isn't supported: the weights are never in memory twice.")
        precision = component_dtype(torch_dtype, dtype)
        options = {"variant": variant, "use_safetensors": use_safetensors, "attn_implementation": attn_implementation}
        options |= device_options(device_map, max_memory, offload_folder)
        if quantization_config is not None:
            options["quantization_config"] = component_quantization(quantization_config)
        if model is not None:
            asked = {"device_map": device_map, "quantization_config": quantization_config} | options
            _check_nothing_to_load(model, None if torch_dtype is dtype is None else precision, asked)
        hub_options: dict[str, Any] = {
            "revision": revision or "main",
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        name = os.fspath(pretrained_model_name_or_path)
        if subfolder and os.path.isdir(name):
            name = os.path.join(name, subfolder)
        elif subfolder:
            hub_options["subfolder"] = subfolder
        loaded = load_painter(name, base, precision, vq_config, model, processor, options, **hub_options)
        pipeline = cls(*loaded)
        pipeline.register_to_config(_name_or_path=name)
        pipeline.hf_device_map = device_map
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
    ) -> None:
        """
        Saves model and processor side by side; see [`SavingPipeline.save_pretrained`]. Of a model with an adapter, the
        adapter; `fuse_lora` and then `unload_lora_weights` make a whole model of it.

        Raises:
            ValueError: if an option isn't supported.
        """
        if not has_lora(self.model) or push_to_hub or not safe_serialization:
            super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size, push_to_hub)
            return
        if variant is not None or max_shard_size is not None:
            raise ValueError("`variant` and `max_shard_size` are for whole models, but this one has an adapter.")
        save_lora(self.model, save_directory)
        self.processor.save_pretrained(save_directory)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As diffusers' own, and for `device="cpu"`, too, which diffusers would call `cpu:0`."""
        super().enable_sequential_cpu_offload(gpu_id, device)
        if self._offload_device.type == "cpu":  # accelerate's hooks only work under the device's own name
            self.remove_all_hooks()
            cpu_offload(self.model, torch.device("cpu"))


def _check_nothing_to_load(
    model: PaiPainterForImageGeneration, precision: torch.dtype | str | None, options: dict[str, Any]
) -> None:
    """Refuses what would have no effect on a model that is loaded already."""
    given = [name for name, value in options.items() if value is not None]
    if precision not in (None, "auto", model.dtype):
        given.append("torch_dtype")
    if given:
        raise ValueError(
            f"`{given[0]}` is for a model that is loaded here, but `model` is given: please leave one of them out."
        )
