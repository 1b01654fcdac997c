# SPDX-License-Identifier: Apache-2.0
"""Build the demo's data set: open emoji drawings as pictures, their everyday Chinese names as captions.

    python examples/emoji/build_dataset.py --output examples/emoji/data

The packages stay in `data/downloads`; a second run needs no network. `LICENSES.md` says who made them.
"""

import argparse
import base64
import hashlib
import io
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from captions import STYLED, Thing, make_captions, read_things
from emoji_sets import EMOJI_SETS, CharacterNames, draw, read_drawings
from PIL import Image

HERE = Path(__file__).resolve().parent
HELDOUT_PICTURES = 120
EVALUATED_PICTURES = 100
SETS_TO_HOLD_OUT = 3


@dataclass(frozen=True)
class Row:
    """One picture of the data set: the thing, the set that drew it, and the PNG's bytes."""

    thing: Thing
    set_name: str
    png: bytes

    @property
    def idx(self) -> str:
        return f"{self.set_name}/{self.thing.hexcode}"


def draw_rows(
    things: dict[str, Thing], set_names: list[str], names: CharacterNames, size: int, folder: Path
) -> list[Row]:
    """Draw every thing as every set draws it, and print how many drawings failed or came out blank."""
    rows = []
    for set_name in set_names:
        drawings = read_drawings(EMOJI_SETS[set_name], names, folder)
        lost = []
        for hexcode in things.keys() & drawings.keys():
            picture = draw(drawings[hexcode], size)
            if picture is None:
                lost.append(hexcode)
                continue
            png = io.BytesIO()
            picture.save(png, format="PNG", optimize=True)
            rows.append(Row(things[hexcode], set_name, png.getvalue()))
        print(f"{set_name}: {len(lost)} drawings dropped {' '.join(sorted(lost))}".rstrip(), flush=True)
    order = {hexcode: position for position, hexcode in enumerate(things)}
    return sorted(rows, key=lambda row: (set_names.index(row.set_name), order[row.thing.hexcode]))


