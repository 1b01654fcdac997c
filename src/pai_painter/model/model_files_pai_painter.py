# SPDX-License-Identifier: Apache-2.0
"""
What a model's folder or Hub repository holds, found out before the libraries read it.

transformers asks the Hub for each file anew, passes over a damaged generation_config.json in silence, and answers odd
JSON with a `TypeError`. What is checked here ends in one sentence that names the file.
"""

import errno
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RevisionResolutionError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the client's, whatever its version
from safetensors import SafetensorError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig

__all__ = [
    "DEMO_NAME",
    "HUB_OPTIONS",
    "AdapterFolder",
    "PainterFolder",
    "find_model_file",
    "find_weight_files",
    "naming_damaged_weights",
    "portable_base_name",
    "read_adapter_folder",
    "read_json_object",
    "read_painter_folder",
    "refuse_git_lfs_pointer",
    "resolve_hub_options",
]

logger = logging.getLogger(__name__)

# Where to load from, as everywhere in transformers.
HUB_OPTIONS = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
)
# The package's own model as an adapter's base: its path is different on each machine.
DEMO_NAME = "pai_painter.DEMO_MODEL"
_DEMO_FOLDER = Path(__file__).parent.parent / "demo_model"
_PATIENCE = 10.0  # seconds that the Hub has for its first answer
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class AdapterFolder:
    """What an adapter's folder or repository holds."""

    name: str
    settings: dict[str, Any]  # its adapter_config.json
    weights: str  # the local path of its adapter_model.safetensors
    hub_options: dict[str, Any] = field(default_factory=dict)  # with which its other files are found

    def base(self) -> tuple[str, str | None]:
        """The model under it, a folder or a repository, and that one's revision; a `ValueError` if nothing says so."""
        name, revision = self.settings.get("base_model_name_or_path"), self.settings.get("revision")
        if not name or not isinstance(name, str) or not isinstance(revision, str | None):
            raise ValueError(
                f"The adapter {self.name} doesn't say on which model it was trained: please pass that model as `base`."
            )
        return (str(_DEMO_FOLDER) if name == DEMO_NAME else name), revision


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
        hub_options: some of `HUB_OPTIONS`.

    Raises:
        OSError: if there is no such folder or repository, or if a file or an adapter's base is missing.
        ValueError: if it isn't a painter's or an adapter's, or both.
    """
    name = os.fspath(name_or_path)
    hub_options = resolve_hub_options(name, **hub_options)
    adapter = read_adapter_folder(name, **hub_options)
    if adapter is None:
        if base is not None:
            raise ValueError(f"{name} is a whole model and has no base: please leave `base` out.")
        return _read_whole_painter(name, vq_config, hub_options)
    where, revision = adapter.base() if base is None else (os.fspath(base), None)
    try:
        folder = _read_whole_painter(where, vq_config, {**hub_options, "revision": revision, "subfolder": ""})
    except OSError as error:
        if base is not None:
            raise
        raise OSError(
            f"The adapter {adapter.name} was trained on {where}, which can't be found; please pass the model that it "
            f"was trained on as `base` ({str(error).rstrip('.')})."
        ) from error
    return replace(folder, adapter=adapter)


def _read_whole_painter(
    name: str, vq_config: PaiPainterVQConfig | dict | None, hub_options: dict[str, Any]
) -> PainterFolder:
    hub_options = resolve_hub_options(name, **hub_options)
    config_file = find_model_file(name, "config.json", **hub_options)
    if config_file is None:
        where = " (as far as it is in the cache)" if hub_options.get("local_files_only") else ""
        raise OSError(f"{name}{where} contains no painter: it has no config.json.")
    fields = read_json_object(config_file, name)
    model_type = fields.get("model_type")
    if model_type not in ("artist", PaiPainterConfig.model_type):
        raise ValueError(
            f"{name} contains no painter: the model_type in its config.json is {model_type!r}, but must be "
            f"{PaiPainterConfig.model_type!r}, or 'artist' for a checkpoint of EasyNLP."
        )
    if model_type != "artist" and vq_config is not None:
        raise ValueError(f"{name} already defines its VQGAN; `vq_config` is for EasyNLP's checkpoints only.")
    try:
        config = PaiPainterConfig.from_dict(fields, **({"vq_config": vq_config} if model_type == "artist" else {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"The config.json of {name} isn't a painter's: {str(error).rstrip('.')}.") from error
    return PainterFolder(name, config, "EasyNLP" if model_type == "artist" else "native", hub_options)


def read_adapter_folder(name_or_path: str | os.PathLike, **hub_options: Any) -> AdapterFolder | None:
    """Reads the settings of a LoRA adapter, or gives `None` if there is none; see [`read_painter_folder`]."""
    name = os.fspath(name_or_path)
    hub_options = resolve_hub_options(name, **hub_options)
    settings_file = find_model_file(name, "adapter_config.json", **hub_options)
    if settings_file is None:
        return None
    if find_model_file(name, "config.json", **hub_options) is not None:
        raise ValueError(
            f"{name} holds a whole model (config.json) and an adapter (adapter_config.json): please keep them in "
            f"different folders."
        )
    settings = read_json_object(settings_file, name)
    weights = find_model_file(name, "adapter_model.safetensors", **hub_options)
    if weights is None:
        raise OSError(f"The adapter {name} has no weights (adapter_model.safetensors).")
    refuse_git_lfs_pointer(weights)
    return AdapterFolder(name, settings, weights, hub_options)


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


class _PatientApi(HfApi):
    """The Hub's client, which notes whether the Hub has answered, if it was asked."""

    answered = True

    def repo_info(self, *args: Any, **kwargs: Any) -> Any:
        self.answered = False
        info = super().repo_info(*args, **kwargs, timeout=_PATIENCE)
        self.answered = True
        return info


