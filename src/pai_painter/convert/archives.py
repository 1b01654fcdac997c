# SPDX-License-Identifier: Apache-2.0
"""The archives in which EasyNLP's model zoo serves its folders (`.tgz`), unpacked with distrust."""

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from .safe_pickle import CheckpointError

__all__ = ["MAX_ARCHIVE_BYTES", "is_archive", "unpack"]

MAX_ARCHIVE_BYTES = 16 * 2**30  # of the content; the large painter with its optimizer has about 6
_MAX_FILES = 10_000
_MAX_STEP = 16 * 2**20  # read at once: file contents are copied in small pieces, so only a bomb's header is longer


def is_archive(path: Path) -> bool:
    """Whether a file is a tar archive, packed by gzip or not."""
    with path.open("rb") as file:
        start = file.read(262)
    return start[:2] == b"\x1f\x8b" or start[257:] == b"ustar"


def unpack(path: Path, folder: Path, max_bytes: int = MAX_ARCHIVE_BYTES) -> None:
    """
    Unpacks an archive of plain files and folders.

    Args:
        path: the archive.
        folder: an empty folder.
        max_bytes: the most that it may unpack to.

    Raises:
        OSError: if it can't be read, or if the disk is full.
        CheckpointError: if it is damaged, if it holds links, devices or names that lead out of the folder, or if it
            unpacks to more than `max_bytes`.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        unpacked = cast(IO[bytes], gzip.GzipFile(fileobj=file) if packed else file)
        try:
            with tarfile.open(fileobj=cast(Any, _Capped(unpacked, path, max_bytes)), mode="r:") as archive:
                for count, member in enumerate(archive):
                    if count >= _MAX_FILES:
                        raise CheckpointError(f"{path} is refused: it holds more than {_MAX_FILES:,} files.")
                    _unpack_member(archive, member, path, folder)
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, UnicodeError) as error:
            raise CheckpointError(f"{path} is damaged or cut off ({str(error).rstrip('.')}).") from error


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, folder: Path) -> None:
    name = PurePosixPath(member.name)
    shown = repr(member.name[:200])
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name or "\0" in member.name:
        raise CheckpointError(f"{path} is refused: the name {shown} in it leads out of the folder.")
    if not member.isdir() and not (member.isreg() and not member.issparse()):
        raise CheckpointError(f"{path} is refused: {shown} in it is no plain file, but a link or a device.")
    target = folder.joinpath(*name.parts)
    content = cast(IO[bytes], archive.extractfile(member))  # a plain file has a content
    try:
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            shutil.copyfileobj(content, file, 2**20)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} is refused: it holds {shown} twice.") from error


class _Capped:
    """What a packed file unpacks to, up to a limit, whatever the sizes in it say."""

    def __init__(self, file: IO[bytes], path: Path, limit: int):
        self.file, self.path, self.limit = file, path, limit

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_STEP or size < 0:
            raise CheckpointError(f"{self.path} is refused: one of its headers says that it has {size:,} bytes.")
        self._check(self.file.tell() + size)
        return self.file.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()

    def _check(self, position: int) -> None:
        if position > self.limit + _MAX_STEP:  # the last read may ask for more than there is
            raise CheckpointError(
                f"{self.path} is refused: it unpacks to more than {self.limit:,} bytes, more than a model needs."
            )
