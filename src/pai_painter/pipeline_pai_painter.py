# SPDX-License-Identifier: Apache-2.0
"""The pipeline with all that belongs to it: loading from any folder, adapters, and pushing to the Hub."""

import os
from typing import Any

import torch

from .configuration_pai_painter import PaiPainterVQConfig
from .lora import has_lora, load_painter, save_lora
from .lora_pipeline import LoraPipelineMixin
from .pipeline_base_pai_painter import PaiPainterBasePipeline, PaiPainterPipelineOutput
from .push_to_hub import DEFAULT_SHARD_SIZE, push_pipeline

__all__ = ["PaiPainterPipeline", "PaiPainterPipelineOutput"]


class PaiPainterPipeline(PaiPainterBasePipeline, LoraPipelineMixin):
    """
    Paints pictures from Chinese captions.

    Model and processor stand at the root of one folder, so that this pipeline, `AutoModel` and `AutoProcessor` read
    the same one. The `model_index.json` of a repository is for diffusers alone, where this package isn't installed.

    Args:
        model ([`PaiPainterForImageGeneration`]): The painter with its codec.
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

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        vq_config: PaiPainterVQConfig | dict | None = None,
        base: str | os.PathLike | None = None,
        revision: str = "main",
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
                well. `"auto"` is the precision of the file.
            attn_implementation: `"sdpa"` (default), `"eager"`, …
            vq_config: the codec of an EasyNLP folder, if it isn't VQGAN f16_16384.
            base: the model under an adapter, if it isn't where the adapter says.
            revision, cache_dir, token, local_files_only, force_download: as everywhere on the Hub.

        Raises:
            OSError: if there is no such folder or repository, if a file is missing in it, or if an adapter's base is.
            ValueError: if it isn't a painter's, or if its weights are damaged or don't fit its configuration.
        """
        if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
            raise ValueError(f"`torch_dtype` is {torch_dtype} and `dtype` is {dtype}: please give one of them.")
        hub_options: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        name = os.fspath(pretrained_model_name_or_path)
        precision = torch_dtype or dtype or torch.float32
        model, processor = load_painter(name, base, precision, attn_implementation, vq_config, **hub_options)
        pipeline = cls(model=model, processor=processor)
        pipeline.register_to_config(_name_or_path=name)
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Saves model and processor side by side, as safetensors with native names, in the precision they have. Of a model
        with an adapter, the adapter; `fuse_lora` and then `unload_lora_weights` make a whole model of it.

        Args:
            save_directory: the folder; made if it doesn't exist.
            push_to_hub: not supported here: [`~PaiPainterPipeline.push_to_hub`] saves and pushes.
            kwargs: passed on to a whole model's `save_pretrained`, such as `max_shard_size`.

        Raises:
            ValueError: if `push_to_hub` is asked for, which is a method of its own.
        """
        if push_to_hub:
            raise ValueError("`push_to_hub=True` isn't supported here: please call the pipeline's `push_to_hub`.")
        if has_lora(self.model):
            save_lora(self.model, save_directory)
            self.processor.save_pretrained(save_directory)
        else:
            super().save_pretrained(save_directory, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        revision: str | None = None,
        max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    ) -> str:
        """
        Pushes model and processor as one commit, with the code that loads them where this package isn't installed.
        What else is in the repository, such as its card, stays.

        Args:
            repo_id: `owner/name`; a name alone is the token's owner's. Made if there is none.
            commit_message: its first line.
            private: make the repository private; one that is public already is refused.
            token: that may write; `HF_TOKEN` or the login of `hf auth login` by default.
            create_pr: ask by a pull request instead.
            safe_serialization, variant, subfolder: diffusers' own, which aren't supported: there is one model, at the
                root, as safetensors.
            revision: branch; made from `main` if there is none.
            max_shard_size: larger weights are split.

        Returns:
            the address of the repository at the commit, or of the pull request.

        Raises:
            ValueError: if the model has an adapter, if an option isn't supported, or if the name or the token can't be
                right.
            OSError: if the Hub refuses or can't be reached.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization=False` isn't supported: weights go to the Hub as safetensors.")
        if variant is not None or subfolder is not None:
            raise ValueError(
                "`variant` and `subfolder` aren't supported: a repository holds one model, at its root. For another "
                "one please take another `revision` or repository."
            )
        return push_pipeline(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            create_pr=create_pr,
            revision=revision,
            max_shard_size=max_shard_size,
        )
