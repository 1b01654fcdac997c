# SPDX-License-Identifier: Apache-2.0
"""
LoRA: small trained matrices beside the frozen ones (https://arxiv.org/abs/2106.09685), through peft.

The painter stays the class it is: peft's layers are put into it by transformers' own `add_adapter`, rather than a
`PeftModel` around it, so that `generate`, the pipeline and the training loop see no difference.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from transformers.utils import is_peft_available

from .configuration_pai_painter import PaiPainterVQConfig
from .modeling_pai_painter import PaiPainterForImageGeneration
from .painter_folder import (
    AdapterFolder,
    PainterFolder,
    find_file,
    naming_damaged_weights,
    portable_base_name,
    read_adapter_folder,
    read_painter_folder,
)
from .processing_pai_painter import PaiPainterProcessor
from .sampling_pai_painter import complete_generation_config

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

__all__ = [
    "add_lora",
    "has_lora",
    "load_lora",
    "load_painter",
    "lora_layers",
    "merge_lora",
    "save_lora",
    "take_lora_out",
]

# Whole paths as regular expressions: the codec, whose layers have names like these, is never meant.
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
    Puts a fresh adapter into a painter, in place; everything else in it, the codec too, is frozen.

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
    _require_peft()
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
    painter.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern))
    config = painter.peft_config["default"]
    config.base_model_name_or_path = portable_base_name(painter.name_or_path) or None
    config.revision = base_revision
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


def has_lora(painter: PaiPainterForImageGeneration) -> bool:
    """Whether peft's layers are in the painter."""
    return bool(getattr(painter, "peft_config", None))  # which transformers sets with the first adapter


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
    if not has_lora(painter):
        raise ValueError("The painter has no adapter to save; `add_lora` gives it one.")
    active = painter.active_adapters()
    if len(active) != 1:
        raise ValueError(f"One adapter is saved at a time, but {len(active)} are active: {', '.join(active)}.")
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(painter, state_dict, active[0], save_embedding_layers=False)
    tensors = {f"{_PREFIX}{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    os.makedirs(folder, exist_ok=True)
    painter.peft_config[active[0]].save_pretrained(os.fspath(folder))
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
    _require_peft()
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    if has_lora(painter) and adapter_name in painter.peft_config:
        raise ValueError(
            f"The painter has an adapter {adapter_name!r} already: please unload it, or give another `adapter_name`."
        )
    with naming_damaged_weights(adapter.name):
        tensors = load_file(adapter.weights)
    weights = {name.removeprefix(_PREFIX): weight for name, weight in tensors.items()}
    with _taking_out_if_it_fails(painter, adapter_name):
        try:
            config = LoraConfig.from_pretrained(os.path.dirname(adapter.weights))
            inject_adapter_in_model(config, painter, adapter_name)
        except (KeyError, TypeError, ValueError) as error:  # peft's, of settings that it can't make layers from
            reason = str(error).split(". ")[0].rstrip(".")
            raise ValueError(f"The adapter {adapter.name} doesn't fit the painter ({reason}).") from error
        wanted = get_peft_model_state_dict(painter, adapter_name=adapter_name, save_embedding_layers=False)
        _check_weights(weights, wanted, adapter.name, painter.name_or_path or "the painter")
        set_peft_model_state_dict(painter, weights, adapter_name)
        painter._hf_peft_config_loaded = True
        painter.set_adapter(adapter_name)
    painter.requires_grad_(False)
    painter.train(painter.training)  # the new layers, too


def _check_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], adapter: str, painter: str) -> None:
    problems = [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected: {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"ill-shaped: {name} is {tuple(found[name].shape)}, must be {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if problems:
        raise ValueError(
            f"The adapter {adapter} doesn't fit {painter}; {len(problems)} of its weights don't: {'; '.join(problems)}."
        )


@contextmanager
def _taking_out_if_it_fails(painter: PaiPainterForImageGeneration, adapter_name: str) -> Iterator[None]:
    active = painter.active_adapters() if has_lora(painter) else []
    try:
        yield
    except BaseException:
        if active and adapter_name in painter.peft_config:
            painter.delete_adapter(adapter_name)
            painter.set_adapter(active)
        elif not active:
            take_lora_out(painter)
        raise


def load_painter(
    name_or_path: str | os.PathLike,
    base: str | os.PathLike | None = None,
    dtype: torch.dtype | str = torch.float32,
    attn_implementation: str | None = None,
    vq_config: PaiPainterVQConfig | dict | None = None,
    **hub_options: Any,
) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    """
    A painter and its processor from a whole model's folder or from an adapter's.

    An adapter's folder gives the adapter and the recommended settings (generation_config.json), everything else comes
    from its base.

    Args:
        name_or_path, base, vq_config, hub_options: see [`~painter_folder.read_painter_folder`].
        dtype: the numbers to compute with; `"auto"` is the precision of the model's file.
        attn_implementation: `"sdpa"` (default), `"eager"`, …

    Raises:
        OSError: if there is no such folder or repository, or if a file is missing in it.
        ValueError: if it isn't a painter's, or if its weights are damaged or don't fit its configuration.
    """
    folder = read_painter_folder(name_or_path, vq_config, base, **hub_options)
    painter, processor = _load_whole(folder, dtype, attn_implementation, **hub_options)
    if folder.adapter is not None:
        _load_over(painter, folder.adapter, **hub_options)
    return painter, processor


def _load_whole(
    folder: PainterFolder, dtype: torch.dtype | str, attn_implementation: str | None = None, **hub_options: Any
) -> tuple[PaiPainterForImageGeneration, PaiPainterProcessor]:
    hub_options = {**hub_options, "revision": folder.revision}
    sizes: dict[str, int] = {}
    if folder.layout == "EasyNLP":  # whose processor says nothing of them
        sizes = {"text_length": folder.config.text_length, "size": folder.vq_config.resolution}
    processor = PaiPainterProcessor.from_pretrained(folder.name, **sizes, **hub_options)
    processor.check_model(folder.config)
    with naming_damaged_weights(folder.name):
        painter = PaiPainterForImageGeneration.from_pretrained(
            folder.name, config=folder.config, dtype=dtype, attn_implementation=attn_implementation, **hub_options
        )
    return painter, processor


def _load_over(painter: PaiPainterForImageGeneration, adapter: AdapterFolder, **hub_options: Any) -> None:
    load_lora(painter, adapter)
    if find_file(adapter.name, "generation_config.json", optional=True, **hub_options) is not None:
        settings = GenerationConfig.from_pretrained(adapter.name, **hub_options)
        painter.generation_config = complete_generation_config(settings, painter.config)


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
    _require_peft()
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists already: please name a new folder, or an empty one.")
    folder = None
    if read_adapter_folder(adapter_folder, base, revision=revision) is not None:
        folder = read_painter_folder(adapter_folder, base=base, revision=revision)
    if folder is None or folder.adapter is None:
        raise ValueError(f"{os.fspath(adapter_folder)} holds no adapter: it has no adapter_config.json.")
    painter, processor = _load_whole(folder, "auto")
    dtype = painter.dtype
    painter.float()
    _load_over(painter, folder.adapter, revision=revision)
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


def lora_layers(painter: PaiPainterForImageGeneration) -> "list[LoraLayer]":
    """peft's layers in the painter."""
    from peft.tuners.lora import LoraLayer

    return [module for module in painter.modules() if isinstance(module, LoraLayer)]


def take_lora_out(painter: PaiPainterForImageGeneration) -> None:
    """Puts the layers back that peft's are around, as they are now: with what was merged into them."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(painter.named_modules()):
        if isinstance(module, LoraLayer):
            painter.set_submodule(name, module.get_base_layer())
    if has_lora(painter):
        del painter.peft_config
    painter._hf_peft_config_loaded = False


def _require_peft() -> None:
    if not is_peft_available():
        raise ModuleNotFoundError(
            'LoRA adapters need peft: please run `pip install "pai-painter[train]"`.', name="peft"
        )
