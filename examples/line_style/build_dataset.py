# SPDX-License-Identifier: Apache-2.0
"""Build the line drawings of the fine-tuning tutorial: an emoji set that the demo model was never shown.

    python examples/line_style/build_dataset.py --output examples/line_style

The result is in the repository, so the tutorial needs neither this script nor the network. The packages stay in
`--downloads`, where the recipe of the demo model keeps them, too.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
EMOJI = HERE.parent / "emoji"
sys.path.insert(0, str(EMOJI))  # the demo's recipe has the words, and reads and draws such packages

from captions import STYLED, Thing, make_captions, read_things  # noqa: E402
from emoji_sets import CharacterNames, EmojiSet, draw, read_drawings  # noqa: E402

LINES = EmojiSet("line", "@iconify-json/fluent-emoji-high-contrast@1.2.6", "线条风格")
SIZE = 64
_GREYS = 4
# A thing that is named for its colour (红心, 橙圈) is nothing without it.
_COLOURS = tuple("红粉橙黄绿蓝紫棕黑白灰浅")


def draw_pictures(things: dict[str, Thing], downloads: Path) -> dict[str, bytes]:
    """
    Draw every thing that the set has, but for those that are named for their colour.

    Returns:
        `dict[str, bytes]`: From hexcode to PNG, ranked by a hash of the hexcode: any first part is a fair sample.
    """
    drawings = read_drawings(LINES, CharacterNames(downloads), downloads)
    pictures = {}
    named = [thing.hexcode for thing in things.values() if not thing.label.startswith(_COLOURS)]
    for hexcode in sorted(drawings.keys() & named, key=lambda name: hashlib.sha256(name.encode()).digest()):
        picture = draw(drawings[hexcode], SIZE)
        if picture is not None:
            pictures[hexcode] = _small_png(picture)
    return pictures


def _small_png(picture: Image.Image) -> bytes:
    """Four greys, two bits a pixel: black ink with soft edges needs no more."""
    step = 255 // (_GREYS - 1)
    greys = picture.convert("L").point([round(grey / step) for grey in range(256)])
    greys.putpalette([channel for grey in range(_GREYS) for channel in (grey * step,) * 3])
    png = io.BytesIO()
    greys.save(png, format="PNG", optimize=True, bits=2)
    return png.getvalue()


def styled_captions(thing: Thing) -> list[str]:
    """The captions that name the style, but for those with the last of the thing's words, which is for the test."""
    kept_back = {f"{LINES.style}的{thing.words[-1]}", _styled(thing.words[-1])} if thing.words else set()
    captions = dict.fromkeys(make_captions(thing, LINES.style))
    return [caption for caption in captions if LINES.style in caption and caption not in kept_back]


def _styled(word: str) -> str:
    return STYLED.format(word=word, style=LINES.style)


def write_table(pictures: dict[str, bytes], things: dict[str, Thing], path: Path) -> None:
    """Write rows as `idx`, captions joined by `|`, PNG in base64."""
    with path.open("w", encoding="utf-8", newline="\n") as table:
        for hexcode, png in pictures.items():
            captions = "|".join(styled_captions(things[hexcode]))
            table.write(f"{LINES.name}/{hexcode}\t{captions}\t{base64.b64encode(png).decode()}\n")
    print(f"{path}: {len(pictures)} pictures, {path.stat().st_size / 1000:.0f} kB")


def write_evaluation(trained: list[Thing], heldout: list[Thing], path: Path) -> None:
    """Write what `compare.py` asks for: trained things and held-out ones, with the style and without it."""
    renamed = [thing for thing in trained if thing.words][: len(heldout)]
    questions = {
        "trained": [{"caption": _styled(thing.label), "thing": thing.hexcode} for thing in renamed],
        "words": [{"caption": _styled(thing.words[-1]), "thing": thing.hexcode} for thing in renamed],
        "things": [{"caption": _styled(thing.label), "thing": thing.hexcode} for thing in heldout],
        "rehearsed": [{"caption": thing.label, "thing": thing.hexcode} for thing in renamed],
        "plain": [{"caption": thing.label, "thing": thing.hexcode} for thing in heldout],
    }
    path.write_text(json.dumps(questions, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of train.tsv, heldout.tsv, evaluation.json")
    parser.add_argument("--downloads", type=Path, default=EMOJI / "data" / "downloads")
    parser.add_argument("--pictures", type=int, default=120, help="pictures to train on")
    parser.add_argument("--heldout", type=int, default=40, help="pictures of other things, for before and after")
    arguments = parser.parse_args()
    try:
        things = read_things(EMOJI / "words.tsv")
        pictures = draw_pictures(things, arguments.downloads)
        hexcodes = list(pictures)
        if not 0 < arguments.heldout < len(hexcodes) or not 0 < arguments.pictures <= len(hexcodes) - arguments.heldout:
            raise ValueError(f"there are {len(hexcodes)} pictures: please ask for fewer, and for at least one of each")
        heldout, trained = hexcodes[: arguments.heldout], hexcodes[arguments.heldout :][: arguments.pictures]
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name, chosen in (("train.tsv", trained), ("heldout.tsv", heldout)):
            write_table({hexcode: pictures[hexcode] for hexcode in chosen}, things, arguments.output / name)
        write_evaluation(
            [things[name] for name in trained], [things[name] for name in heldout], arguments.output / "evaluation.json"
        )
    except (ValueError, RuntimeError, OSError) as error:
        print(f"build_dataset.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