def split_rows(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out pictures of things that are trained in at least two other sets, one picture a thing.

    Pictures are ranked by a hash of seed and idx, so that a new thing moves few of them from one side to the other.

    Returns:
        `tuple[list[Row], list[Row]]`: Pictures to train on, pictures held out (in random order).
    """
    drawn_by = Counter(row.thing.hexcode for row in rows)
    ranked = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}/{row.idx}".encode()).digest())
    heldout: dict[str, Row] = {}
    for row in ranked:
        if drawn_by[row.thing.hexcode] >= SETS_TO_HOLD_OUT and len(heldout) < HELDOUT_PICTURES:
            heldout.setdefault(row.thing.hexcode, row)
    kept_back = {row.idx for row in heldout.values()}
    return [row for row in rows if row.idx not in kept_back], list(heldout.values())


def write_table(rows: list[Row], path: Path) -> Counter:
    """Write rows as `idx`, captions joined by `|`, PNG in base64; returns how often each caption occurs."""
    captions: Counter = Counter()
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="\n") as table:
        for row in rows:
            own = make_captions(row.thing, EMOJI_SETS[row.set_name].style)
            captions.update(own)
            table.write(f"{row.idx}\t{'|'.join(own)}\t{base64.b64encode(row.png).decode()}\n")
    part.replace(path)  # so that a table is never found half written
    return captions


def read_everyday(path: Path, things: dict[str, Thing]) -> list[dict[str, str]]:
    """Read the everyday captions: caption and hexcode, with a tab between them.

    Raises:
        ValueError: If a hexcode is not among the things.
    """
    everyday = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            caption, _, hexcode = line.partition("\t")
            if hexcode not in things:
                raise ValueError(f"{path.name}: {caption} should mean {hexcode}, which words.tsv doesn't hold.")
            everyday.append({"caption": caption, "thing": hexcode})
    return everyday


def make_evaluation(train: list[Row], heldout: list[Row], everyday: list[dict[str, str]], seed: int) -> dict[str, list]:
    """What the evaluation asks for: trained labels, held-out pairs with their style, everyday captions."""
    trained = list({row.thing.hexcode: row.thing for row in train}.values())
    asked = random.Random(seed).sample(trained, min(EVALUATED_PICTURES, len(trained)))
    return {
        "trained": [{"caption": thing.label, "thing": thing.hexcode} for thing in asked],
        "heldout": [
            {
                "caption": STYLED.format(word=row.thing.label, style=EMOJI_SETS[row.set_name].style),
                "label": row.thing.label,
                "thing": row.thing.hexcode,
                "set": row.set_name,
            }
            for row in heldout[:EVALUATED_PICTURES]
        ],
        "everyday": everyday,
    }


def describe_things(rows: list[Row], names: CharacterNames) -> dict[str, dict]:
    """Label, words, group and sets of every thing that is drawn."""
    described: dict[str, dict] = {}
    for row in rows:
        thing = row.thing
        entry = described.setdefault(
            thing.hexcode,
            {"label": thing.label, "words": list(thing.words), "group": names.groups[thing.hexcode], "sets": []},
        )
        entry["sets"].append(row.set_name)
    return described


def draw_contact_sheet(rows: list[Row], path: Path, seed: int, columns: int = 24, lines: int = 16) -> None:
    """Put some pictures side by side, for the eye."""
    chosen = random.Random(seed).sample(rows, min(columns * lines, len(rows)))
    pictures = [Image.open(io.BytesIO(row.png), formats=["PNG"]) for row in chosen]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * (width + 2), lines * (height + 2)), "lightgrey")
    for position, picture in enumerate(pictures):
        sheet.paste(picture, (position % columns * (width + 2) + 1, position // columns * (height + 2) + 1))
    sheet.save(path)


def print_summary(train: list[Row], heldout: list[Row], captions: Counter) -> None:
    """Print what was built."""
    trained, held = Counter(row.set_name for row in train), Counter(row.set_name for row in heldout)
    print(f"{'set':<20}{'trained':>9}{'held out':>10}  style")
    for set_name in trained:
        print(f"{set_name:<20}{trained[set_name]:>9}{held[set_name]:>10}  {EMOJI_SETS[set_name].style}")
    print(f"{'together':<20}{len(train):>9}{len(heldout):>10}")
    styles = [EMOJI_SETS[set_name].style for set_name in trained]
    styled = sum(count for caption, count in captions.items() if any(style in caption for style in styles))
    total = sum(captions.values())
    print(
        f"{len({row.thing.hexcode for row in train})} things, {total / len(train):.1f} captions a picture "
        f"({styled / total:.0%} with style words), {len(captions)} different captions, "
        f"{len(set(''.join(captions)))} different characters"
    )


def build(arguments: argparse.Namespace) -> None:
    """Fetch, draw, split and write; see the module's docstring."""
    unknown = [name for name in arguments.sets if name not in EMOJI_SETS]
    if unknown:
        raise ValueError(f"There is no set named {', '.join(unknown)}: please choose among {', '.join(EMOJI_SETS)}.")
    if arguments.size < 16:
        raise ValueError(f"--size {arguments.size} is too small to show anything: please give 16 or more.")
    things = read_things(HERE / "words.tsv")
    everyday = read_everyday(HERE / "everyday.txt", things)
    downloads = arguments.output / "downloads"
    names = CharacterNames(downloads)
    rows = draw_rows(things, arguments.sets, names, arguments.size, downloads)
    train, heldout = split_rows(rows, arguments.seed)
    captions = write_table(train, arguments.output / "train.tsv")
    write_table(heldout, arguments.output / "heldout.tsv")
    for name, content in (
        ("evaluation.json", make_evaluation(train, heldout, everyday, arguments.seed)),
        ("things.json", describe_things(rows, names)),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (arguments.output / name).write_text(text, encoding="utf-8")
    draw_contact_sheet(train, arguments.output / "contact_sheet.png", arguments.seed)
    print_summary(train, heldout, captions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "data", help="folder of the data set")
    parser.add_argument("--sets", nargs="+", default=list(EMOJI_SETS), metavar="SET", help=", ".join(EMOJI_SETS))
    parser.add_argument("--size", type=int, default=64, help="width and height of a picture in pixels")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is held out and asked in the evaluation")
    try:
        build(parser.parse_args())
    except (ValueError, RuntimeError, OSError) as error:
        print(f"build_dataset.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
