# SPDX-License-Identifier: Apache-2.0
"""What the pipeline has of diffusers' habits beside painting: saving, loading by diffusers, switches."""

import os
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers import DiffusionPipeline
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.processing_utils import ProcessorMixin

from .modeling_pai_painter import PaiPainterForImageGeneration
from .pipeline_files_pai_painter import pipeline_files
from .processing_pai_painter import PaiPainterProcessor

__all__ = ["SavingPipeline"]


class PainterInFloat32(PaiPainterForImageGeneration):
    """Stands for the painter where diffusers loads it: in float32 unless another precision is asked for."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """See [`PaiPainterForImageGeneration.from_pretrained`]."""
        kwargs["dtype"] = kwargs.get("dtype") or torch.float32
        return PaiPainterForImageGeneration.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


# diffusers looks for the base classes by their names in the module that it is told, which is this one.
_COMPONENTS: dict[str, type[PreTrainedModel | ProcessorMixin]] = {
    "model": PainterInFloat32,
    "processor": PaiPainterProcessor,
}


class SavingPipeline(DiffusionPipeline):
    """A pipeline of a `model` and a `processor` whose files stand side by side at the root of one folder."""

    model: PaiPainterForImageGeneration
    processor: PaiPainterProcessor

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
    ) -> None:
        """
        Saves model and processor side by side, as safetensors with native names, in the precision they have, and the
        files by which `DiffusionPipeline.from_pretrained` finds the pipeline.

        Args:
            save_directory: the folder; made if it doesn't exist.
            safe_serialization: must be `True`: weights are saved as safetensors only.
            variant: a name in the weights' file names, such as `"fp16"` in `model.fp16.safetensors`.
            max_shard_size: larger weights are split into files of at most this size.
            push_to_hub: must be `False`: `push_to_hub` is a method of its own.

        Raises:
            ValueError: if `safe_serialization` or `push_to_hub` has another value.
        """
        if push_to_hub:
            raise ValueError("`push_to_hub=True` isn't supported here: please call the pipeline's `push_to_hub`.")
        if not safe_serialization:
            raise ValueError("`safe_serialization=False` isn't supported: weights are saved as safetensors.")
        options: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        self.model.save_pretrained(save_directory, variant=variant, **options)
        self.processor.save_pretrained(save_directory)
        # Where the classes came from files of code, transformers copies those of the model; these are the pipeline's.
        code = custom_object_save(self, save_directory) if self.model._auto_class is not None else []
        for name, content in pipeline_files(Path(file).stem for file in code).items():
            Path(save_directory, name).write_text(content, encoding="utf-8")

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """
        Called by `DiffusionPipeline.from_pretrained`: says of which classes the components are, wherever this file was
        loaded from.

        Raises:
            TypeError: if there is an option that neither diffusers nor the pipeline has.
        """
        components = {name: (__name__, component.__name__) for name, component in _COMPONENTS.items()}
        init_dict, unknown, hidden = super().extract_init_dict({**config_dict, **components}, **kwargs)
        if unknown:
            raise TypeError(f"from_pretrained() has no option {', '.join(map(repr, sorted(unknown)))}.")
        return init_dict, unknown, hidden

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """
        A new pipeline of the same model and processor, or of others that are given by these names. See diffusers'
        `from_pipe`; unlike there, the model keeps its precision unless `dtype` or `torch_dtype` says another.
        """
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = kwargs.get("model", pipeline).dtype
        return super().from_pipe(pipeline, **kwargs)

    def enable_attention_slicing(self, slice_size: str | int = "auto") -> NoReturn:
        """Refused: see the error."""
        raise ValueError(
            "Attention slicing isn't supported: a picture has a few hundred positions, whose attention needs little "
            "memory; `attn_implementation='sdpa'`, the default, needs least."
        )

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> NoReturn:
        """Refused: see the error."""
        raise ValueError(
            "xFormers isn't supported: please load the model with `attn_implementation='sdpa'`, which is the default, "
            "or 'flash_attention_2'."
        )

    def enable_vae_slicing(self) -> NoReturn:
        """Refused: see the error."""
        raise ValueError("VAE slicing isn't supported: please paint fewer pictures in one call to save memory.")

    def enable_vae_tiling(self) -> NoReturn:
        """Refused: see the error."""
        raise ValueError("VAE tiling isn't supported: the VQGAN decodes pictures of one size only, which are small.")
