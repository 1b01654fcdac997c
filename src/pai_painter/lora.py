# SPDX-License-Identifier: Apache-2.0
"""
LoRA: small trained matrices beside the frozen ones (https://arxiv.org/abs/2106.09685): fresh adapters to train, and
whole models of trained ones.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .model.lora_pai_painter import has_lora, load_painter, lora_layers, require_peft, save_lora, take_lora_out
from .model.model_files_pai_painter import portable_base_name, read_painter_folder
from .model.modeling_pai_painter import PaiPainterForImageGeneration
from .whole_files import new_folder

__all__ = ["add_lora", "has_lora", "load_painter", "merge_lora", "save_lora"]

_DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_1", "fc_2")
_TARGETS = (*_DEFAULT_TARGETS, "lm_head", "embed_tokens")


def add_lora(
    painter: PaiPainterForImageGeneration,
    rank: int,
    alpha: int | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    base_revision: str | None = None,
) -> None:
    """
    Puts a fresh adapter into a painter, in place, and freezes everything else.

    The painter still computes the same, since the second of each pair of matrices starts at zero. The first is drawn by
    PyTorch, so set its seed before. The adapter is float32, whatever the painter is.

    Args:
        painter: loaded by `from_pretrained`, so that the adapter can name its base.
        rank: the width between the two matrices; `rank * (inputs + outputs)` parameters per layer.
        alpha: the product of the matrices is scaled by `alpha / rank`. `rank` by default, as in diffusers' scripts.
        dropout: its rate in front of the adapter, in [0, 1).
        target_modules: `q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc_1`, `fc_2` by default, `lm_head`, `embed_tokens`.
        base_revision: of the base, if it is a repository on the Hub.

    Raises:
        ValueError: if an option is out of range, or if the painter has an adapter already.
    """
    peft = require_peft()
    targets = _DEFAULT_TARGETS if target_modules is None else target_modules
    alpha = rank if alpha is None else alpha
    if rank < 1 or alpha < 1 or not 0 <= dropout < 1:
        raise ValueError(f"`rank` and `alpha` must be at least 1, `dropout` in [0, 1), got {rank}, {alpha}, {dropout}.")
    if isinstance(targets, str) or not targets or not set(targets) <= set(_TARGETS):
        raise ValueError(f"`target_modules` must be a list of some of {', '.join(_TARGETS)}, got {targets!r}.")
    if has_lora(painter):
        raise ValueError("The painter has an adapter already: please merge or unload it first.")
    # A regular expression for whole paths, so that layers of the VQGAN with such names are not meant.
    pattern = rf"(model\.(layers\.\d+\.(attn|mlp)\.)?)?({'|'.join(name for name in _TARGETS if name in targets)})"
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern)
    config.base_model_name_or_path = portable_base_name(painter.name_or_path) or None
    config.revision = base_revision
    peft.inject_adapter_in_model(config, painter)
    painter._hf_peft_config_loaded = True  # so that transformers saves the adapter rather than the whole
    peft.tuners.tuners_utils.cast_adapter_dtype(painter, "default")


def merge_lora(
    adapter_folder: str | os.PathLike,
    output: str | os.PathLike,
    base: str | os.PathLike | None = None,
    revision: str = "main",
) -> Path:
    """
    Makes a whole model of an adapter and its base, computed in float32 and saved in the precision that the base's
    config.json names. The folder is there whole or not at all.

    Args:
        output: a new folder, or an empty one. It is returned.
        base: the model under the adapter, if it isn't where the adapter says.
        revision: of the adapter's repository.

    Raises:
        OSError: if `output` isn't an empty folder, or if adapter or base is missing.
        ValueError: if `adapter_folder` is no adapter, or if it is damaged or doesn't fit its base.
    """
    with new_folder(Path(output)) as (whole, _):
        folder = read_painter_folder(adapter_folder, base=base, revision=revision)
        if folder.adapter is None:
            raise ValueError(f"{os.fspath(adapter_folder)} contains no adapter: it has no adapter_config.json.")
        dtype = folder.config.dtype or torch.float32
        painter, processor = load_painter(adapter_folder, base, revision=revision)
        for layer in lora_layers(painter):
            layer.merge(safe_merge=True)
        take_lora_out(painter)
        painter.to(dtype).save_pretrained(whole)
        processor.save_pretrained(whole)
    return Path(output)
