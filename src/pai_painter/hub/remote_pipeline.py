# SPDX-License-Identifier: Apache-2.0
"""
What a repository needs for `DiffusionPipeline.from_pretrained` where this package isn't installed.

diffusers reads `model_index.json`, runs the class that it names in `pipeline.py`, and takes each component from a
folder of its own, by a class whose code stands in that folder. Here that class goes back to the root of the repository,
where the one copy of the weights is, which transformers reads as well.
"""

import json
from collections.abc import Iterable

__all__ = ["pipeline_files"]

_PIPELINE = '''# SPDX-License-Identifier: Apache-2.0
"""The way in for diffusers, which brings along the files that are named here and not those that they name in turn."""

{imports}

# What is saved from here takes the code along.
PaiPainterConfig.register_for_auto_class()
PaiPainterForImageGeneration.register_for_auto_class("AutoModel")
PaiPainterImageProcessor.register_for_auto_class()
PaiPainterProcessor.register_for_auto_class()
PaiPainterTokenizer.register_for_auto_class()
'''

_PAINTER = '''# SPDX-License-Identifier: Apache-2.0
"""The pipeline's painter: its files are at the root of the repository."""

import importlib
import os

import torch

# diffusers puts this file beside the model's own, but copies no file that it names.
_Painter = importlib.import_module(".modeling_pai_painter", __package__).PaiPainterForImageGeneration


class PainterAtRoot(_Painter):
    """Loads the painter from the folder above, in float32 unless another precision is asked for."""

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        kwargs["dtype"] = kwargs.get("dtype") or torch.float32
        return _Painter.from_pretrained(os.path.dirname(os.path.normpath(folder)), **kwargs)
'''

_PROCESSOR = '''# SPDX-License-Identifier: Apache-2.0
"""The pipeline's processor: its files are at the root of the repository."""

import importlib
import os

# diffusers puts this file beside the model's own, but copies no file that it names.
_Processor = importlib.import_module(".processing_pai_painter", __package__).PaiPainterProcessor


class ProcessorAtRoot(_Processor):
    """Loads the processor from the folder above."""

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        return _Processor.from_pretrained(os.path.dirname(os.path.normpath(folder)), **kwargs)
'''

_MODEL_INDEX = {
    "_class_name": ["pipeline", "PaiPainterBasePipeline"],
    "model": ["painter_at_root", "PainterAtRoot"],
    "processor": ["processor_at_root", "ProcessorAtRoot"],
}


def pipeline_files(modules: Iterable[str]) -> dict[str, bytes]:
    """
    The files that diffusers needs, beside the model's.

    Args:
        modules: names of the model's files of code, all of which diffusers is to bring along.

    Returns:
        the name in the repository, and the content.
    """
    imports = "\n".join(f"from .{module} import *" for module in sorted(modules))
    return {
        "model_index.json": (json.dumps(_MODEL_INDEX, indent=2) + "\n").encode(),
        "pipeline.py": _PIPELINE.format(imports=imports).encode(),
        "model/painter_at_root.py": _PAINTER.encode(),
        "processor/processor_at_root.py": _PROCESSOR.encode(),
    }
