# SPDX-License-Identifier: Apache-2.0
"""Pictures to PNG files: names made from captions, metadata, and writing that never leaves half a file."""

import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, PngImagePlugin

__all__ = [
    "check_new_files",
    "enlarge",
    "file_stem",
    "in_folder_or_file",
    "save_png",
    "unique_names",
    "write_atomically",
    "write_png",
]

_MAX_STEM_BYTES = 120  # of the 255 that file systems allow; a seed and an ending follow
_MAX_SIDE = 8192
_OTHER_PICTURES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".tif", ".tiff", ".webp")
_RESERVED_ON_WINDOWS = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])")


def file_stem(text: str) -> str:
    """
    A file name without ending, made from a stranger's text: letters, digits, `_` and `-` of any script, at most 120
    bytes. Everything else becomes one `_`; names that begin with `-` or that Windows reserves don't come out.
    """
    text = unicodedata.normalize("NFC", text)
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" or letter in "-_" else " " for letter in text)
    stem = "_".join(kept.split()).encode("utf-8")[:_MAX_STEM_BYTES].decode("utf-8", errors="ignore").strip("-_")
    if not stem:
        return "picture"
    return f"{stem}_" if _RESERVED_ON_WINDOWS.fullmatch(stem) else stem


def unique_names(stems: Sequence[str], ending: str) -> list[str]:
    """File names in which a stem that came before, in whatever case, has a number: `a.png`, `A-2.png`."""
    names: dict[str, str] = {}
    for stem in stems:
        name, number = f"{stem}{ending}", 1
        while name.lower() in names:
            number += 1
            name = f"{stem}-{number}{ending}"
        names[name.lower()] = name
    return list(names.values())


def in_folder_or_file(output: Path, names: Sequence[str]) -> list[Path]:
    """
    Where pictures go: into the folder `output`, or into the file `output` if its name ends in .png.

    Raises:
        ValueError: if `output` names another kind of picture, or one file for several pictures.
    """
    ending = output.suffix.lower()
    if output.is_dir() or ending not in (".png", *_OTHER_PICTURES):
        return [output / name for name in names]
    if ending != ".png":
        raise ValueError(f"Pictures are saved as PNG: please let {output} end in .png, or name a folder.")
    if len(names) > 1:
        raise ValueError(f"{output} is one file for {len(names)} pictures: please name a folder.")
    return [output]


def check_new_files(paths: Iterable[Path], force: bool) -> None:
    """
    Finds out before the work whether its results can be written. Creates missing folders.

    Raises:
        FileExistsError: if one of the files exists, unless `force`.
        OSError: if one of them is a folder, or if its folder can't be created or written to.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, so no file can be written there.")
        if not force and os.path.lexists(path):
            raise _exists(path)
        folders[path.parent] = None
    for folder in folders:
        trial = folder / _temporary_name()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            raise OSError(error.errno, f"Nothing can be written to the folder {folder} ({error.strerror})") from error


def save_png(image: Image.Image, path: Path, text: Mapping[str, str], force: bool = False) -> None:
    """Writes a picture to a file, whole or not at all; see [`write_png`] and [`write_atomically`]."""
    write_atomically(path, lambda file: write_png(image, file, text), force)


def write_png(image: Image.Image, file: BinaryIO, text: Mapping[str, str]) -> None:
    """
    Writes a picture with metadata.

    Args:
        image (`PIL.Image.Image`): The picture.
        file (`BinaryIO`): An open file.
        text (`Mapping[str, str]`): Keywords (Latin letters) and their texts, in UTF-8 (iTXt).
    """
    metadata = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        metadata.add_itxt(keyword, value)
    image.save(file, format="PNG", pnginfo=metadata)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], force: bool = False) -> None:
    """
    Lets `write` fill a temporary file in the same folder, and renames it when it is complete.

    Raises:
        FileExistsError: if the file exists, unless `force`.
        OSError: if it can't be written; nothing is left behind then.
    """
    temporary = path.parent / _temporary_name()
    try:
        with open(temporary, "xb") as file:
            write(file)
        if not force:  # takes a free name, which `os.replace` alone would also take from a file that came meanwhile
            path.touch(exist_ok=False)
        os.replace(temporary, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise OSError(error.errno, f"{path} can't be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists already: please give another name, or --force to overwrite it.")


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}.tmp"


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """
    A square picture enlarged to `side` × `side` pixels for the eye (Lanczos), without more detail.

    Raises:
        ValueError: if `side` is smaller than the picture or larger than 8192.
    """
    if not image.width <= side <= _MAX_SIDE:
        raise ValueError(
            f"A picture of {image.width}×{image.height} pixels can't be enlarged to {side}×{side}: "
            f"please give a size from {image.width} to {_MAX_SIDE}."
        )
    return image.resize((side, side), Image.Resampling.LANCZOS)
