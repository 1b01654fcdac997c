# SPDX-License-Identifier: Apache-2.0
"""The sizes that EasyNLP's commands repeat, though the model has them already."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line is parsed without transformers
    from ..model.configuration_pai_painter import PaiPainterConfig

__all__ = ["SIZES", "check_sizes", "count_of_pictures"]

SIZES: "dict[str, Callable[[PaiPainterConfig], int]]" = {
    "size": lambda config: config.vq_config.resolution,  # type: ignore[union-attr]  # a PaiPainterVQConfig by now
    "text_len": lambda config: config.text_length,
    "img_len": lambda config: config.num_image_tokens,
    "sequence_length": lambda config: config.max_position_embeddings,
    "block_size": lambda config: config.max_position_embeddings,
    "img_vocab_size": lambda config: config.image_vocab_size,
    "text_vocab_size": lambda config: config.text_vocab_size,
    "vocab_size": lambda config: config.image_vocab_size + config.text_vocab_size,
    "n_layer": lambda config: config.num_hidden_layers,
    "n_head": lambda config: config.num_attention_heads,
    "n_embd": lambda config: config.hidden_size,
}


def check_sizes(model_name: str, config: "PaiPainterConfig", given: Mapping[str, str | int]) -> None:
    """
    Args:
        model_name: for the message.
        config: the model's.
        given: sizes by EasyNLP's names; other names are passed over.

    Raises:
        ValueError: if one of them isn't the model's.
    """
    for name, size in SIZES.items():
        if name in given and str(given[name]) != str(size(config)):
            raise ValueError(
                f"{name}={given[name]} contradicts the model {model_name}, which has {size(config)}: please leave it "
                f"out, or take a model of that size."
            )


def count_of_pictures(given: Any) -> int:
    """
    Args:
        given: `max_generated_num`, which EasyNLP takes as a number or as text.

    Raises:
        ValueError: if it is no count.
    """
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError(f"`max_generated_num` must be a whole number of at least 1, got {given!r}.")
    return int(given)
