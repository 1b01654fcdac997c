# SPDX-License-Identifier: Apache-2.0
"""
Reading weights: EasyNLP's parameter names are translated while loading, and weights that don't fit are an error.

EasyNLP keeps minGPT's and taming-transformers' names. The VQGAN's are kept here as well, without their prefix.
"""

import os
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from .model_files_pai_painter import (
    HUB_OPTIONS,
    build_without_memory,
    check_finite,
    count_numbers,
    find_model_file,
    find_weight_files,
    read_json_object,
    resolve_hub_options,
)

__all__ = ["StrictLoadingMixin", "register_easynlp_names"]

# Options by which weights come from somewhere else than the usual files.
_ELSEWHERE = {"gguf_file", "state_dict", "transformers_weights"}
_FEW = 1_000_000  # numbers: so many more than there are take no memory worth a word of its own


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
    register_checkpoint_conversion_mapping(
        "pai_painter_vqgan", [WeightRenaming("first_stage_model.", "vqgan.")], overwrite=True
    )


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
            ValueError: if a weight is missing, unexpected or of another shape, all of which are listed; or if it
                holds NaN or infinity.
        """
        if pretrained_model_name_or_path is not None:
            hub_options = {key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()}
            kwargs |= resolve_hub_options(pretrained_model_name_or_path, **hub_options)
            if not os.path.isfile(pretrained_model_name_or_path) and not _ELSEWHERE & kwargs.keys():
                _check_files(cls, pretrained_model_name_or_path, args, kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        may_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        own = tuple(f"{part}." for part in cls._own_parts)
        added = [name for name in info["missing_keys"] if not f"{name}.".startswith(own)]
        problems = [f"missing: {name}" for name in sorted(set(info["missing_keys"]) - set(added))]
        problems += [f"unexpected: {name}" for name in sorted(info["unexpected_keys"])]
        problems += [
            f"mismatched: {name} is {tuple(found)}, must be {tuple(wanted)}"
            for name, found, wanted in sorted(info["mismatched_keys"])
            if not may_mismatch
        ]
        problems += [f"unreadable: {message}" for message in info["error_msgs"]]
        if problems:
            raise ValueError(
                f"The weights of {pretrained_model_name_or_path} don't fit {cls.__name__} with its configuration; "
                f"{len(problems)} don't: {'; '.join(problems)}."
            )
        check_finite(model.state_dict(), str(pretrained_model_name_or_path))
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Saves config and weights as safetensors; see transformers' [`~transformers.PreTrainedModel.save_pretrained`].

        Args:
            save_directory: the folder.
            save_original_format: write EasyNLP's parameter names instead of the native ones, the default here.
            is_main_process, state_dict, push_to_hub, max_shard_size, variant, token, save_peft_format, kwargs: as
                there.
        """
        if save_original_format:
            # transformers undoes the renamings of loading, of which there were none if the folder was a native one;
            # without a record of them it takes those that are registered.
            self._weight_conversions = None
        super().save_pretrained(  # type: ignore[misc]
            save_directory,
            is_main_process,
            state_dict,
            push_to_hub,
            max_shard_size,
            variant,
            token,
            save_peft_format,
            save_original_format,
            **kwargs,
        )


def _check_files(cls: Any, name_or_path: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Finds what is wrong with a folder before memory is taken; with the arguments of `from_pretrained`."""
    hub_options = {key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()}
    if find_model_file(name_or_path, "adapter_config.json", **hub_options) is not None:
        return  # whose base transformers loads instead
    config, fields = kwargs.get("config"), {}
    if config is None:
        path = find_model_file(name_or_path, "config.json", **hub_options)
        if path is not None:
            read_json_object(path, name_or_path)
        fields = {key: kwargs[key] for key in kwargs if hasattr(cls.config_class, key) or key == "vq_config"}
    if not isinstance(config, PreTrainedConfig):
        config = cls.config_class.from_pretrained(config or name_or_path, **hub_options, **fields)
    files = find_weight_files(name_or_path, kwargs.get("variant"), kwargs.get("use_safetensors"), **hub_options)
    # Quantised, several weights may stand in one number; the option is there to have them another size.
    if hasattr(config, "quantization_config") or kwargs.get("ignore_mismatched_sizes"):
        return
    model = build_without_memory(cls, str(name_or_path), config, *args)
    wanted, found = sum(weight.numel() for weight in model.state_dict().values()), count_numbers(files)
    if wanted > 2 * found + _FEW:
        raise ValueError(
            f"The weights of {name_or_path} don't fit {cls.__name__} with its configuration, which describes "
            f"{wanted:,} numbers; they hold {found:,}."
        )
