# SPDX-License-Identifier: Apache-2.0
"""What kind of checkpoint a file or folder is."""

from pathlib import Path
from typing import Literal

from .safe_pickle import CheckpointError
from .vqgans import read_settings

__all__ = ["Kind", "kind_of", "model_folder"]

Kind = Literal["easynlp", "native", "paddlenlp", "taming"]
_BY_ENDING: dict[str, Kind] = {".bin": "easynlp", ".ckpt": "taming", ".pdparams": "paddlenlp"}
_KNOWN = (
    "a folder of EasyNLP (config.json with model_type 'artist') or its .tgz, a .ckpt of taming-transformers, and "
    "PaddleNLP's .pdparams"
)


def kind_of(source: Path) -> tuple[Kind, Path]:
    """
    Finds out which program made a checkpoint.

    Returns:
        The kind, and what its reader wants: the folder, or the file for taming's.

    Raises:
        OSError: if it can't be read.
        CheckpointError: if it is none of the known kinds, or more than one.
    """
    if source.is_file():
        kind = _BY_ENDING.get(source.suffix)
        if kind is None:
            raise CheckpointError(f"{source} is no checkpoint that is known: those are {_KNOWN}.")
        return kind, source
    config = source / "config.json"
    model_type = read_settings(config).get("model_type") if config.is_file() else None
    if model_type == "artist":
        return "easynlp", source
    if model_type in ("pai_painter", "pai_painter_vqgan"):
        return "native", source
    if any(source.glob("*.pdparams")):
        return "paddlenlp", source
    checkpoints = sorted(source.glob("*.ckpt"))
    if len(checkpoints) == 1:
        return "taming", checkpoints[0]
    if checkpoints:
        raise CheckpointError(
            f"{source} has {len(checkpoints)} files *.ckpt: please name one, such as {checkpoints[0]}."
        )
    if model_type is not None:
        raise CheckpointError(
            f"{source} holds another model: the model_type in its config.json is {str(model_type)[:80]!r}; what is "
            f"known is {_KNOWN}."
        )
    raise CheckpointError(f"{source} holds no checkpoint that is known: those are {_KNOWN}.")


def model_folder(unpacked: Path, archive: Path) -> Path:
    """
    The model in what was an archive: it may lie in a folder of its own.

    Raises:
        CheckpointError: if there is none, or more than one.
    """
    kinds = ("config.json", "*.pdparams", "*.ckpt")
    folders = {path.parent for kind in kinds for path in unpacked.rglob(kind) if not path.name.startswith("._")}
    found = sorted(folders, key=lambda path: (len(path.parts), path))
    if not found:
        raise CheckpointError(f"{archive} holds no checkpoint: it has neither a config.json nor weights.")
    if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
        names = ", ".join(str(path.relative_to(unpacked)) for path in found[:3])
        raise CheckpointError(f"{archive} holds several checkpoints ({names}): please unpack it and name one.")
    return found[0]
