# SPDX-License-Identifier: Apache-2.0
"""What a folder recommends for painting, checked on loading: transformers passes over a damaged file in silence."""

import os
from typing import Any

from transformers import GenerationConfig

from .configuration_pai_painter import PaiPainterConfig
from .model_files_pai_painter import find_model_file, read_json_object
from .sampling_pai_painter import check_sampling_options, complete_generation_config

__all__ = ["read_generation_config"]

_MOST_CANDIDATES = 1000  # of one picture, that a folder may recommend


def read_generation_config(
    name_or_path: str | os.PathLike, config: PaiPainterConfig, **hub_options: Any
) -> GenerationConfig | None:
    """
    What a folder or a Hub repository recommends, complete; `None` if it has no generation_config.json.

    Raises:
        ValueError: if the file is damaged, if a setting in it is out of range, or if it is for pictures of another
            size than the model's.
    """
    path = find_model_file(name_or_path, "generation_config.json", **hub_options)
    if path is None:
        return None
    found = read_json_object(path, name_or_path)
    try:
        settings = complete_generation_config(GenerationConfig.from_dict(found), config)
        check_sampling_options(settings.temperature, settings.top_k, settings.top_p, settings.best_of)
        if settings.best_of > _MOST_CANDIDATES:
            raise ValueError(f"`best_of` may be at most {_MOST_CANDIDATES}, got {settings.best_of}")
        lengths = {"max_length": config.max_position_embeddings, "max_new_tokens": config.num_image_tokens}
        for field, length in lengths.items():
            if getattr(settings, field) not in (None, length):
                raise ValueError(f"`{field}` must be {length}, a whole picture, got {getattr(settings, field)!r}")
    except (AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The generation_config.json of {os.fspath(name_or_path)} is no painter's: {reason}."
        ) from error
    return settings
