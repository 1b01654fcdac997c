# SPDX-License-Identifier: Apache-2.0
"""Files in a folder that a stranger has named: found, and read without leaving the folder."""

import errno
import os
import re
from pathlib import Path

from ..printable import printable
from .open_picture import MAX_PICTURE_BYTES, BadPicture

__all__ = ["PICTURE_SUFFIXES", "homes_of", "list_folder", "read_inside"]

# Those of the last line can't be read; opening them says why.
PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".ico", ".tga", ".ppm", ".eps"),
)
_LINKED = "This is a linked folder, which is not followed: please name it as a further folder."
# NUL, and the halves of surrogate pairs that don't stand for a byte.
_NO_NAME = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")
# What a single file is to blame for; everything else is the machine's trouble and ends the work.
_FILE_TROUBLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


def homes_of(folder: Path) -> tuple[str, ...]:
    """Where a folder's files may lie: in it or, in a snapshot of the Hub's cache, in the blobs it links to."""
    real = Path(os.path.realpath(folder))
    snapshots = next((parent for parent in real.parents if parent.name == "snapshots"), None)
    return (str(real),) if snapshots is None else (str(real), str(snapshots.parent / "blobs"))


def read_inside(folder: Path, name: str) -> bytes:
    """
    The content of a file in a folder, named by a stranger.

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
        if not any(path.is_relative_to(home) for home in homes_of(folder)):
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


def list_folder(folder: Path) -> tuple[list[tuple[str, str | None]], list[str]]:
    """
    What lies below a folder, sorted, with `/` on every system; hidden files are left out.

    Returns:
        The paths of pictures, and of linked folders with the reason why they are not read; and the paths of all files
        that are neither a picture nor a picture's text.
    """
    rows: list[tuple[str, str | None]] = []
    others = set()
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        rows += [((here / name).as_posix(), _LINKED) for name in folders if Path(place, name).is_symlink()]
        others |= {(here / name).as_posix() for name in names if not name.startswith(".")}
    pictures = {name for name in others if name.lower().endswith(PICTURE_SUFFIXES)}
    others -= pictures | {Path(name).with_suffix(".txt").as_posix() for name in pictures}
    return sorted(rows + [(name, None) for name in pictures]), sorted(others)
