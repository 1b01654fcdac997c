# SPDX-License-Identifier: Apache-2.0
"""The models that were published with EasyNLP, under the names that it knows them by."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OWNER", "PUBLISHED", "TASK", "explaining_missing_models", "hub_name"]

OWNER = "alibaba-pai"
PUBLISHED = (
    "pai-painter-base-zh",
    "pai-painter-large-zh",
    "pai-painter-commercial-base-zh",
    "pai-painter-scenery-base-zh",
    "pai-painter-painting-base-zh",
)
TASK = "text2image_generation"


def hub_name(name: str) -> str:
    """A published name with its owner on the Hub; any other name, and that of a folder, as it is."""
    return f"{OWNER}/{name}" if name in PUBLISHED and not os.path.isdir(name) else name


@contextmanager
def explaining_missing_models(name: str) -> Iterator[None]:
    """
    For the time in which a model is looked for.

    Args:
        name: from [`hub_name`].

    Raises:
        OSError: if it isn't there; for a published model the sentence says where else it may come from.
    """
    try:
        yield
    except OSError as error:
        if name not in [f"{OWNER}/{published}" for published in PUBLISHED] or os.path.isdir(name):
            raise
        raise OSError(
            f"The model {name} is not in the cache, and the Hub can't be reached or doesn't have it: please go online, "
            f"or get EasyNLP's folder or archive of it, `pai-painter convert` that, and give the folder instead of the "
            f"name."
        ) from error
