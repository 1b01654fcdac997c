# SPDX-License-Identifier: Apache-2.0
"""What a folder or a Hub repository holds, found out before its weights are read."""

import errno
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the client's, whatever its version
from safetensors import SafetensorError

from .configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig
from .model_files_pai_painter import (
    find_model_file,
    read_json_object,
    refuse_git_lfs_pointer,
    resolve_hub_options,
)
from .processing_pai_painter import PaiPainterProcessor

__all__ = [
    "DEMO_NAME",
    "AdapterFolder",
    "PainterFolder",
    "find_file",
    "load_processor",
    "naming_damaged_weights",
    "portable_base_name",
    "read_adapter_folder",
    "read_painter_folder",
]

# The package's own model as an adapter's base: its path is different on each machine.
DEMO_NAME = "pai_painter.DEMO_MODEL"
_DEMO_FOLDER = Path(__file__).parent.parent / "demo_model"

_BESIDE_LORA = ("bias", "modules_to_save", "target_parameters", "trainable_token_indices")


@dataclass(frozen=True)
class AdapterFolder:
    """What an adapter's folder or repository holds."""

    name: str
    settings: dict[str, Any]  # its adapter_config.json
    weights: str  # the local path of its adapter_model.safetensors
    base: str  # folder or repository of the model under it
    base_revision: str
    hub_options: dict[str, Any] = field(default_factory=dict)  # with which its other files are found


@dataclass(frozen=True)
class PainterFolder:
    """What a painter's folder or repository holds; for an adapter's, what its base's holds, and the adapter."""

    name: str
    config: PaiPainterConfig
    layout: Literal["native", "EasyNLP"]
    hub_options: dict[str, Any] = field(default_factory=dict)  # with which its other files are found
    adapter: AdapterFolder | None = None

    @property
    def vq_config(self) -> PaiPainterVQConfig:
        """The VQGAN's configuration."""
        return cast(PaiPainterVQConfig, self.config.vq_config)


def read_painter_folder(
    name_or_path: str | os.PathLike,
    vq_config: PaiPainterVQConfig | dict | None = None,
    base: str | os.PathLike | None = None,
    **hub_options: Any,
) -> PainterFolder:
    """
    Reads the configuration of a painter, in the native layout or in EasyNLP's, or of the painter under an adapter.

    Args:
        name_or_path: a folder, or the name (`owner/name`) of a Hub repository.
        vq_config: the VQGAN's configuration, for an EasyNLP folder whose VQGAN isn't VQGAN f16_16384.
        base: for an adapter's folder, the model under it, if it isn't where the adapter says.
        hub_options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        OSError: if there is no such folder or repository, if it has no config.json, or if an adapter's base is missing.
        ValueError: if its config.json isn't a painter's.
    """
    name = os.fspath(name_or_path)
    hub_options = _resolved(name, hub_options)
    adapter = read_adapter_folder(name, base, **hub_options)
    if adapter is None:
        if base is not None:
            raise ValueError(f"{name} is a whole model and has no base: please leave `base` out.")
        return _read_whole_painter(name, vq_config, **hub_options)
    hub_options = {name: value for name, value in hub_options.items() if name != "subfolder"}
    try:
        base_options = _resolved(adapter.base, {**hub_options, "revision": adapter.base_revision})
        folder = _read_whole_painter(adapter.base, vq_config, **base_options)
    except OSError as error:
        if base is not None:
            raise
        raise OSError(
            f"The adapter {name} was trained on {adapter.base}, which isn't there; please pass the model that it was "
            f"trained on as `base` ({str(error).rstrip('.')})."
        ) from error
    return replace(folder, adapter=adapter)


def _read_whole_painter(name: str, vq_config: PaiPainterVQConfig | dict | None, **hub_options: Any) -> PainterFolder:
    config_file = find_file(name, "config.json", **hub_options)
    if config_file is None:
        where = " (as far as it is in the cache)" if hub_options.get("local_files_only") else ""
        raise OSError(f"{name}{where} holds no painter: it has no config.json.")
    config_dict = read_json_object(config_file, name)
    model_type = config_dict.get("model_type")
    if model_type == "artist":
        config = PaiPainterConfig.from_dict(config_dict, vq_config=vq_config)
        return PainterFolder(name, config, "EasyNLP", hub_options)
    if model_type != PaiPainterConfig.model_type:
        raise ValueError(
            f"{name} holds no painter: the model_type in its config.json is {model_type!r}, but must be "
            f"{PaiPainterConfig.model_type!r}, or 'artist' for a checkpoint of EasyNLP."
        )
    if vq_config is not None:
        raise ValueError(f"{name} says itself what its VQGAN is; `vq_config` is for EasyNLP's checkpoints only.")
    try:
        config = PaiPainterConfig.from_dict(config_dict)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The config.json of {name} is no painter's: {str(error).rstrip('.')}.") from error
    return PainterFolder(name, config, "native", hub_options)


