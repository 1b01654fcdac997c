# SPDX-License-Identifier: Apache-2.0
"""How diffusers finds the pipeline in a folder, and diffusers' options of loading as transformers takes them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig
from transformers import PreTrainedModel, ProcessorMixin

from .modeling_pai_painter import PaiPainterForImageGeneration
from .processing_pai_painter import PaiPainterProcessor

__all__ = ["COMPONENTS", "Precision", "loading_options", "pipeline_files"]

Precision = torch.dtype | str | Mapping[str, torch.dtype | str]

# diffusers accepts only names of libraries that it knows; the pipeline itself says which classes its components are.
_MODEL_INDEX = {
    "_class_name": ["pipeline", "PaiPainterPipeline"],
    "model": ["transformers", "AutoModel"],
    "processor": ["transformers", "AutoProcessor"],
}

# The package is imported by a call: diffusers and transformers take each line that looks like an import for one that is
# needed, in this file, too. All files are named: diffusers copies those that this one names, but not theirs in turn.
_PIPELINE = '''# SPDX-License-Identifier: Apache-2.0
"""The pipeline for diffusers, which runs this file if it may (`trust_remote_code`)."""

import importlib

try:
    PaiPainterPipeline = importlib.import_module("pai_painter").PaiPainterPipeline
except ImportError:
{otherwise}
'''
_WITH_CODE = """{imports}

    # What is saved from here takes the code along.
    PaiPainterConfig.register_for_auto_class()
    PaiPainterForImageGeneration.register_for_auto_class("AutoModel")
    PaiPainterImageProcessor.register_for_auto_class()
    PaiPainterProcessor.register_for_auto_class()
    PaiPainterTokenizer.register_for_auto_class()
"""


class PainterInFloat32(PaiPainterForImageGeneration):
    """Stands for the painter where diffusers loads it: in float32 unless another precision is asked for."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """See [`PaiPainterForImageGeneration.from_pretrained`]."""
        kwargs["dtype"] = kwargs.get("dtype") or torch.float32
        return PaiPainterForImageGeneration.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


# diffusers looks for the base classes by their names in the module that it is told, which is this one.
_CLASSES: dict[str, type[PreTrainedModel | ProcessorMixin]] = {
    "model": PainterInFloat32,
    "processor": PaiPainterProcessor,
}
COMPONENTS = {component: (__name__, cls.__name__) for component, cls in _CLASSES.items()}


def pipeline_files(modules: Iterable[str] = ()) -> dict[str, str]:
    """
    The two files, content by name, by which `DiffusionPipeline.from_pretrained` finds the pipeline in a folder, beside
    the weights at its root: `model_index.json` names the class, `pipeline.py` has it. `modules` are the files of code
    in the folder, for use where this package isn't installed.
    """
    imports = "\n".join(f"    from .{module} import *" for module in sorted(modules))
    otherwise = _WITH_CODE.format(imports=imports).rstrip() if imports else "    raise"
    return {
        "model_index.json": json.dumps(_MODEL_INDEX, indent=2) + "\n",
        "pipeline.py": _PIPELINE.format(otherwise=otherwise),
    }


def loading_options(
    torch_dtype: Precision | None,
    dtype: Precision | None,
    device_map: str | None,
    max_memory: dict[int | str, int | str] | None,
    offload_folder: Any,
    quantization_config: Any,
    model: PaiPainterForImageGeneration | None,
    further: dict[str, Any],
) -> tuple[torch.dtype | str, dict[str, Any]]:
    """
    Args:
        torch_dtype, dtype: diffusers' two names of one option: a precision, its name, `"auto"` for the file's, or a
            dict with one for the component `"model"` or the `"default"`. By default float32.
        device_map: a device, or `"balanced"`, which fills one after the other: diffusers places whole components, and
            this pipeline has one model.
        max_memory, offload_folder: for `"balanced"`: how much of each device, and where the rest goes on disk.
        quantization_config: diffusers' `PipelineQuantizationConfig` for the component `"model"`, or transformers'
            configuration of a method, such as `TorchAoConfig`.
        model: given instead of being loaded, for which the others would have no effect.
        further: options of `from_pretrained` as they are.

    Returns:
        the model's precision, and options of its `from_pretrained`; a `ValueError` if they contradict each other.
    """
    if device_map != "balanced" and (max_memory is not None or offload_folder is not None):
        raise ValueError("`max_memory` and `offload_folder` go with `device_map='balanced'` only.")
    given = dtype if torch_dtype is None else torch_dtype
    if isinstance(quantization_config, PipelineQuantizationConfig):
        named = quantization_config.components_to_quantize or quantization_config.quant_mapping or ["model"]
        _of_model("quantization_config", dict.fromkeys(named))
        quantization_config = quantization_config._resolve_quant_config(is_diffusers=False, module_name="model")
    if dtype not in (None, given):
        raise ValueError(f"`torch_dtype` is {torch_dtype} and `dtype` is {dtype}: please give one of them.")
    if isinstance(given, Mapping):
        given = _of_model("torch_dtype", given)
    if not isinstance(given, str | torch.dtype | None):
        raise ValueError(f"`torch_dtype` must be a precision such as torch.bfloat16, or 'auto', got {given!r}.")
    options = {
        "device_map": "sequential" if device_map == "balanced" else device_map,
        "max_memory": max_memory,
        "offload_folder": offload_folder,
        "quantization_config": quantization_config,
        **further,
    }
    if model is not None:
        needless = {"torch_dtype": None if given in ("auto", model.dtype) else given} | options
        if useless := [name for name, value in needless.items() if value is not None]:
            raise ValueError(
                f"`{useless[0]}` is for a model that is loaded here, but `model` is given: please leave one out."
            )
    return given or torch.float32, {name: value for name, value in options.items() if value is not None}


def _of_model(option: str, by_component: Mapping[str, Any]) -> Any:
    others = sorted(by_component.keys() - {"model", "default"})
    if others:
        raise ValueError(f"`{option}` may name the component 'model' only, got {', '.join(map(repr, others))}.")
    return by_component.get("model", by_component.get("default"))
