# SPDX-License-Identifier: Apache-2.0
"""
peft's layers in a painter, through peft's own functions: transformers' methods for adapters ask for a version of peft
that needn't be there (5.24 for one above the newest).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .model.model_files_pai_painter import check_finite
from .model.modeling_pai_painter import PaiPainterForImageGeneration

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

__all__ = [
    "active_adapters",
    "active_lora",
    "has_lora",
    "lora_layers",
    "make_active",
    "put_fresh_lora_in",
    "put_lora_in",
    "take_lora_out",
]


def has_lora(painter: PaiPainterForImageGeneration) -> bool:
    """Whether peft's layers are in the painter."""
    return bool(getattr(painter, "peft_config", None))  # which transformers sets with the first adapter


def active_adapters(painter: PaiPainterForImageGeneration) -> list[str]:
    """The names of the adapters that take part, in the order in which they are applied."""
    return list(lora_layers(painter)[0].active_adapters) if has_lora(painter) else []


def make_active(painter: PaiPainterForImageGeneration, adapter_names: list[str]) -> None:
    """Lets these adapters take part, and no others."""
    for layer in lora_layers(painter):
        layer.set_adapter(adapter_names)


def put_fresh_lora_in(
    painter: PaiPainterForImageGeneration, settings: "LoraConfig", adapter_name: str = "default"
) -> None:
    """Puts an adapter in that is to be trained: everything else is frozen."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(settings, painter, adapter_name)
    painter._hf_peft_config_loaded = True  # so that transformers saves the adapter rather than the whole
    make_active(painter, [adapter_name])


def active_lora(
    painter: PaiPainterForImageGeneration, state_dict: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    The active adapter's weights, under the painter's own names, and peft's settings.

    Args:
        painter, state_dict: see [`~lora.save_lora`].

    Raises:
        ValueError: if there is no adapter, or more than one is active.
    """
    if not has_lora(painter):
        raise ValueError("The painter has no adapter to save; `add_lora` gives it one.")
    active = active_adapters(painter)
    if len(active) != 1:
        raise ValueError(f"One adapter is saved at a time, but {len(active)} are active: {', '.join(active)}.")
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(painter, state_dict, active[0], save_embedding_layers=False)
    return weights, painter.peft_config[active[0]].to_dict()


def put_lora_in(
    painter: PaiPainterForImageGeneration,
    weights: dict[str, torch.Tensor],
    settings: Callable[[], "LoraConfig"],
    adapter: str,
    adapter_name: str,
) -> None:
    """
    What [`~lora.load_lora`] does, with weights that are in memory.

    Args:
        painter, adapter_name: see [`~lora.load_lora`].
        weights: under the painter's own names, `model.layers.0.attn.q_proj.lora_A.weight`.
        settings: gives peft's settings; what is wrong with them is told of `adapter`.
        adapter: what errors call it.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if has_lora(painter) and adapter_name in painter.peft_config:
        raise ValueError(
            f"The painter has an adapter {adapter_name!r} already: please unload it, or give another `adapter_name`."
        )
    check_finite(weights, adapter)
    with _taking_out_if_it_fails(painter, adapter_name):
        try:
            put_fresh_lora_in(painter, settings(), adapter_name)
        except (KeyError, TypeError, ValueError) as error:  # peft's, of settings that it can't make layers from
            reason = str(error).split(". ")[0].rstrip(".")
            raise ValueError(f"The adapter {adapter} doesn't fit the painter ({reason}).") from error
        wanted = get_peft_model_state_dict(painter, adapter_name=adapter_name, save_embedding_layers=False)
        _check_weights(weights, wanted, adapter, painter.name_or_path or "the painter")
        set_peft_model_state_dict(painter, weights, adapter_name)
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
    active = active_adapters(painter)
    try:
        yield
    except BaseException:
        if active and adapter_name in painter.peft_config:
            for layer in lora_layers(painter):
                layer.delete_adapter(adapter_name)
            del painter.peft_config[adapter_name]
            make_active(painter, active)
        elif not active:
            take_lora_out(painter)
        raise


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