def read_adapter_folder(
    name_or_path: str | os.PathLike, base: str | os.PathLike | None = None, **hub_options: Any
) -> AdapterFolder | None:
    """
    Reads the settings of a LoRA adapter, or gives `None` if the folder holds none.

    Args:
        name_or_path: a folder or a Hub repository.
        base: the model under it, if it isn't where the adapter says.
        hub_options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        OSError: if there is no such folder or repository, or if the adapter's weights are missing in it.
        ValueError: if the settings are damaged, if they are of another method than LoRA or name no base, or if the
            folder holds a whole model as well.
    """
    name = os.fspath(name_or_path)
    hub_options = _resolved(name, hub_options)
    settings_file = find_file(name, "adapter_config.json", **hub_options)
    if settings_file is None:
        return None
    if find_file(name, "config.json", **hub_options) is not None:
        raise ValueError(
            f"{name} holds a whole model (config.json) and an adapter (adapter_config.json): which of them is meant? "
            f"Please keep them in different folders."
        )
    settings = read_json_object(settings_file, name)
    method = settings.get("peft_type")
    if method != "LORA":
        raise ValueError(f"The adapter {name} must be a LoRA, but the peft_type in its settings is {method!r}.")
    besides = [field for field in _BESIDE_LORA if settings.get(field) not in (None, "none", [], {})]
    if besides:
        raise ValueError(
            f"The adapter {name} changes more than LoRA's matrices, which can't be merged: `{besides[0]}`."
        )
    weights = find_file(name, "adapter_model.safetensors", **hub_options)
    if weights is None:
        raise OSError(f"The adapter {name} has no weights (adapter_model.safetensors).")
    refuse_git_lfs_pointer(weights)
    if base is not None:
        return AdapterFolder(name, settings, weights, os.fspath(base), "main", hub_options)
    recorded, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not recorded or not isinstance(recorded, str) or not isinstance(revision, str | None):
        raise ValueError(
            f"The adapter {name} doesn't say on which model it was trained: please pass that model as `base`."
        )
    where = str(_DEMO_FOLDER) if recorded == DEMO_NAME else recorded
    return AdapterFolder(name, settings, weights, where, revision or "main", hub_options)


def portable_base_name(name_or_path: str) -> str:
    """
    The name under which an adapter finds its base again: a repository's, the demo model's, which is on every machine,
    or a folder's absolute path, since `models/base` would read like a repository elsewhere.
    """
    if not os.path.isdir(name_or_path):
        return name_or_path
    if _DEMO_FOLDER.is_dir() and os.path.samefile(name_or_path, _DEMO_FOLDER):
        return DEMO_NAME
    return os.path.abspath(name_or_path)


def find_file(name_or_path: str, filename: str, **hub_options: Any) -> str | None:
    """
    The local path of a file of a folder or a Hub repository, or `None` if that has no such file.

    Raises:
        OSError: if there is no such folder or repository.
    """
    hub_options = _resolved(name_or_path, hub_options)
    try:
        return find_model_file(name_or_path, filename, **hub_options)
    except (OSError, httpx.HTTPError) as error:  # the latter if HF_ENDPOINT is no address
        reason = str(error).split("\n")[0].rstrip(".")
        raise OSError(f"There is no folder {name_or_path}, and the Hub does not give it either: {reason}.") from error


def _resolved(name_or_path: str, hub_options: dict[str, Any]) -> dict[str, Any]:
    if not os.path.isdir(name_or_path):
        _check_repository_name(name_or_path)
    return resolve_hub_options(name_or_path, **hub_options)


def _check_repository_name(name: str) -> None:
    """Answers at once what can only be a path, rather than after the Hub client's retries."""
    if os.path.exists(name):
        raise OSError(f"{name} is a file, but a model is a folder (or the name of a Hub repository, owner/name).")
    owner, _, repository = name.partition("/")
    if not owner or not repository or owner[0] in ".~" or "/" in repository or "\\" in name:
        raise OSError(f"There is no folder {name}, and it is no name of a Hub repository (owner/name) either.")


def load_processor(folder: PainterFolder) -> PaiPainterProcessor:
    """
    The processor of a painter, or of an adapter's base.

    Raises:
        OSError: if it isn't there.
        ValueError: if it is damaged or of another model.
    """
    sizes: dict[str, int] = {}
    if folder.layout == "EasyNLP":  # whose files say nothing of them
        sizes = {"text_length": folder.config.text_length, "size": folder.vq_config.resolution}
    processor = PaiPainterProcessor.from_pretrained(folder.name, **sizes, **folder.hub_options)
    processor.check_model(folder.config)
    return processor


@contextmanager
def naming_damaged_weights(name: str) -> Iterator[None]:
    """
    For the time in which weights are read.

    Raises:
        ValueError: if a file of weights is damaged or was cut off.
    """
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what mapping a cut file into memory gives
            raise
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        reason = str(error).split(". ")[0].rstrip(".")
        raise ValueError(f"The weights of {name} are damaged or cut off ({reason}).") from error
