# SPDX-License-Identifier: Apache-2.0
"""Finds out which program made a checkpoint, and unpacks the archives that EasyNLP's model zoo serves."""

import tarfile
import zlib
from pathlib import Path
from typing import Literal

from ..printable import printable
from .checkpoint_reading import CheckpointError, read_settings

MAX_ARCHIVE_BYTES = 16 * 2**30  # unpacked; the large painter with its optimizer has about 6

Kind = Literal["easynlp", "paddlenlp", "painter", "taming", "vqgan"]
_BY_SUFFIX: dict[str, Kind] = {".bin": "easynlp", ".ckpt": "taming", ".pdparams": "paddlenlp"}
_BY_MODEL_TYPE: dict[str, Kind] = {"artist": "easynlp", "pai_painter": "painter", "pai_painter_vqgan": "vqgan"}
_KNOWN = (
    "EasyNLP folders (config.json with model_type 'artist') and their .tgz, .ckpt files of taming-transformers, and "
    "PaddleNLP's .pdparams"
)


def kind_of(source: Path) -> tuple[Kind, Path]:
    """Finds out which program made a checkpoint, and gives the folder or file to read."""
    if source.is_file():
        if source.suffix not in _BY_SUFFIX:
            raise CheckpointError(f"{source} is no known checkpoint; supported are {_KNOWN}.")
        return _BY_SUFFIX[source.suffix], source
    config = source / "config.json"
    model_type = str(read_settings(config).get("model_type")) if config.is_file() else None
    if model_type in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[model_type], source
    files = [path for path in sorted(source.iterdir()) if path.suffix in (".pdparams", ".ckpt")]
    if len(files) == 1:
        return _BY_SUFFIX[files[0].suffix], files[0]
    if files:
        raise CheckpointError(f"{source} has {len(files)} files of weights: please name one, e.g. {files[0]}.")
    found = "" if model_type is None else f" (its config.json has the model_type {printable(model_type)!r})"
    raise CheckpointError(f"{source} holds no known checkpoint{found}; supported are {_KNOWN}.")


def unpack(path: Path, folder: Path, max_bytes: int = MAX_ARCHIVE_BYTES) -> Path:
    """Unpacks an archive of plain files and folders, and gives the folder in it that holds the model."""
    size = 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                size += member.size
                if size > max_bytes:
                    raise CheckpointError(f"{path} unpacks to more than {max_bytes:,} bytes, more than a model needs.")
                if not (member.isreg() or member.isdir()) or not member.name.isprintable():
                    raise tarfile.TarError(f"{member.name!r} in it is no plain file or has no plain name")
                archive.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, UnicodeError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CheckpointError(f"{path} is damaged or refused: {error}.") from error
    return _model_folder(folder, path)


def _model_folder(unpacked: Path, archive: Path) -> Path:
    patterns = ("config.json", "*.pdparams", "*.ckpt")
    folders = {path.parent for kind in patterns for path in unpacked.rglob(kind) if not path.name.startswith("._")}
    found = sorted(folders, key=lambda path: (len(path.parts), path))
    if not found:
        raise CheckpointError(f"{archive} holds no checkpoint: it has neither a config.json nor weights.")
    if len(found) > 1 and len(found[0].parts) == len(found[1].parts):
        names = ", ".join(str(path.relative_to(unpacked)) for path in found[:3])
        raise CheckpointError(f"{archive} holds several checkpoints ({names}): please unpack it and name one.")
    return found[0]
