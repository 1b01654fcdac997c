# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's names: of the published models, and of the sizes that its commands repeat although the model has them."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line is parsed without transformers
    from ..model.configuration_pai_painter import PaiPainterConfig

__all__ = ["PUBLISHED", "SIZES", "TASK", "check_sizes", "explaining_missing_models", "hub_name", "number_of_pictures"]

TASK = "text2image_generation"
PUBLISHED = (
    "pai-painter-base-zh",
    "pai-painter-large-zh",
    "pai-painter-commercial-base-zh",
    "pai-painter-scenery-base-zh",
    "pai-painter-painting-base-zh",
)
_OWNER = "alibaba-pai"
SIZES: "dict[str, Callable[[PaiPainterConfig], int]]" = {
    "size": lambda config: config.vq_config.resolution,  # type: ignore[union-attr]  # a PaiPainterVQConfig by now
    "text_len": lambda config: config.text_length,
    "img_len": lambda config: config.num_image_tokens,
    "sequence_length": lambda config: config.max_position_embeddings,
    "block_size": lambda config: config.max_position_embeddings,
    "img_vocab_size": lambda config: config.image_vocab_size,
    "text_vocab_size": lambda config: config.text_vocab_size,
    "vocab_size": lambda config: config.vocab_size,
    "n_layer": lambda config: config.num_hidden_layers,
    "n_head": lambda config: config.num_attention_heads,
    "n_embd": lambda config: config.hidden_size,
}


def hub_name(name: str) -> str:
    """A published name with its owner on the Hub; any other name, or a folder, as it is."""
    return f"{_OWNER}/{name}" if name in PUBLISHED and not os.path.isdir(name) else name


@contextmanager
def explaining_missing_models(name: str) -> Iterator[None]:
    """Says where else a published model (`name` is from [`hub_name`]) may come from, if it isn't there."""
    try:
        yield
    except OSError as error:
        if name.removeprefix(f"{_OWNER}/") not in PUBLISHED or os.path.isdir(name):
            raise
        raise OSError(
            f"The model {name} is not in the cache, and the Hub can't be reached or doesn't have it: please go online, "
            f"or run `pai-painter convert` on EasyNLP's folder or archive of it, and give the folder instead."
        ) from error


def check_sizes(model_name: str, config: "PaiPainterConfig", given: Mapping[str, Any]) -> None:
    """Refuses sizes by EasyNLP's names that aren't the model's; other names are passed over."""
    for name, size in SIZES.items():
        if name in given and str(given[name]) != str(size(config)):
            raise ValueError(
                f"{name}={given[name]} contradicts the model {model_name}, which has {size(config)}: please leave it "
                f"out, or take a model of that size."
            )


def number_of_pictures(given: Any) -> int:
    """`max_generated_num`, which EasyNLP takes as a number or as a string."""
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError(f"`max_generated_num` must be a whole number of at least 1, got {given!r}.")
    return int(given)
