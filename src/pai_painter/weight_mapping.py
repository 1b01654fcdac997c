# SPDX-License-Identifier: Apache-2.0
"""
Reading weights: EasyNLP's parameter names are translated while loading, and weights that don't fit are an error.

EasyNLP keeps minGPT's and taming-transformers' names. The codec's are kept here as well, without their prefix.
"""

import os
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

__all__ = ["StrictLoadingMixin", "register_easynlp_names"]


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
        As transformers' own, which also lets a whole ignore what its parts may ignore: a codec loaded alone passes over
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
            ValueError: if a weight is missing, unexpected or of another shape; all of them are listed.
        """
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
            f"ill-shaped: {name} is {tuple(found)}, must be {tuple(wanted)}"
            for name, found, wanted in sorted(info["mismatched_keys"])
            if not may_mismatch
        ]
        problems += [f"unreadable: {message}" for message in info["error_msgs"]]
        if problems:
            raise ValueError(
                f"The weights of {pretrained_model_name_or_path} don't fit {cls.__name__} with its configuration; "
                f"{len(problems)} don't: {'; '.join(problems)}."
            )
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
