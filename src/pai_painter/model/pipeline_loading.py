# SPDX-License-Identifier: Apache-2.0
"""diffusers' options of loading, as transformers' `from_pretrained` takes them."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import get_max_memory
from diffusers import PipelineQuantizationConfig
from diffusers.utils.torch_utils import get_device
from transformers.utils.quantization_config import QuantizationConfigMixin

__all__ = ["component_dtype", "component_quantization", "device_options"]

Precision = torch.dtype | str | Mapping[str, torch.dtype | str]


def component_dtype(torch_dtype: Precision | None, dtype: Precision | None) -> torch.dtype | str:
    """
    The model's precision: float32 unless another one is asked for.

    Args:
        torch_dtype, dtype: diffusers' two names of one option: a precision, its name, `"auto"` for the file's, or a
            dict with one for the component `"model"` or the `"default"`.

    Raises:
        ValueError: if both are given and differ, if a dict names another component, or if it is no precision.
    """
    if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
        raise ValueError(f"`torch_dtype` is {torch_dtype} and `dtype` is {dtype}: please give one of them.")
    given = dtype if torch_dtype is None else torch_dtype
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - {"model", "default"})
        if unknown:
            raise ValueError(
                f"`torch_dtype` may be a dict of 'model' and 'default', got {', '.join(map(repr, unknown))}."
            )
        given = given.get("model", given.get("default"))
    if given is None:
        return torch.float32
    precision = getattr(torch, given, None) if isinstance(given, str) and given != "auto" else given
    if precision != "auto" and not (isinstance(precision, torch.dtype) and precision.is_floating_point):
        raise ValueError(f"`torch_dtype` must be a precision such as torch.bfloat16, or 'auto', got {given!r}.")
    return precision


def device_options(
    device_map: str | None, max_memory: dict[int | str, int | str] | None, offload_folder: Any
) -> dict[str, Any]:
    """
    Where the model goes: diffusers places whole components, and this pipeline has one model.

    Args:
        device_map: `"cpu"` or an accelerator; `"balanced"` is the accelerator with the most free memory, with what
            doesn't fit on the CPU, or the CPU if there is none.
        max_memory: for `"balanced"`: the memory that may be used, by device.
        offload_folder: for `"balanced"`: where what doesn't fit into the CPU's memory goes.

    Raises:
        ValueError: if there is no such device, or if the others are given without `"balanced"`.
    """
    if device_map != "balanced":
        for name, value in (("max_memory", max_memory), ("offload_folder", offload_folder)):
            if value is not None:
                raise ValueError(f"`{name}` goes with `device_map='balanced'` only, which says what may be moved.")
    if device_map is None:
        return {}
    if device_map == "balanced":
        memory = get_max_memory(max_memory)
        accelerators = {name: size for name, size in memory.items() if isinstance(name, int)}
        if not accelerators:
            return {}
        largest = max(accelerators, key=accelerators.__getitem__)
        allowed = {name: size for name, size in memory.items() if name == largest or not isinstance(name, int)}
        return {"device_map": "sequential", "max_memory": allowed, "offload_folder": offload_folder}
    devices = dict.fromkeys([get_device(), "cpu"])
    if not isinstance(device_map, str) or device_map.partition(":")[0] not in devices:
        raise ValueError(
            f"`device_map` must be 'balanced' or {' or '.join(map(repr, devices))} on this machine, got {device_map!r}."
        )
    return {"device_map": device_map}


def component_quantization(quantization_config: Any) -> Any:
    """
    How the model is quantised.

    Args:
        quantization_config: diffusers' `PipelineQuantizationConfig`, which may name components, or transformers'
            configuration of a method, such as `TorchAoConfig`.

    Raises:
        ValueError: if it is neither, or if the model isn't among its components.
    """
    if not isinstance(quantization_config, PipelineQuantizationConfig):
        if not isinstance(quantization_config, QuantizationConfigMixin):
            raise ValueError(
                f"`quantization_config` must be diffusers' PipelineQuantizationConfig or transformers' configuration "
                f"of a method, such as TorchAoConfig, got {type(quantization_config).__name__}."
            )
        return quantization_config
    named = set(quantization_config.components_to_quantize or quantization_config.quant_mapping or {"model"})
    if named != {"model"}:
        raise ValueError(
            f"`quantization_config` may quantise the component 'model' only, got {', '.join(map(repr, sorted(named)))}."
        )
    return quantization_config._resolve_quant_config(is_diffusers=False, module_name="model")
