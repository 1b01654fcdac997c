# SPDX-License-Identifier: Apache-2.0
"""
LoRA: small trained matrices beside the frozen ones (https://arxiv.org/abs/2106.09685), through peft.

The painter stays the class it is: peft's layers are put into it, rather than a `PeftModel` around it, so that
`generate`, the pipeline and the training loop see no difference.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import is_peft_available

from .lora_layers import (
    active_adapters,
    active_lora,
    has_lora,
    lora_layers,
    put_fresh_lora_in,
    put_lora_in,
    take_lora_out,
)
from .model.configuration_pai_painter import PaiPainterVQConfig
from .model.modeling_pai_painter import PaiPainterForImageGeneration
from .model.processing_pai_painter import PaiPainterProcessor
from .model.sampling_pai_painter import read_generation_config
from .painter_folder import (
    AdapterFolder,
    PainterFolder,
    load_processor,
    naming_damaged_weights,
    portable_base_name,
    read_adapter_folder,
    read_painter_folder,
)

__all__ = [
    "add_lora",
    "has_lora",
    "load_lora",
    "load_painter",
    "lora_layers",
    "merge_lora",
    "require_peft",
    "save_lora",
    "take_lora_out",
]

# Whole paths as regular expressions: the VQGAN, whose layers have names like these, is never meant.
_TARGETS = {
    "q_proj": r"model\.layers\.\d+\.attn\.q_proj",
    "k_proj": r"model\.layers\.\d+\.attn\.k_proj",
    "v_proj": r"model\.layers\.\d+\.attn\.v_proj",
    "out_proj": r"model\.layers\.\d+\.attn\.out_proj",
    "fc_1": r"model\.layers\.\d+\.mlp\.fc_1",
    "fc_2": r"model\.layers\.\d+\.mlp\.fc_2",
    "lm_head": r"lm_head",
    "embed_tokens": r"model\.embed_tokens",
}
_PREFIX = "base_model.model."  # of the names in peft's files
_DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_1", "fc_2")


def add_lora(
    painter: PaiPainterForImageGeneration,
    rank: int,
    alpha: int | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    base_revision: str | None = None,
) -> None:
    """
    Puts a fresh adapter into a painter, in place; everything else in it, the VQGAN too, is frozen.

    The painter still computes what it did, since the second of each pair of matrices starts at zero. The first one is
    drawn by PyTorch: set its seed before. The adapter is float32, whatever the painter is.

    Args:
        painter: loaded by `from_pretrained`, so that the adapter can say what its base is.
        rank: the width between the two matrices; `rank * (inputs + outputs)` parameters for each layer.
        alpha: the matrices' product is scaled by `alpha / rank`. By default `rank`, the scale 1, as in diffusers'
            training scripts: another rank then needs no other learning rate.
        dropout: rate of dropout in front of the adapter, in [0, 1).
        target_modules: which layers get one: `q_proj`, `k_proj`, `v_proj`, `out_proj` (attention), `fc_1`, `fc_2`
            (MLP), which are the default, `lm_head` and `embed_tokens`.
        base_revision: the revision of the base, if it is a repository of the Hub.

    Raises:
        ModuleNotFoundError: if peft isn't installed.
        ValueError: if an option is out of range, or if the painter has an adapter already.
    """
    require_peft()
    from peft import LoraConfig
    from peft.tuners.tuners_utils import cast_adapter_dtype

    if rank < 1:
        raise ValueError(f"The rank of an adapter must be at least 1, got {rank}.")
    alpha = rank if alpha is None else alpha
    if alpha < 1:
        raise ValueError(f"`alpha`, the scale of an adapter, must be at least 1, got {alpha}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` is a rate and must lie in [0, 1), got {dropout}.")
    pattern = _pattern_of(_DEFAULT_TARGETS if target_modules is None else target_modules)
    if has_lora(painter):
        raise ValueError(
            f"The painter has an adapter already ({', '.join(painter.peft_config)}): please merge or unload it first."
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern)
    config.base_model_name_or_path = portable_base_name(painter.name_or_path) or None
    config.revision = base_revision
    put_fresh_lora_in(painter, config)
    cast_adapter_dtype(painter, "default")


def _pattern_of(target_modules: Sequence[str]) -> str:
    if isinstance(target_modules, str) or not target_modules:
        raise ValueError(f"`target_modules` must be a list of names ({', '.join(_TARGETS)}), got {target_modules!r}.")
    unknown = sorted(set(target_modules) - set(_TARGETS))
    if unknown:
        raise ValueError(
            f"The painter has no {', '.join(unknown)} to adapt; `target_modules` are {', '.join(_TARGETS)}."
        )
    return "|".join(path for name, path in _TARGETS.items() if name in target_modules)


def save_lora(
    painter: PaiPainterForImageGeneration,
    folder: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """
    Saves the active adapter: adapter_config.json, adapter_model.safetensors (peft's names) and
    generation_config.json.

    Unlike the painter's own `save_pretrained`, it asks no Hub for the base, and it saves no frozen embeddings beside
    their adapters.

    Args:
        painter: with an adapter.
        folder: made if it doesn't exist.
        state_dict: the painter's weights, gathered from all processes, if its own are spread over them.

    Raises:
        ValueError: if there is no adapter, or more than one is active.
    """
    weights, _ = active_lora(painter, state_dict)
    tensors = {f"{_PREFIX}{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    os.makedirs(folder, exist_ok=True)
    painter.peft_config[active_adapters(painter)[0]].save_pretrained(os.fspath(folder))
    painter.generation_config.save_pretrained(folder)
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def load_lora(painter: PaiPainterForImageGeneration, adapter: AdapterFolder, adapter_name: str = "default") -> None:
    """
    Loads an adapter into a painter, frozen, and makes it the active one. If that fails, the painter is as it was.

    Unlike the painter's own `load_adapter`, it takes no weights that don't fit.

    Args:
        painter: the model that the adapter was trained on.
        adapter: from [`~painter_folder.read_adapter_folder`].
        adapter_name: what it is called in the painter.

    Raises:
        ModuleNotFoundError: if peft isn't installed.
        ValueError: if the name is taken, or if the adapter's weights are damaged or don't fit the painter.
    """
    require_peft()
    from peft import LoraConfig

    with naming_damaged_weights(adapter.name):
        tensors = load_file(adapter.weights)
    weights = {name.removeprefix(_PREFIX): weight for name, weight in tensors.items()}
    folder = os.path.dirname(adapter.weights)
    put_lora_in(painter, weights, lambda: LoraConfig.from_pretrained(folder), adapter.name, adapter_name)


def load_painter(
    name_or_path: str | os.PathLike,
    base: str | os.PathLike | None = None,
    dtype: torch.dtype | str = torch.float32,
    vq_config: PaiPainterVQConfig | dict | None = None,
    painter: PaiPainterForImageGeneration | None = None,
    processor: PaiPainterProcessor | None = None,
    options: dict[str, Any] | None = None,
    **hub_options: Any,
) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    """
    A painter and its processor from a whole model's folder or from an adapter's.

    An adapter's folder gives the adapter and the recommended settings (generation_config.json), everything else comes
    from its base.

    Args:
        name_or_path, base, vq_config, hub_options: see [`~painter_folder.read_painter_folder`].
        dtype: the numbers to compute with; `"auto"` is the precision of the model's file.
        painter, processor: to be used instead of loading them.
        options: of the painter's `from_pretrained`, such as `attn_implementation`.

    Raises:
        OSError: if there is no such folder or repository, or if a file is missing in it.
        ValueError: if it isn't a painter's, if its weights are damaged or don't fit its configuration, or if it is an
            adapter's and a painter is given.
    """
    folder = read_painter_folder(name_or_path, vq_config, base, **hub_options)
    if folder.adapter is not None and painter is not None:
        raise ValueError(
            f"{folder.adapter.name} holds an adapter, which would change the model that is given: please load it by "
            f"`load_lora_weights`."
        )
    if processor is None:
        processor = load_processor(folder)
    if painter is None:
        painter = _load_whole(folder, dtype, options)
    if folder.adapter is not None:
        _load_over(painter, folder.adapter)
    return painter, processor


def _load_whole(
    folder: PainterFolder, dtype: torch.dtype | str, options: dict[str, Any] | None = None
) -> PaiPainterForImageGeneration:
    with naming_damaged_weights(folder.name):
        return PaiPainterForImageGeneration.from_pretrained(
            folder.name, config=folder.config, dtype=dtype, **(options or {}), **folder.hub_options
        )


def _load_over(painter: PaiPainterForImageGeneration, adapter: AdapterFolder) -> None:
    load_lora(painter, adapter)
    settings = read_generation_config(adapter.name, painter.config, **adapter.hub_options)
    if settings is not None:
        painter.generation_config = settings


def merge_lora(
    adapter_folder: str | os.PathLike,
    output: str | os.PathLike,
    base: str | os.PathLike | None = None,
    revision: str = "main",
) -> Path:
    """
    Makes a whole model of an adapter and its base: model, processor, tokenizer and recommended settings.

    The sum is computed in float32 and saved in the base's precision. The folder is there whole or not at all.

    Args:
        adapter_folder: the adapter's folder or repository.
        output: a new folder, or an empty one.
        base: the model under the adapter, if it isn't where the adapter says.
        revision: the adapter repository's.

    Returns:
        `output`.

    Raises:
        ModuleNotFoundError: if peft isn't installed.
        OSError: if `output` exists and isn't an empty folder, or if adapter or base isn't there.
        ValueError: if `adapter_folder` is no adapter, or if it is damaged or doesn't fit its base.
    """
    require_peft()
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists already: please name a new folder, or an empty one.")
    folder = None
    if read_adapter_folder(adapter_folder, base, revision=revision) is not None:
        folder = read_painter_folder(adapter_folder, base=base, revision=revision)
    if folder is None or folder.adapter is None:
        raise ValueError(f"{os.fspath(adapter_folder)} holds no adapter: it has no adapter_config.json.")
    processor, painter = load_processor(folder), _load_whole(folder, "auto")
    dtype = painter.dtype
    painter.float()
    _load_over(painter, folder.adapter)
    for layer in lora_layers(painter):
        layer.merge(safe_merge=True)
    take_lora_out(painter)
    painter.to(dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        whole = Path(scratch) / output.name
        painter.save_pretrained(whole)
        processor.save_pretrained(whole)
        if output.exists():
            output.rmdir()  # empty; not everywhere can a folder be renamed onto one
        whole.rename(output)
    return output


def require_peft() -> None:
    """
    Raises:
        ModuleNotFoundError: if peft isn't installed.
    """
    if not is_peft_available():
        raise ModuleNotFoundError(
            'LoRA adapters need peft: please run `pip install "pai-painter[train]"`.', name="peft"
        )
