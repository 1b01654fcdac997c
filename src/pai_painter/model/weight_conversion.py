# SPDX-License-Identifier: Apache-2.0
"""
Reading weights: EasyNLP's parameter names are translated while loading, and weights that don't fit are an error.

EasyNLP keeps minGPT's and taming-transformers' names. The VQGAN's are kept here as well, without their prefix.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError
from transformers import PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from .model_files_pai_painter import (
    HUB_OPTIONS,
    find_model_file,
    find_weight_files,
    naming_damaged_weights,
    read_json_object,
    resolve_hub_options,
)

__all__ = [
    "StrictLoadingMixin",
    "build_without_memory",
    "check_finite",
    "register_easynlp_names",
]

# Options by which weights come from somewhere else than the usual files.
_ELSEWHERE = {"gguf_file", "state_dict", "transformers_weights"}
_FEW = 1_000_000  # numbers: so many more than there are take no memory worth a word of its own
_MAX_LISTED = 5


def register_easynlp_names() -> None:
    """Makes `from_pretrained` read EasyNLP's names, and `save_pretrained(save_original_format=True)` write them."""
    names = [
        ("transformer.tok_emb.", "model.embed_tokens."),
        ("transformer.pos_emb", "model.embed_positions"),
        ("transformer.blocks.", "model.layers."),
        ("transformer.ln_f.", "model.norm."),
        ("transformer.head.", "lm_head."),
        (".ln1.", ".ln_1."),
        (".ln2.", ".ln_2."),
        (".attn.query.", ".attn.q_proj."),
        (".attn.key.", ".attn.k_proj."),
        (".attn.value.", ".attn.v_proj."),
        (".attn.proj.", ".attn.out_proj."),
        (".mlp.0.", ".mlp.fc_1."),
        (".mlp.2.", ".mlp.fc_2."),
        ("first_stage_model.", "vqgan."),
    ]
    mapping = [WeightRenaming(theirs, ours) for theirs, ours in names]
    register_checkpoint_conversion_mapping("pai_painter", mapping, overwrite=True)
    register_checkpoint_conversion_mapping("pai_painter_vqgan", mapping[-1:], overwrite=True)


class StrictLoadingMixin:
    """`from_pretrained` that refuses weights which don't fit, and `save_pretrained` that writes native names."""

    _keys_to_ignore_on_load_unexpected: Any
    _own_parts: tuple[str, ...]  # first words of the names of weights that must be there; a subclass may add others

    def post_init(self) -> None:
        """
        As transformers' own, which also lets a whole ignore what its parts may ignore: a VQGAN loaded alone passes over
        the transformer's weights, but in a painter an unknown one among them is an error.
        """
        super().post_init()  # type: ignore[misc]
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected or [])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Loads a native or an EasyNLP folder, or a repository of the Hub; see transformers'
        [`~transformers.PreTrainedModel.from_pretrained`] for the options.

        What a subclass adds, such as another head, starts anew if the folder has no weights for it; so do, with
        `ignore_mismatched_sizes=True`, weights of another shape.

        Raises:
            OSError: if there is no such folder or repository, if its weights are missing or Git LFS pointers.
            ValueError: if the weights are damaged, hold NaN or infinity, or if one is missing, unexpected or of another
                shape, all of which are listed.
        """
        name = str(pretrained_model_name_or_path or "the state dict")
        if pretrained_model_name_or_path is not None:
            kwargs |= resolve_hub_options(name, **{key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()})
            if not _ELSEWHERE & kwargs.keys():
                _check_files(cls, name, args, kwargs)
        elif kwargs.get("state_dict") is not None:
            found = sum(weight.numel() for weight in kwargs["state_dict"].values())
            _check_size(cls, name, found, kwargs["config"], *args)
        wants_info = kwargs.pop("output_loading_info", False)
        may_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told by the error below
        with naming_damaged_weights(name):
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        own = tuple(f"{part}." for part in cls._own_parts)
        problems = [f"missing: {key}" for key in sorted(info["missing_keys"]) if f"{key}.".startswith(own)]
        problems += [f"unexpected: {key}" for key in sorted(info["unexpected_keys"])]
        problems += [
            f"mismatched: {key} is {tuple(found)}, must be {tuple(wanted)}"
            for key, found, wanted in sorted(info["mismatched_keys"])
            if not may_mismatch
        ]
        problems += [f"unreadable: {message}" for message in info["error_msgs"]]
        if problems:
            raise ValueError(
                f"The weights of {name} don't fit {cls.__name__} with its configuration; {len(problems)} don't: "
                f"{'; '.join(problems)}."
            )
        check_finite(model.state_dict(), name)
        return (model, info) if wants_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, save_original_format: bool = False, **kwargs: Any
    ) -> None:
        """
        Saves config and weights as safetensors; see transformers' [`~transformers.PreTrainedModel.save_pretrained`] for
        the other options. `save_original_format` writes EasyNLP's parameter names instead of the native ones, the
        default here.
        """
        if save_original_format:
            # transformers undoes the renamings of loading, of which there were none if the folder was a native one;
            # without a record of them it takes those that are registered.
            self._weight_conversions = None
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)  # type: ignore[misc]


def _check_files(cls: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Finds what is wrong with a folder before memory is taken; with the arguments of `from_pretrained`."""
    hub_options = {key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()}
    if find_model_file(name, "adapter_config.json", **hub_options) is not None:
        return  # whose base transformers loads instead
    config, fields = kwargs.get("config"), {}
    if config is None:
        path = find_model_file(name, "config.json", **hub_options)
        if path is not None:
            read_json_object(path, name)
        fields = {key: kwargs[key] for key in kwargs if hasattr(cls.config_class, key) or key == "vq_config"}
    if not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(config or name, **hub_options, **fields)
    files = find_weight_files(name, kwargs.get("variant"), kwargs.get("use_safetensors"), **hub_options)
    # Quantised, several weights may stand in one number; the option is there to have them another size.
    if hasattr(config, "quantization_config") or kwargs.get("ignore_mismatched_sizes"):
        return
    _check_size(cls, name, _count_numbers(files), config, *args)


