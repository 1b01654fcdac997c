# SPDX-License-Identifier: Apache-2.0
"""
The two files by which `DiffusionPipeline.from_pretrained` finds the pipeline in a folder: `model_index.json` names the
class, `pipeline.py` has it. The weights are at the root of the folder, once, where transformers reads them as well.
"""

import json
from collections.abc import Iterable

__all__ = ["pipeline_files"]

# diffusers accepts only names of libraries that it knows; the pipeline itself says which classes its components are.
_MODEL_INDEX = {
    "_class_name": ["pipeline", "PaiPainterPipeline"],
    "model": ["transformers", "AutoModel"],
    "processor": ["transformers", "AutoProcessor"],
}

# The package is imported by a call: diffusers and transformers take each line that looks like an import for one that is
# needed, in this file, too.
_OF_THE_PACKAGE = '''# SPDX-License-Identifier: Apache-2.0
"""The pipeline for diffusers, which runs this file if it may (`trust_remote_code`)."""

import importlib

PaiPainterPipeline = importlib.import_module("pai_painter").PaiPainterPipeline
'''

_WITH_ITS_CODE = '''# SPDX-License-Identifier: Apache-2.0
"""The pipeline for diffusers, which runs this file if it may (`trust_remote_code`)."""

import importlib

try:
    PaiPainterPipeline = importlib.import_module("pai_painter").PaiPainterPipeline
except ImportError:
    # All files are named here: diffusers copies the files that this one names, but not those that they name in turn.
{imports}

    PaiPainterPipeline = PaiPainterBasePipeline
    del PaiPainterBasePipeline, SavingPipeline  # `custom_pipeline` takes the only pipeline that there is

    # What is saved from here takes the code along.
    PaiPainterConfig.register_for_auto_class()
    PaiPainterForImageGeneration.register_for_auto_class("AutoModel")
    PaiPainterImageProcessor.register_for_auto_class()
    PaiPainterProcessor.register_for_auto_class()
    PaiPainterTokenizer.register_for_auto_class()
'''


def pipeline_files(modules: Iterable[str] = ()) -> dict[str, str]:
    """
    The files that diffusers needs beside the model's.

    Args:
        modules: names of the model's files of code that are in the folder as well; the package's classes are used where
            it is installed. Without them `pipeline.py` needs the package.

    Returns:
        the name in the folder, and the content.
    """
    imports = "\n".join(f"    from .{module} import *" for module in sorted(modules))
    return {
        "model_index.json": json.dumps(_MODEL_INDEX, indent=2) + "\n",
        "pipeline.py": _WITH_ITS_CODE.format(imports=imports) if imports else _OF_THE_PACKAGE,
    }
