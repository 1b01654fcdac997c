# SPDX-License-Identifier: Apache-2.0
"""
LoRA weights as diffusers has them: a state dict, or one file, `pytorch_lora_weights.safetensors`.

Names of weights are accepted in three forms: the painter's own (`model.layers.0.attn.q_proj.lora_A.weight`), with
diffusers' name of the component in front (`model.model.layers…`), or with peft's prefix
(`base_model.model.model.layers…`). diffusers' form is what is written.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import safe_open
from safetensors.torch import load_file

from .painter_folder import AdapterFolder, find_file, naming_damaged_weights, read_adapter_folder

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["COMPONENT", "find_lora", "lora_settings", "painter_names", "read_lora"]

COMPONENT = "model"  # the pipeline's name of the painter
_PREFIXES = ("base_model.model.", f"{COMPONENT}.")
_OWN = ("model.", "lm_head.")  # what the painter's adaptable layers begin with
_FIRST_MATRICES = (".lora_A.weight", ".lora_embedding_A")


def find_lora(
    name_or_path: str | os.PathLike, weight_name: str | None, base: str, **hub_options: Any
) -> AdapterFolder | str:
    """
    Where LoRA weights are: a folder of peft's, or the local path of a file.

    Args:
        name_or_path: a folder, a file, or a repository of the Hub.
        weight_name: the file, if it isn't peft's `adapter_model.safetensors` or diffusers'
            `pytorch_lora_weights.safetensors`.
        base: the model that the adapter is for.
        hub_options: `subfolder`, `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        OSError: if there is no such folder, file or repository.
        ValueError: if it holds no adapter, or if the file isn't a safetensors file.
    """
    name = os.fspath(name_or_path)
    if os.path.isfile(name) and weight_name is None:
        name, weight_name = os.path.split(os.path.abspath(name))
    if weight_name in (None, "adapter_model.safetensors"):
        adapter = read_adapter_folder(name, base=base, **hub_options)
        if adapter is not None:
            return adapter
    file = weight_name or LORA_WEIGHT_NAME_SAFE
    if not file.endswith(".safetensors"):
        raise ValueError(f"LoRA weights are read from .safetensors files only, but `weight_name` is {file!r}.")
    path = find_file(name, file, **hub_options)
    if path is None and weight_name is None:
        raise ValueError(f"{name} holds no adapter: it has no adapter_config.json and no {LORA_WEIGHT_NAME_SAFE}.")
    if path is None:
        raise OSError(f"{name} has no file {weight_name}.")
    return path


def read_lora(found: AdapterFolder | str) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """
    Weights under the painter's own names, and peft's settings if they are known.

    Raises:
        ValueError: if the file is damaged.
    """
    path = found.weights if isinstance(found, AdapterFolder) else found
    with naming_damaged_weights(path):
        weights = painter_names(load_file(path))
        if isinstance(found, AdapterFolder):
            return weights, found.settings
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    if metadata is None:
        return weights, None
    try:
        settings = json.loads(metadata)
    except ValueError as error:
        raise ValueError(f"The {LORA_ADAPTER_METADATA_KEY} in {path} is damaged ({error}).") from error
    return weights, {name.removeprefix(f"{COMPONENT}."): value for name, value in settings.items()}


def painter_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    A state dict under the painter's own names.

    Raises:
        ValueError: if it is no state dict, or holds weights of another component or of no LoRA.
    """
    weights = {}
    for name, weight in state_dict.items():
        if not isinstance(name, str) or not isinstance(weight, torch.Tensor):
            raise ValueError(f"A state dict of an adapter has names and tensors, got {name!r}: {weight!r}.")
        rest = (name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix))
        own = next((each for each in rest if each.startswith(_OWN)), name)
        if not own.startswith(_OWN) or ".lora_" not in own:
            raise ValueError(f"{name} is no LoRA weight of the painter, which are called {COMPONENT}.….lora_A.weight.")
        weights[own] = weight
    return weights


def lora_settings(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None) -> "LoraConfig":
    """
    peft's settings. Where they aren't stored, ranks are read off the weights, and alpha is the rank, the scale 1.

    Args:
        weights: under the painter's own names.
        settings: those that are stored beside the weights.

    Raises:
        TypeError: if there are settings that peft doesn't have.
        ValueError: if there are no weights.
    """
    from peft import LoraConfig

    if settings is not None:
        return LoraConfig(**settings)
    ranks = {
        name.removesuffix(suffix): weight.shape[0]
        for name, weight in weights.items()
        for suffix in _FIRST_MATRICES
        if name.endswith(suffix)
    }
    if not ranks:
        raise ValueError("there are no LoRA weights in it")
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: each for name, each in ranks.items() if each != rank}
    return LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(ranks), rank_pattern=others, alpha_pattern=dict(others)
    )
