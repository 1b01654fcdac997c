# SPDX-License-Identifier: Apache-2.0
"""
pai-painter: pictures from Chinese sentences, with PAI-Painter's models in the Hugging Face world.

Importing it registers the models with transformers' Auto classes. The pipeline, and diffusers with it, is loaded when
it is first used.
"""

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model.auto_classes import register_auto_classes
from .model.configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from .model.image_processing_pai_painter import PaiPainterImageProcessor
from .model.modeling_pai_painter import PaiPainterForImageGeneration, PaiPainterModel
from .model.modeling_vqgan import PaiPainterVQModel
from .model.processing_pai_painter import PaiPainterProcessor
from .model.tokenization_pai_painter import PaiPainterTokenizer

if TYPE_CHECKING:
    from .model.pipeline_pai_painter import PaiPainterPipeline

__version__ = version("pai-painter")
__all__ = [
    "DEMO_MODEL",
    "PaiPainterConfig",
    "PaiPainterForImageGeneration",
    "PaiPainterImageProcessor",
    "PaiPainterModel",
    "PaiPainterPipeline",
    "PaiPainterProcessor",
    "PaiPainterTokenizer",
    "PaiPainterVQConfig",
    "PaiPainterVQModel",
]

DEMO_MODEL = str(Path(__file__).parent / "demo_model")
"""Folder of the small model that ships with the package: a memory of some thousand emoji."""

register_auto_classes()


def __getattr__(name: str) -> Any:
    if name == "PaiPainterPipeline":
        return importlib.import_module(".model.pipeline_pai_painter", __name__).PaiPainterPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
