# SPDX-License-Identifier: Apache-2.0
"""Drop-ins for EasyNLP: the blog post's `pipeline(...)`, and the published command line in the package's own words."""

from typing import Any

__all__ = ["TextImageGenerationPipeline", "pipeline"]


def __getattr__(name: str) -> Any:  # the command line is parsed without torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pipelines

    return getattr(pipelines, name)
