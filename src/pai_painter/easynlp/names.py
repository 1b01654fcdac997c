# SPDX-License-Identifier: Apache-2.0
"""The models that were published with EasyNLP, under the names that it knows them by."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OWNER", "PUBLISHED", "TASK", "explaining_missing_models", "hub_name", "is_out_of_reach"]

OWNER = "alibaba-pai"
PUBLISHED = (
    "pai-painter-base-zh",
    "pai-painter-large-zh",
    "pai-painter-commercial-base-zh",
    "pai-painter-scenery-base-zh",
    "pai-painter-painting-base-zh",
)
TASK = "text2image_generation"
_PATIENCE = 10.0  # seconds


def hub_name(name: str) -> str:
    """A published name with its owner on the Hub; any other name, and that of a folder, as it is."""
    return f"{OWNER}/{name}" if name in PUBLISHED and not os.path.isdir(name) else name


def is_out_of_reach(name: str) -> bool:
    """
    Whether only the cache can have a model. Asked once, since the Hub's client tries for minutes, file by file.

    Args:
        name: a folder, or from [`hub_name`].
    """
    if os.path.isdir(name):
        return False
    from httpx2 import TransportError  # of huggingface_hub's client
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except (TransportError, OfflineModeIsEnabled):
        return True
    except (HfHubHTTPError, ValueError):  # what is wrong with the name or the repository is told on loading
        return False
    return False


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
