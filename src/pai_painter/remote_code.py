# SPDX-License-Identifier: Apache-2.0
"""
The code that travels with weights, so that a repository loads where this package isn't installed.

transformers' `register_for_auto_class` and `save_pretrained` write the same files, but have to load the model first and
know one Auto class for each class.
"""

import json
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .model.configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from .model.image_processing_pai_painter import PaiPainterImageProcessor
from .model.model_files_pai_painter import read_json_object
from .model.modeling_pai_painter import PaiPainterForImageGeneration
from .model.modeling_vqgan import PaiPainterVQModel
from .model.processing_pai_painter import PaiPainterProcessor
from .model.tokenization_pai_painter import PaiPainterTokenizer

__all__ = ["Files", "with_remote_code"]

Files = dict[str, Path | bytes]  # the name in the repository, and a file or its content

_FOLDER = Path(__file__).parent / "model"
_PIPELINE = "pipeline_pai_painter"
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
    `auto_map`. An adapter needs none.

    Raises:
        ValueError: if a configuration is damaged, or belongs to another kind of model.
    """
    complete, modules = dict(files), set()
    for name in ("config.json", *_CLASSES):
        file = files.get(name)
        if not isinstance(file, Path):
            continue
        config = read_json_object(str(file), file.parent)
        kind = config.get("model_type") if name == "config.json" else name
        if not isinstance(kind, str) or kind not in _CLASSES:
            raise ValueError(
                f"The model_type in {file} must be 'pai_painter' or 'pai_painter_vqgan', got {kind!r} (`pai-painter "
                "convert` converts checkpoints of EasyNLP)."
            )
        config["auto_map"] = _auto_map(kind)
        if isinstance(config.get("image_processor"), dict):
            config["image_processor"]["auto_map"] = _auto_map("preprocessor_config.json")
        complete[name] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        modules |= {_module(cls) for cls in _CLASSES[kind].values()}
    from .model.pipeline_loading_pai_painter import pipeline_files  # diffusers, which takes a second to import

    is_painter = bool(modules & {"modeling_pai_painter", "processing_pai_painter"})
    sources = {_FOLDER / f"{module}.py" for module in modules | ({_PIPELINE} if is_painter else set())}
    sources |= {Path(imported) for source in sources for imported in get_relative_import_files(source)}
    for_diffusers = pipeline_files(source.stem for source in sources) if is_painter else {}
    complete |= {name: content.encode() for name, content in for_diffusers.items()}
    return complete | {source.name: source for source in sources}


def _module(cls: type) -> str:
    return cls.__module__.rpartition(".")[2]


def _auto_map(kind: str) -> dict[str, Any]:
    names = {auto_class: f"{_module(cls)}.{cls.__name__}" for auto_class, cls in _CLASSES[kind].items()}
    # A tokenizer has two: the second one would be written in Rust.
    return {auto: [name, None] if auto == "AutoTokenizer" else name for auto, name in names.items()}
