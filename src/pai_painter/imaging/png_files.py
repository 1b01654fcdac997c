# SPDX-License-Identifier: Apache-2.0
"""Pictures to PNG files: names made from captions, and metadata."""

import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..whole_files import write_whole

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
    Where pictures go: into the folder `output`, or into the file `output` if its name ends in .png. A `ValueError` if
    it names another kind of picture, or one file for several pictures.
    """
    ending = output.suffix.lower()
    if output.is_dir() or ending not in (".png", *_OTHER_PICTURES):
        return [output / name for name in names]
    if ending != ".png":
        raise ValueError(f"Pictures are saved as PNG: please let {output} end in .png, or name a folder.")
    if len(names) > 1:
        raise ValueError(f"{output} is one file for {len(names)} pictures: please name a folder.")
    return [output]


def png_bytes(image: Image.Image, text: Mapping[str, str]) -> bytes:
    """A PNG file with metadata: keywords (Latin letters) and their texts, in UTF-8 (iTXt)."""
    file, metadata = io.BytesIO(), PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        metadata.add_itxt(keyword, value)
    image.save(file, format="PNG", pnginfo=metadata)
    return file.getvalue()


def save_png(image: Image.Image, path: Path, text: Mapping[str, str], force: bool = False) -> None:
    """Writes a picture to a file; see [`png_bytes`] and [`~whole_files.write_whole`]."""
    write_whole(path, lambda partial: partial.write_bytes(png_bytes(image, text)), force)


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """
    A square picture enlarged to `side` × `side` pixels for the eye (Lanczos), without more detail. A `ValueError` if
    `side` is smaller than the picture or larger than 8192.
    """
    if not image.width <= side <= _MAX_SIDE:
        raise ValueError(
            f"A picture of {image.width}×{image.height} pixels can't be enlarged to {side}×{side}: "
            f"please give a size from {image.width} to {_MAX_SIDE}."
        )
    return image.resize((side, side), Image.Resampling.LANCZOS)
