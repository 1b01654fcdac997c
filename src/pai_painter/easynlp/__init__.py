# SPDX-License-Identifier: Apache-2.0
"""Drop-ins for EasyNLP: the blog post's `pipeline(...)`, and the published command line in the package's own words."""

from .pipelines import TextImageGenerationPipeline, pipeline

__all__ = ["TextImageGenerationPipeline", "pipeline"]
