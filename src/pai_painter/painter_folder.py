# SPDX-License-Identifier: Apache-2.0
"""What a folder or a Hub repository holds, found out before its weights are read."""

import errno
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

from safetensors import SafetensorError
from transformers.utils import cached_file

from .configuration_pai_painter import PaiPainterConfig, PaiPainterVQConfig

__all__ = ["PainterFolder", "find_file", "naming_damaged_weights", "read_painter_folder"]


@dataclass(frozen=True)
class PainterFolder:
    """
    Args:
        config ([`PaiPainterConfig`]): The painter's configuration.
        layout (`str`): `"native"`, or `"EasyNLP"` for a checkpoint of that program.
    """

    config: PaiPainterConfig
    layout: Literal["native", "EasyNLP"]

    @property
    def vq_config(self) -> PaiPainterVQConfig:
        """The codec's configuration."""
        return cast(PaiPainterVQConfig, self.config.vq_config)


def read_painter_folder(
    name_or_path: str | os.PathLike, vq_config: PaiPainterVQConfig | dict | None = None, **hub_options: Any
) -> PainterFolder:
    """
    Reads the configuration of a painter, in the native layout or in EasyNLP's.

    Args:
        name_or_path: a folder, or the name (`owner/name`) of a Hub repository.
        vq_config: the codec's configuration, for an EasyNLP folder whose codec isn't VQGAN f16_16384.
        hub_options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        OSError: if there is no such folder or repository, or if it has no config.json.
        ValueError: if its config.json isn't a painter's.
    """
    name = os.fspath(name_or_path)
    config_file = find_file(name, "config.json", **hub_options)
    if config_file is None:
        if not os.path.isdir(name):
            raise OSError(f"There is no folder {name}, and the Hub does not give a config.json of that name either.")
        raise OSError(f"{name} holds no painter: it has no config.json.")
    with open(config_file, encoding="utf-8") as file:
        try:
            config_dict = json.load(file)
        except ValueError as error:  # of JSON or of UTF-8
            raise ValueError(f"The config.json of {name} is damaged: {error}.") from error
    model_type = config_dict.get("model_type") if isinstance(config_dict, dict) else None
    if model_type == "artist":
        return PainterFolder(PaiPainterConfig.from_dict(config_dict, vq_config=vq_config), "EasyNLP")
    if model_type != PaiPainterConfig.model_type:
        raise ValueError(
            f"{name} holds no painter: the model_type in its config.json is {model_type!r}, but must be "
            f"{PaiPainterConfig.model_type!r}, or 'artist' for a checkpoint of EasyNLP."
        )
    if vq_config is not None:
        raise ValueError(f"{name} says itself what its codec is; `vq_config` is for EasyNLP's checkpoints only.")
    return PainterFolder(PaiPainterConfig.from_dict(config_dict), "native")


def find_file(name_or_path: str, filename: str, **hub_options: Any) -> str | None:
    """
    The local path of a file of a folder or a Hub repository, or `None` if that has no such file.

    Raises:
        OSError: if there is no such folder or repository.
    """
    if not os.path.isdir(name_or_path):
        _check_repository_name(name_or_path)
    try:
        return cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False, **hub_options)
    except OSError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise OSError(f"There is no folder {name_or_path}, and the Hub does not give it either: {reason}.") from error


def _check_repository_name(name: str) -> None:
    """Answers at once what can only be a path, rather than after the Hub client's retries."""
    if os.path.exists(name):
        raise OSError(f"{name} is a file, but a model is a folder (or the name of a Hub repository, owner/name).")
    owner, _, repository = name.partition("/")
    if not owner or not repository or owner[0] in ".~" or "/" in repository or "\\" in name:
        raise OSError(f"There is no folder {name}, and it is no name of a Hub repository (owner/name) either.")


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
