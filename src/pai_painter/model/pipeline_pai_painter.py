# SPDX-License-Identifier: Apache-2.0
"""Captions → pictures, with the habits of diffusers."""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from tqdm import tqdm
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PushToHubMixin, logging

from .configuration_pai_painter import PaiPainterVQConfig
from .lora_pai_painter import has_lora, load_painter, save_lora
from .lora_pipeline_pai_painter import LoraPipelineMixin
from .model_files_pai_painter import HUB_OPTIONS
from .modeling_pai_painter import PaiPainterForImageGeneration
from .pipeline_loading_pai_painter import COMPONENTS, Precision, loading_options, pipeline_files
from .pipeline_output_pai_painter import PaiPainterPipelineOutput
from .processing_pai_painter import PaiPainterProcessor

__all__ = ["PaiPainterPipeline", "PaiPainterPipelineOutput"]

logger = logging.get_logger(__name__)

OutputType = Literal["pil", "np", "pt", "latent"]
StepCallback = Callable[["PaiPainterPipeline", int, int, dict[str, Any]], dict[str, Any] | None]


class PaiPainterPipeline(PushToHubMixin, DiffusionPipeline, LoraPipelineMixin):
    """
    Generates pictures from Chinese captions.

    Model and processor are saved side by side at the root of one folder, so that this pipeline, `AutoModel` and
    `AutoProcessor` read the same files; `model_index.json` is there for `DiffusionPipeline.from_pretrained`.

    Args:
        model ([`PaiPainterForImageGeneration`]): The painter with its VQGAN.
        processor ([`PaiPainterProcessor`]): Captions to ids, pixels to pictures.

    Raises:
        ValueError: if the processor belongs to another model.

    Example:

    ```python
    >>> from pai_painter import DEMO_MODEL, PaiPainterPipeline

    >>> pipe = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    >>> image = pipe("红苹果", seed=0).images[0]
    ```
    """

    model: PaiPainterForImageGeneration
    processor: PaiPainterProcessor
    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = ["image_tokens"]
    _calls: list["_Call"]

    def __init__(self, model: PaiPainterForImageGeneration, processor: PaiPainterProcessor):
        super().__init__()
        processor.check_model(model.config)
        self.register_modules(model=model, processor=processor)
        self._calls = []

    @property
    def num_timesteps(self) -> int:
        """Steps of a call: the image tokens of a picture."""
        return self.model.config.num_image_tokens

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in `callback_on_step_end` to stop after the present token."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        return any(call.interrupt for call in self._calls_in_question())

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        for call in self._calls_in_question():
            call.interrupt = value

    def _calls_in_question(self) -> list["_Call"]:
        """The calls of this thread, so that a callback ends its own; from a thread that has none, all of them."""
        return [call for call in self._calls if call.thread == threading.get_ident()] or list(self._calls)

    def check_inputs(
        self,
        prompt: str | list[str],
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_tokens",),
    ) -> list[str]:
        """
        The captions as a list; a `ValueError` if one of them isn't a string or says nothing to the model, or if
        `output_type` or the callback's inputs are others than there are.
        """
        if output_type not in get_args(OutputType):
            raise ValueError(f"`output_type` must be one of {', '.join(get_args(OutputType))}, got {output_type!r}.")
        unknown = sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"`callback_on_step_end_tensor_inputs` may hold `image_tokens`, got {', '.join(unknown)}.")
        captions = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(captions, list) or not captions:
            raise ValueError(f"`prompt` must be a caption or a list of captions, got {prompt!r}.")
        for caption in captions:
            pieces = len(self.processor.word_pieces(caption))
            if not pieces:
                raise ValueError(f"The caption {caption!r} is empty: please say in Chinese what to paint.")
            if len(self.processor.unknown_pieces(caption)) == min(pieces, self.processor.text_length):
                raise ValueError(f"The model knows no word of the caption {caption!r}: please write it in Chinese.")
        return captions

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        best_of: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | list[int] | None = None,
        output_type: OutputType = "pil",
        speed: Any = "exact",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_tokens",),
        return_dict: bool = True,
    ) -> PaiPainterPipelineOutput | tuple:
        r"""
        Paints captions. Options left out are those that the model recommends (its `generation_config`).

        A picture is a function of model, caption, options and one seed: picture k of the call, counted over all
        captions, has the seed `seed + k` (with `best_of`, its candidate j has `seed + k * best_of + j`).

        Args:
            prompt (`str` or `list[str]`): One caption or several.
            num_images_per_prompt (`int`, *optional*, defaults to 1): Pictures of each caption.
            top_k (`int`, *optional*): Draw each token from the k most likely ones.
            top_p (`float`, *optional*): Draw each token from the smallest set whose probabilities add up to this.
            temperature (`float`, *optional*): Above 0; values below 1 sharpen the distribution.
            best_of (`int`, *optional*): Candidates for each picture, of which the most likely one is kept.
            generator (`torch.Generator` or a list of one for each picture, *optional*): Draws the seed.
            seed (`int` or a list of one for each picture, *optional*): The seed, instead of `generator`. Without both
                it is drawn by PyTorch.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"`, or as in aMUSEd
                `"latent"` for the image tokens.
            speed (`str`, *optional*, defaults to `"exact"`): On the CPU `"balanced"` and `"fastest"` round the model's
                numbers; see [`~cpu.speed.SPEEDS`].
            callback_on_step_end (*optional*): A function or a `diffusers.callbacks.PipelineCallback`, called as
                `callback(pipe, step, timestep, callback_kwargs)` after each token; `step` and `timestep` are its
                position, `callback_kwargs["image_tokens"]` the tokens so far, (candidates, step + 1). If it returns a
                `dict` with other `image_tokens`, generation goes on from these.
            callback_on_step_end_tensor_inputs (*optional*): Which tensors the callback wants: `image_tokens` or none.
            return_dict (`bool`, *optional*, defaults to `True`): `False` gives a tuple in the same order.

        Returns:
            [`PaiPainterPipelineOutput`]. If the generation was interrupted, the last token fills the rest of a picture,
            and there are no scores.

        Raises:
            ValueError: if a caption says nothing to the model, if an option is out of range, or if both `seed` and
                `generator` are given.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        captions = self.check_inputs(prompt, output_type, callback_on_step_end_tensor_inputs)
        for caption in dict.fromkeys(captions):
            unknown = self.processor.unknown_pieces(caption)
            if unknown:
                logger.warning(f"The model doesn't know {' '.join(unknown)} in the caption {caption!r}.")
        call = _Call(callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._calls.append(call)
        try:
            input_ids = self.processor(text=captions, return_tensors="pt")["input_ids"].to(self._execution_device)
            with self.progress_bar(total=self.num_timesteps) as bar:
                painted = self.model.generate_images(
                    input_ids,
                    num_images_per_prompt,
                    seed=seed,
                    generator=generator,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    best_of=best_of,
                    decode=False,  # an interrupted picture has too few tokens
                    speed=speed,
                    step_callback=partial(call.step_end, self, bar),
                )
        finally:
            self._calls.remove(call)
        images, scores = painted.image_tokens, painted.scores.tolist()
        missing = self.num_timesteps - images.shape[1]
        if missing:
            scores = [None] * len(scores)  # of a part they would be no measure of the picture
        if output_type != "latent":
            completed = torch.cat([images, images[:, -1:].expand(-1, missing)], dim=1)
            images = self.processor.image_processor.postprocess(self.model.decode_images(completed, speed), output_type)
        self.maybe_free_model_hooks()
        output = PaiPainterPipelineOutput(images, scores, painted.seeds, painted.image_tokens)
        return output if return_dict else output.to_tuple()

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
        **hub_options: Any,
    ) -> "PaiPainterPipeline":
        """
        Loads a pipeline from a folder or a Hub repository: a whole model, native or EasyNLP's, or a LoRA adapter, which
        brings its base model along. Code in a repository is never run here, whatever `trust_remote_code` says.

        Args:
            torch_dtype, dtype, device_map, max_memory, offload_folder, quantization_config: see
                [`~pipeline_loading_pai_painter.loading_options`]; float32 by default.
            attn_implementation: `"sdpa"` (default), `"eager"`, …
            vq_config: the VQGAN of an EasyNLP folder, if it isn't f16_16384.
            base: the model under an adapter, if it isn't where the adapter says.
            model, processor: components to use instead of loading them.
            variant: which weights: those of `model.fp16.safetensors` are the variant `"fp16"`.
            use_safetensors: `True` refuses `.bin` files, `False` takes nothing else; by default safetensors go first.
            low_cpu_mem_usage: must be `True`: the weights are never in memory twice.
            subfolder: the folder inside the folder or the repository.
            hub_options: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download`.

        Raises:
            OSError: if there is no such folder or repository, or if a file or an adapter's base is missing.
            TypeError: if there are other options.
            ValueError: if it isn't a painter's, if its weights are damaged or don't fit its configuration, or if an
                option is out of range or contradicts another one.
        """
        unknown = sorted(hub_options.keys() - HUB_OPTIONS)
        if unknown:
            raise TypeError(f"from_pretrained() has no option {', '.join(map(repr, unknown))}.")
        if not low_cpu_mem_usage:
            raise ValueError("`low_cpu_mem_usage=False` isn't supported: the weights are never in memory twice.")
        further = {"variant": variant, "use_safetensors": use_safetensors, "attn_implementation": attn_implementation}
        precision, options = loading_options(
            torch_dtype, dtype, device_map, max_memory, offload_folder, quantization_config, model, further
        )
        hub_options["revision"] = hub_options.get("revision") or "main"
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
        Saves model and processor side by side, as safetensors with native names, in the precision they have, and the
        files by which `DiffusionPipeline.from_pretrained` finds the pipeline. Of a model with an adapter, the adapter
        is saved; `fuse_lora` and then `unload_lora_weights` make a whole model of both.

        Args:
            variant: a name in the weights' file names, such as `"fp16"` in `model.fp16.safetensors`.
            max_shard_size: larger weights are split into files of at most this size; an adapter is one file.

        Raises:
            ValueError: if an option isn't supported, such as `safe_serialization=False`.
        """
        if push_to_hub or not safe_serialization:
            raise ValueError("Weights are saved as safetensors, and pushed by the pipeline's own `push_to_hub`.")
        if has_lora(self.model) and variant is not None:
            raise ValueError("`variant` is for whole models, but this one has an adapter.")
        self.processor.save_pretrained(save_directory)
        if has_lora(self.model):
            save_lora(self.model, save_directory)
            return
        options: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        self.model.save_pretrained(save_directory, variant=variant, **options)
        # Where the classes came from files of code, transformers copies those of the model; these are the pipeline's.
        code = custom_object_save(self, save_directory) if self.model._auto_class is not None else []
        for name, content in pipeline_files(Path(file).stem for file in code).items():
            Path(save_directory, name).write_text(content, encoding="utf-8")

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Called by `DiffusionPipeline.from_pretrained`: names the classes of the components and refuses the rest."""
        init_dict, unknown, hidden = super().extract_init_dict({**config_dict, **COMPONENTS}, **kwargs)
        if unknown:
            raise TypeError(f"from_pretrained() has no option {', '.join(map(repr, sorted(unknown)))}.")
        return init_dict, unknown, hidden

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """As diffusers' own, but the model keeps its precision unless `dtype` or `torch_dtype` is given."""
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = kwargs.get("model", pipeline).dtype
        return super().from_pipe(pipeline, **kwargs)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As diffusers' own, and for `device="cpu"`, too, which diffusers would call `cpu:0`."""
        super().enable_sequential_cpu_offload(gpu_id, device)
        if self._offload_device.type == "cpu":  # accelerate's hooks only work under the device's own name
            self.remove_all_hooks()
            cpu_offload(self.model, torch.device("cpu"))

    def enable_attention_slicing(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: a picture has a few hundred positions, whose attention needs little memory."""
        raise ValueError("The model's attention can't be changed here: `attn_implementation='sdpa'` needs least.")

    enable_xformers_memory_efficient_attention = enable_attention_slicing


class _Call:
    """One call of the pipeline: what its callback wants, and whether it is to end. Others may run beside it."""

    def __init__(self, callback: StepCallback | None, tensor_inputs: Sequence[str]):
        self.callback, self.tensor_inputs = callback, tensor_inputs
        self.thread, self.interrupt = threading.get_ident(), False

    def step_end(
        self, pipeline: "PaiPainterPipeline", bar: tqdm, image_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """After each token: moves the bar and calls the user; see `generate_images`' `step_callback`."""
        bar.update()
        if self.callback is not None:
            step = image_tokens.shape[1] - 1
            returned = self.callback(pipeline, step, step, dict.fromkeys(self.tensor_inputs, image_tokens))
            unknown = sorted(set(returned or {}) - set(pipeline._callback_tensor_inputs))
            if unknown:
                raise ValueError(f"A callback may return `image_tokens`, got {', '.join(unknown)}.")
            image_tokens = (returned or {}).get("image_tokens", image_tokens)
        return image_tokens, self.interrupt
