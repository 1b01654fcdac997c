# SPDX-License-Identifier: Apache-2.0
"""Files in a folder that a stranger has named: found, and read without leaving the folder."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .open_picture import MAX_PICTURE_BYTES, BadPicture
from .table_files import printable

__all__ = ["PICTURE_SUFFIXES", "TABLE_NAMES", "homes_of", "list_pictures", "other_files", "read_inside"]

TABLE_NAMES = ("metadata.csv", "metadata.jsonl")
# Those of the last line can't be read; opening them says why.
PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".ico", ".tga", ".ppm", ".eps"),
)
# NUL, and the halves of surrogate pairs that don't stand for a byte.
_NO_NAME = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")
# What a single file is to blame for; everything else is the machine's trouble and ends the work.
_FILE_TROUBLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


def homes_of(folder: Path) -> tuple[str, ...]:
    """
    Where the files of a folder may really lie: in it, or, if it is part of the Hub's cache, in the folder of blobs
    that all files of a snapshot link to.
    """
    real = Path(os.path.realpath(folder))
    snapshots = next((parent for parent in real.parents if parent.name == "snapshots"), None)
    return (str(real),) if snapshots is None else (str(real), str(snapshots.parent / "blobs"))


def read_inside(folder: Path, name: str, homes: tuple[str, ...] | None = None) -> bytes:
    """
    The content of a file in a folder, named by a stranger.

    Args:
        homes (`tuple[str, ...]`, *optional*): Real folders in which it may lie; those of [`homes_of`] by default.

    Raises:
        BadPicture: If it isn't there or can't be read, is no regular file, is too large, or lies outside of the folder,
            be it by a symbolic link.
        OSError: If the machine is in trouble.
    """
    shown = printable(name)[:80]
    if "://" in name:
        raise BadPicture(f"The picture {shown} is on the net, and nothing is downloaded.")
    if _NO_NAME.search(name):
        raise BadPicture(f"No file can have the name {shown}.")
    try:
        path = Path(os.path.realpath(folder / name))
        if not any(path.is_relative_to(home) for home in homes or homes_of(folder)):
            raise BadPicture(f"The file {shown} lies outside of the folder.")
        if not path.is_file():  # reading a pipe would wait for ever
            raise BadPicture(f"There is no file {shown}.")
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise BadPicture(f"The file {shown} is larger than {MAX_PICTURE_BYTES} bytes.")
        return path.read_bytes()
    except OSError as error:
        if error.errno in _FILE_TROUBLE:
            raise BadPicture(f"The file {shown} can't be read ({error.strerror}).") from error
        raise


def list_pictures(folder: Path) -> list[tuple[str, str | None]]:
    """
    Paths of the pictures below a folder, sorted, with `/` on every system. A linked folder comes with the reason why
    its files are not among them. Hidden files are left out.
    """
    found: list[tuple[str, str | None]] = []
    for name, is_link in _walk(folder):
        if is_link:
            found.append((name, "This is a linked folder, which is not followed: please name it as a further folder."))
        elif name.lower().endswith(PICTURE_SUFFIXES):
            found.append((name, None))
    return sorted(found)


def other_files(folder: Path) -> list[str]:
    """Files below a folder that are neither pictures nor texts beside one."""
    names = {name for name, is_link in _walk(folder) if not is_link}
    pictures = {name for name in names if name.lower().endswith(PICTURE_SUFFIXES)}
    return sorted(names - pictures - {str(Path(name).with_suffix(".txt").as_posix()) for name in pictures})


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a linked folder)"""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names + folders:
            path = Path(place, name)
            is_link = name in folders and path.is_symlink()
            if not name.startswith(".") and (is_link or name in names):
                yield path.relative_to(folder).as_posix(), is_link
