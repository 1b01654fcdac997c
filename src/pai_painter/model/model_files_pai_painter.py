# SPDX-License-Identifier: Apache-2.0
"""
The files of a model, in a folder or on the Hub: found, and looked at before the libraries read them.

transformers asks the Hub for each file anew, passes over a damaged generation_config.json in silence, and answers odd
JSON with a `TypeError`. What is checked here ends in one sentence that names the file.
"""

import json
import logging
import os
from collections.abc import Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, parse_local_safetensors_file_metadata, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    SafetensorsParsingError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the client's, whatever its version
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

__all__ = [
    "HUB_OPTIONS",
    "build_without_memory",
    "check_finite",
    "count_numbers",
    "find_model_file",
    "find_weight_files",
    "read_json_object",
    "refuse_git_lfs_pointer",
    "resolve_hub_options",
]

logger = logging.getLogger(__name__)

# Where to load from, as everywhere in transformers.
HUB_OPTIONS = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
)
_PATIENCE = 10.0  # seconds that the Hub has for its first answer
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_LISTED = 5


class _Resolved(str):
    """A commit of a repository that was asked for already."""


def resolve_hub_options(name_or_path: str | os.PathLike, **hub_options: Any) -> dict[str, Any]:
    """
    The options with which all files of one model are loaded: the Hub is asked once, whether it is there and which
    commit the revision is. If it can't be reached, only the cache is used, rather than after the client's retries for
    each file that isn't in it.

    Args:
        name_or_path: a folder, for which nothing changes, or the name of a Hub repository.
        hub_options: some of `HUB_OPTIONS`.

    Raises:
        OSError: if the Hub can't be reached, or mustn't be asked, and the repository isn't in the cache.
    """
    name, revision, cache = os.fspath(name_or_path), hub_options.get("revision"), hub_options.get("cache_dir")
    if os.path.exists(name) or isinstance(revision, _Resolved):
        return hub_options
    reason = "`local_files_only` is set"
    if not hub_options.get("local_files_only"):
        try:
            api = HfApi()
            info = api.model_info(name, revision=revision, token=hub_options.get("token"), timeout=_PATIENCE)
            api.repo_info = lambda **_: info  # type: ignore[method-assign]  # asked once
            api.resolve_revision(name, revision=revision, cache_dir=cache)  # for later, when the Hub can't be reached
            return {**hub_options, "revision": _Resolved(info.sha)}
        except OfflineModeIsEnabled:
            reason = "HF_HUB_OFFLINE is set"
        except (HFValidationError, HfHubHTTPError) as error:
            if isinstance(error, HFValidationError) or error.response.status_code < 500:
                return hub_options  # told where the first file is looked for
            reason = f"the Hub ({constants.ENDPOINT}) answers {error.response.status_code}"
        except httpx.TransportError as error:
            reason = f"the Hub ({constants.ENDPOINT}) can't be reached ({str(error).rstrip('.')})"
        except JSONDecodeError:  # such as a page in HTML
            reason = f"{constants.ENDPOINT} doesn't answer as the Hub does (HF_ENDPOINT)"
    try:
        folder = snapshot_download(name, revision=revision, cache_dir=cache, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"There is no folder {name}, and the Hub does not give it either: {reason}, and revision "
            f"{revision or 'main'} of it is not in the cache ({cache or constants.HF_HUB_CACHE})."
        ) from error
    if reason.startswith("the Hub"):
        logger.warning("T%s; %s is taken from the cache.", reason[1:], name)
    return {**hub_options, "revision": _Resolved(os.path.basename(folder)), "local_files_only": True}


def find_model_file(name_or_path: str | os.PathLike, filename: str, **hub_options: Any) -> str | None:
    """The local path of a file of a folder or a Hub repository, or `None` if that has no such file."""
    return cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False, **hub_options)


