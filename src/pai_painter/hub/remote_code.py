# SPDX-License-Identifier: Apache-2.0
"""
The code that travels with a model, so that its repository works where this package isn't installed.

transformers follows the `auto_map` of a configuration to a flat file beside it, and from there `from .x import y` to
the next one. It asks its user for `trust_remote_code` before it runs any of it; where this package is installed it
takes the package's own classes and doesn't ask.
"""

import json
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from ..model.pipeline_files_pai_painter import pipeline_files

__all__ = ["CODE_FILES", "add_remote_code"]

_PACKAGE = Path(__file__).parent.parent / "model"


def _with_imports(module: str) -> frozenset[str]:
    """A module and all that it imports, as transformers will follow it."""
    file = _PACKAGE / f"{module}.py"
    return frozenset({module, *(Path(imported).stem for imported in get_relative_import_files(file))})


_IMAGE_PROCESSOR = _with_imports("image_processing_pai_painter")
_VQGAN = _with_imports("modeling_vqgan")
_PAINTER = _with_imports("pipeline_base_pai_painter")
_PIPELINE_FILES = {name: content.encode() for name, content in pipeline_files(_PAINTER).items()}

CODE_FILES = frozenset({f"{module}.py" for module in _PAINTER} | set(_PIPELINE_FILES))
"""Names of all files that [`add_remote_code`] adds."""

_MODEL_MAPS = {
    "pai_painter": {
        "AutoConfig": "configuration_pai_painter.PaiPainterConfig",
        "AutoModel": "modeling_pai_painter.PaiPainterForImageGeneration",
        "AutoModelForCausalLM": "modeling_pai_painter.PaiPainterForImageGeneration",
    },
    "pai_painter_vqgan": {
        "AutoConfig": "configuration_pai_painter.PaiPainterVQConfig",
        "AutoModel": "modeling_vqgan.PaiPainterVQModel",
    },
}
_PROCESSOR_MAP = {"AutoProcessor": "processing_pai_painter.PaiPainterProcessor"}
_TOKENIZER_MAP = {"AutoTokenizer": ["tokenization_pai_painter.PaiPainterTokenizer", None]}
_IMAGE_PROCESSOR_MAP = {"AutoImageProcessor": "image_processing_pai_painter.PaiPainterImageProcessor"}


def add_remote_code(files: dict[str, Path | bytes]) -> dict[str, Path | bytes]:
    """
    Adds the files of code that a painter, a VQGAN or a processor needs, and says in its configurations which class is
    where. The same files always give the same result, down to the byte.

    Args:
        files: what goes to the repository: its name there, and a file or its content. It is left as it is.

    Returns:
        the files with the code. An adapter's, which has no `config.json`, come back as they are.

    Raises:
        ValueError: if a configuration isn't valid JSON, or is of another model.
    """
    complete = dict(files)
    code: set[str] = set()
    model_type = None
    if "config.json" in files:
        config = _read(files, "config.json")
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type not in _MODEL_MAPS:
            raise ValueError(
                f"The model_type in config.json is {model_type!r}, but the code that goes along is for "
                f"{' and '.join(map(repr, _MODEL_MAPS))}."
            )
        complete["config.json"] = _mapped(config, _MODEL_MAPS[model_type])
    if "processor_config.json" in files:
        config = _read(files, "processor_config.json")
        if not isinstance(config.get("image_processor"), dict):
            raise ValueError("The processor_config.json is another model's: it has no image_processor.")
        config["image_processor"] = {**config["image_processor"], "auto_map": _IMAGE_PROCESSOR_MAP}
        complete["processor_config.json"] = _mapped(config, _PROCESSOR_MAP)
    if "tokenizer_config.json" in files:
        complete["tokenizer_config.json"] = _mapped(_read(files, "tokenizer_config.json"), _TOKENIZER_MAP)
    if "preprocessor_config.json" in files:
        config = _read(files, "preprocessor_config.json")
        complete["preprocessor_config.json"] = _mapped(config, _IMAGE_PROCESSOR_MAP)
        code |= _IMAGE_PROCESSOR
    if model_type == "pai_painter_vqgan":
        code |= _VQGAN
    # A painter's processor alone brings all of it, too: the files import each other and must be of one version.
    if model_type == "pai_painter" or "processor_config.json" in files:
        code |= _PAINTER
        complete |= _PIPELINE_FILES
    return complete | {f"{module}.py": _PACKAGE / f"{module}.py" for module in sorted(code)}


def _read(files: dict[str, Path | bytes], name: str) -> dict[str, Any]:
    content = files[name]
    try:
        config = json.loads(content if isinstance(content, bytes) else content.read_bytes())
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{name} must hold a JSON object, but it holds a {type(config).__name__}.")
    return config


def _mapped(config: dict[str, Any], auto_map: dict[str, Any]) -> bytes:
    """A configuration with its `auto_map`, written as transformers writes it."""
    return (json.dumps({**config, "auto_map": auto_map}, indent=2, sort_keys=True) + "\n").encode()
