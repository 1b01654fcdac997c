# SPDX-License-Identifier: Apache-2.0
"""The code that travels with weights, so that a repository loads where this package isn't installed."""

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from .model.configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from .model.image_processing_pai_painter import PaiPainterImageProcessor
from .model.model_files_pai_painter import read_json_object
from .model.modeling_pai_painter import PaiPainterForImageGeneration
from .model.modeling_vqgan import PaiPainterVQModel
from .model.processing_pai_painter import PaiPainterProcessor
from .model.tokenization_pai_painter import PaiPainterTokenizer

Files = dict[str, Path | bytes]  # the name in the repository, and a file or its content

# Which classes answer to the Auto classes: by the file that says so, or by the model_type in config.json.
_CLASSES: dict[str, dict[str, type]] = {
    "pai_painter": {
        "AutoConfig": PaiPainterConfig,
        "AutoModel": PaiPainterForImageGeneration,
        "AutoModelForCausalLM": PaiPainterForImageGeneration,
    },
    "pai_painter_vqgan": {"AutoConfig": PaiPainterVQConfig, "AutoModel": PaiPainterVQModel},
    "processor_config.json": {"AutoProcessor": PaiPainterProcessor},
    "preprocessor_config.json": {"AutoImageProcessor": PaiPainterImageProcessor},
    "tokenizer_config.json": {"AutoTokenizer": PaiPainterTokenizer},
}


def with_remote_code(files: Files) -> Files:
    """
    Adds the modules that a painter, a VQGAN or a processor needs, and names their classes in the configurations'
    `auto_map`, as `save_pretrained` does after `register_for_auto_class`. An adapter needs none. A `ValueError` says
    that a configuration is damaged, or another kind of model's.
    """
    complete = dict(files)
    with tempfile.TemporaryDirectory() as code:
        for name in ("config.json", *_CLASSES):
            file = files.get(name)
            if not isinstance(file, Path):
                continue
            config = read_json_object(file, file.parent)
            kind = config.get("model_type") if name == "config.json" else name
            if kind not in ("pai_painter", "pai_painter_vqgan", name):
                raise ValueError(
                    f"The model_type in {file} must be 'pai_painter' or 'pai_painter_vqgan', got {kind!r} "
                    f"(`pai-painter convert` converts checkpoints of EasyNLP)."
                )
            _save_code(_CLASSES[kind], code, config)
            if isinstance(config.get("image_processor"), dict):
                _save_code(_CLASSES["preprocessor_config.json"], code, config["image_processor"])
            complete[name] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
            if kind in ("pai_painter", "processor_config.json"):
                # diffusers takes a second to import
                from .model.pipeline_loading_pai_painter import pipeline_files
                from .model.pipeline_pai_painter import PaiPainterPipeline

                saved = _save_code({"DiffusionPipeline": PaiPainterPipeline}, code, {})
                complete |= {name: text.encode() for name, text in pipeline_files(saved).items()}
        return complete | {file.name: file.read_bytes() for file in Path(code).iterdir()}


def _save_code(classes: dict[str, type], folder: str, config: dict[str, Any]) -> set[str]:
    """Copies the modules of classes and names them in a configuration; gives the names of all modules."""
    config["auto_map"], modules = {}, set()
    for auto_class, cls in classes.items():
        # transformers asks an object, but no more of it than this; to make a real one takes its weights.
        stand_in = type(cls.__name__, (), {"__module__": cls.__module__, "_auto_class": auto_class})()
        modules |= {path.stem for path in custom_object_save(stand_in, folder, config)}
    return modules