def _check_size(cls: Any, name: str, found: int, *args: Any) -> None:
    model = build_without_memory(cls, name, *args)
    wanted = sum(weight.numel() for weight in model.state_dict().values())
    if wanted > 2 * found + _FEW:
        raise ValueError(
            f"The weights of {name} don't fit {cls.__name__} with its configuration, which describes {wanted:,} "
            f"numbers; they hold {found:,}."
        )


def build_without_memory(model_class: Any, name: str, *args: Any) -> Any:
    """`model_class(*args)` on PyTorch's device `meta`; `ValueError` if the sizes of `name` are beyond all bounds."""
    try:
        with torch.device("meta"):
            return model_class(*args)
    except (OverflowError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"The sizes in the config.json of {name} can't be built: {reason}.") from error


def _count_numbers(files: Iterable[str]) -> int:
    """How many numbers files of weights hold: exactly if they are whole safetensors, at most otherwise."""
    total = 0
    for file in files:
        try:
            total += sum(parse_local_safetensors_file_metadata(file).parameter_count.values())
        except SafetensorsParsingError:
            total += os.path.getsize(file)
    return total


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """
    Raises `ValueError` if there is NaN or infinity in the weights of the model or adapter `name`; quantised ones and
    those without memory are passed over.
    """
    spoilt = [key for key, weight in weights.items() if _is_plain(weight) and not _is_finite(weight.detach())]
    if spoilt:
        listed = ", ".join(spoilt[:_MAX_LISTED]) + (", …" if len(spoilt) > _MAX_LISTED else "")
        dtypes = ", ".join(sorted({str(weights[key].dtype).removeprefix("torch.") for key in spoilt}))
        raise ValueError(f"The weights of {name} hold NaN or infinity (in {dtypes}): {listed}.")


def _is_plain(weight: torch.Tensor) -> bool:
    known = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return known and weight.is_floating_point() and weight.itemsize > 1 and not weight.is_meta


def _is_finite(weight: torch.Tensor) -> bool:
    # A sum takes a tenth of the time, and is finite only if all of them are; but it may overflow by itself.
    return bool(weight.sum(dtype=torch.float32).isfinite()) or bool(weight.isfinite().all())