def find_weight_files(
    name_or_path: str | os.PathLike,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **hub_options: Any,
) -> list[str]:
    """
    The local paths of a model's weights, one or several, as transformers looks for them.

    Args:
        name_or_path: a folder or a Hub repository.
        variant, use_safetensors, hub_options: as for `from_pretrained`.

    Raises:
        OSError: if there are none, if a file that the index names is missing, or if one of them is a Git LFS pointer.
        ValueError: if the index is damaged.
    """
    names = [] if use_safetensors is False else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    names += [] if use_safetensors else [WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    if variant is not None:
        names = [f".{variant}.".join(name.split(".", 1)) for name in names]
    for name in names:
        path = find_model_file(name_or_path, name, **hub_options)
        if path is not None:
            files = _shards(path, name_or_path, hub_options) if name.endswith(".json") else [path]
            for file in files:
                refuse_git_lfs_pointer(file)
            return files
    where = " in the cache" if hub_options.get("local_files_only") else ""
    raise OSError(f"{os.fspath(name_or_path)} has no weights{where}: there is none of {', '.join(names)}.")


def _shards(index_file: str, name_or_path: str | os.PathLike, hub_options: dict[str, Any]) -> list[str]:
    index_name, name = os.path.basename(index_file), os.fspath(name_or_path)
    index = read_json_object(index_file, name)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not isinstance(index.get("metadata"), dict):
        raise ValueError(
            f"The {index_name} of {name} is damaged: it must hold the objects `metadata` and `weight_map`."
        )
    for file in places.values():
        if not isinstance(file, str) or not file or os.path.basename(file) != file:
            raise ValueError(f"The {index_name} of {name} is damaged: {file!r} is no name of a file beside it.")
    files, _ = get_checkpoint_shard_files(name, index_file, **hub_options)
    missing = [os.path.basename(file) for file in files if not os.path.isfile(file)]
    if missing or not files:
        raise OSError(f"{name} lacks {missing[0] if missing else 'weights'}, according to its {index_name}.")
    return files


def refuse_git_lfs_pointer(path: str | os.PathLike) -> None:
    """
    Raises:
        OSError: if a file was never fetched: Git puts a few lines there instead of a large file.
    """
    with open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            folder = os.path.dirname(os.path.abspath(path))
            raise OSError(f"{path} is a Git LFS pointer, not the file itself: please run `git lfs pull` in {folder}.")


def read_json_object(path: str, name_or_path: str | os.PathLike) -> dict[str, Any]:
    """
    Reads one of a model's JSON files.

    Args:
        path: the file.
        name_or_path: the model, for the error.

    Raises:
        OSError: if it is a Git LFS pointer.
        ValueError: if it is no JSON in UTF-8, or if it holds something else than an object.
    """
    refuse_git_lfs_pointer(path)
    file = f"The {os.path.basename(path)} of {os.fspath(name_or_path)}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, but holds {json.dumps(content)[:40]}.")
    return content


def build_without_memory(model_class: Any, name: str, *args: Any) -> Any:
    """
    A model with the shapes of its weights alone, on PyTorch's device `meta`.

    Args:
        model_class: built with `args`, its configuration first.
        name: of the model, for the error.

    Raises:
        ValueError: if the sizes are beyond all bounds.
    """
    try:
        with torch.device("meta"):
            return model_class(*args)
    except (OverflowError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"The sizes in the config.json of {name} can't be built: {reason}.") from error


def count_numbers(files: list[str]) -> int:
    """How many numbers files of weights hold: exactly if they are whole safetensors, at most otherwise."""
    total = 0
    for file in files:
        try:
            total += sum(parse_local_safetensors_file_metadata(file).parameter_count.values())
        except SafetensorsParsingError:
            total += os.path.getsize(file)
    return total


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """
    Args:
        weights: by name; quantised ones and those without memory are passed over.
        name: of the model or adapter, for the error.

    Raises:
        ValueError: if NaN or infinity is among them.
    """
    spoilt = [key for key, weight in weights.items() if _is_plain(weight) and not _is_finite(weight.detach())]
    if spoilt:
        more = f" and {len(spoilt) - _MAX_LISTED} more" if len(spoilt) > _MAX_LISTED else ""
        dtypes = ", ".join(sorted({str(weights[key].dtype).removeprefix("torch.") for key in spoilt}))
        raise ValueError(
            f"The weights of {name} hold NaN or infinity (in {dtypes}): {', '.join(spoilt[:_MAX_LISTED])}{more}."
        )


def _is_plain(weight: torch.Tensor) -> bool:
    known = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return known and weight.is_floating_point() and weight.itemsize > 1 and not weight.is_meta


def _is_finite(weight: torch.Tensor) -> bool:
    # A sum takes a tenth of the time, and is finite only if all of them are; but it may overflow by itself.
    return bool(weight.sum(dtype=torch.float32).isfinite()) or bool(weight.isfinite().all())