def resolve_hub_options(name_or_path: str | os.PathLike, **hub_options: Any) -> dict[str, Any]:
    """
    The options with which all files of one model are loaded: the Hub is asked once which commit the revision is. If it
    can't be reached, only the cache is used, rather than after the client's retries for each file that isn't in it.

    For a folder nothing changes. An `OSError` says that there is no such repository, or that the Hub can't be reached
    and it isn't in the cache.
    """
    name = os.fspath(name_or_path)
    if os.path.isdir(name):
        return hub_options
    if os.path.isfile(name) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise OSError(f"{name} is neither a local folder nor the name of a Hub repository (owner/name).")
    api, options = _PatientApi(), {key: hub_options.get(key) for key in ("revision", "cache_dir", "token")}
    local_only = bool(hub_options.get("local_files_only"))
    try:
        commit = api.resolve_revision(name, **options, local_files_only=local_only).resolved
    except (httpx.HTTPError, RevisionResolutionError, ValueError) as error:  # the last if HF_ENDPOINT is no Hub's
        reason = " ".join(str(error).split()).rstrip(".")
        raise OSError(
            f"{name} is neither a local folder nor available on the Hub ({constants.ENDPOINT}): {reason}."
        ) from error
    if not api.answered and not constants.HF_HUB_OFFLINE:
        logger.warning("The Hub (%s) can't be reached; %s is taken from the cache.", constants.ENDPOINT, name)
    return {**hub_options, "revision": commit, "local_files_only": local_only or not api.answered}


def find_model_file(name_or_path: str | os.PathLike, filename: str, **hub_options: Any) -> str | None:
    """The local path of a file of a folder or a Hub repository, or `None`; see [`resolve_hub_options`]."""
    hub_options = resolve_hub_options(name_or_path, **hub_options)
    return cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False, **hub_options)


def find_weight_files(
    name_or_path: str | os.PathLike,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **hub_options: Any,
) -> list[str]:
    """
    The local paths of a model's weights, one or several, as `from_pretrained` looks for them with these options. An
    `OSError` says that one is missing or a Git LFS pointer, a `ValueError` that the index of them is damaged.
    """
    names = [] if use_safetensors is False else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    names += [] if use_safetensors else [WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    if variant is not None:
        names = [f".{variant}.".join(name.split(".", 1)) for name in names]
    for name in names:
        path = find_model_file(name_or_path, name, **hub_options)
        if path is not None:
            files = _shards(path, os.fspath(name_or_path), hub_options) if name.endswith(".json") else [path]
            for file in files:
                refuse_git_lfs_pointer(file)
            return files
    where = " in the cache" if hub_options.get("local_files_only") else ""
    raise OSError(f"{os.fspath(name_or_path)} has no weights{where}: there is none of {', '.join(names)}.")


def _shards(index_file: str, name: str, hub_options: dict[str, Any]) -> list[str]:
    index, index_name = read_json_object(index_file, name), os.path.basename(index_file)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(index.get("metadata"), dict):
        raise ValueError(f"The {index_name} of {name} is damaged: it needs the objects `metadata` and `weight_map`.")
    for file in places.values():
        if not isinstance(file, str) or not file or os.path.basename(file) != file:
            raise ValueError(f"The {index_name} of {name} is damaged: {file!r} isn't the name of a file next to it.")
    files, _ = get_checkpoint_shard_files(name, index_file, **hub_options)
    for file in files:
        if not os.path.isfile(file):
            raise OSError(f"{name} lacks {os.path.basename(file)}, according to its {index_name}.")
    return files


def refuse_git_lfs_pointer(path: str | os.PathLike) -> None:
    """Raises `OSError` if a file was never fetched: Git puts a few lines there instead of a large file."""
    with open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            folder = os.path.dirname(os.path.abspath(path))
            raise OSError(f"{path} is a Git LFS pointer, not the file itself: please run `git lfs pull` in {folder}.")


def read_json_object(path: str | os.PathLike, name_or_path: str | os.PathLike) -> dict[str, Any]:
    """Reads one of a model's JSON files; a `ValueError` that names it and the model if it is damaged or no object."""
    refuse_git_lfs_pointer(path)
    file = f"The {os.path.basename(path)} of {os.fspath(name_or_path)}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, but holds {json.dumps(content)[:40]}.")
    return content


@contextmanager
def naming_damaged_weights(name: str) -> Iterator[None]:
    """While weights are read: `ValueError` if a file of them is damaged or was cut off."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # what mapping a cut file into memory gives
            raise
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        reason = str(error).split(". ")[0].rstrip(".")
        raise ValueError(f"The weights of {name} are damaged or truncated ({reason}).") from error
