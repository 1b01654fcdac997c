# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's names: of the published models, and of the sizes that its commands repeat although the model has them."""

import difflib
import os
from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import Any

TASK = "text2image_generation"
PUBLISHED = tuple(
    f"pai-painter-{kind}-zh" for kind in ("base", "large", "commercial-base", "scenery-base", "painting-base")
)
_OWNER = "alibaba-pai"
SIZES = {  # what they are in the model's configuration
    "size": "vq_config.resolution",
    "text_len": "text_length",
    "img_len": "num_image_tokens",
    "sequence_length": "max_position_embeddings",
    "block_size": "max_position_embeddings",
    "img_vocab_size": "image_vocab_size",
    "text_vocab_size": "text_vocab_size",
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
}


def checked_model(name: str, given: Mapping[str, Any]) -> str:
    """The name that loads a model (a published one gets its owner), if the sizes in `given` are the model's."""
    from ..model.model_files_pai_painter import read_painter_folder

    published = name.removeprefix(f"{_OWNER}/") in PUBLISHED and not os.path.isdir(name)
    name = f"{_OWNER}/{name}" if published and "/" not in name else name
    try:
        config = read_painter_folder(name).config
    except OSError as error:
        if not published:
            raise
        raise OSError(
            f"The model {name} is not in the cache, and the Hub can't be reached or doesn't have it: please go online, "
            f"or run `pai-painter convert` on EasyNLP's archive of it and give that folder instead."
        ) from error
    for size, field in SIZES.items():
        actual = attrgetter(field)(config)
        if str(given.get(size, actual)) != str(actual):
            told = f"{size}={given[size]} contradicts the model {name}, which has {actual}"
            raise ValueError(f"{told}: please leave it out, or take a model of that size.")
    return name


def number_of_pictures(given: Any) -> int:
    """`max_generated_num`, which EasyNLP takes as a number or as a string."""
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError(f"`max_generated_num` must be a whole number of at least 1, got {given!r}.")
    return int(given)


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name."""
    similar = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean `{similar[0]}`?" if similar else f"there are {', '.join(sorted(known))}."
