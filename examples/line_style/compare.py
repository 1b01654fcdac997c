# SPDX-License-Identifier: Apache-2.0
"""
Paints the same captions before and after the fine-tuning on line drawings, prints what changed and draws it.

    python examples/line_style/compare.py --after runs/lines --output runs/before_after.png

`evaluation.json` says what is asked for. A painted picture is the right line drawing if, of all in train.tsv and
heldout.tsv, the nearest one (16×16 RGB, squared distance) shows the thing that was asked for. A plain caption is
painted as before if, of all that the model painted of its kind before, the nearest picture is of the same caption.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from pai_painter import DEMO_MODEL, PaiPainterPipeline
from pai_painter.data.open_picture import open_picture
from pai_painter.data.sources import find_source
from pai_painter.imaging.grids import draw_grid

HERE = Path(__file__).resolve().parent
KINDS = {
    "trained": "trained captions",
    "words": "trained things, new words",
    "things": "untrained things",
    "rehearsed": "plain captions, rehearsed",
    "plain": "plain captions, not rehearsed",
}
PLAIN = ("rehearsed", "plain")
# The VQGAN tints black ink, but its copies of line drawings stay below 0.05; half of the coloured pictures exceed 0.2.
GREY_BELOW = 0.07
# Which captions of each kind are in the grid: the first, but each thing once.
SHOWN = {"trained": range(3), "words": range(3, 6), "things": range(2), "rehearsed": range(2), "plain": range(2, 3)}
BATCH = 20

Pictures = dict[str, list[Image.Image]]
Questions = dict[str, list[dict[str, str]]]


def colourfulness(picture: Image.Image) -> float:
    """How far the channels are apart, on average over the pixels: 0 is grey, 1 the purest colour everywhere."""
    channels = np.asarray(picture, dtype=np.float32) / 255  # (height, width, 3)
    return float((channels.max(2) - channels.min(2)).mean())


def nearest(pictures: list[Image.Image], known: list[Image.Image]) -> list[int]:
    """Which of the known pictures is nearest to each picture."""
    points = _points(known)
    return [int(((points - point) ** 2).sum(1).argmin()) for point in _points(pictures)]


def _points(pictures: list[Image.Image]) -> np.ndarray:
    small = [picture.convert("RGB").resize((16, 16), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(picture, dtype=np.float32).ravel() for picture in small])  # (n, 16·16·3)


def read_drawings(folder: Path) -> dict[str, Image.Image]:
    """The line drawings by thing."""
    source = find_source([str(folder / "train.tsv"), str(folder / "heldout.tsv")], caption_separator="|")
    return {row["idx"].split("/")[1]: open_picture(row["picture"]) for row in source.rows()}


def paint(model: str | Path, questions: Questions) -> Pictures:
    """One picture of each caption with seed 0."""
    pipe = PaiPainterPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    painted: Pictures = {kind: [] for kind in KINDS}
    for kind in KINDS:
        captions = [question["caption"] for question in questions[kind]]
        for start in range(0, len(captions), BATCH):
            painted[kind] += pipe(captions[start : start + BATCH], seed=0).images
    return painted


def tabulate(questions: Questions, drawings: dict[str, Image.Image], before: Pictures, after: Pictures) -> Table:
    """How many pictures of each kind are without colour, and how many are right."""
    table = Table("captions", "pictures", "before", "after")
    hexcodes = list(drawings)
    for kind, title in KINDS.items():
        things = [question["thing"] for question in questions[kind]]
        grey, right = [], []
        for painted in (before[kind], after[kind]):
            grey.append(sum(colourfulness(picture) < GREY_BELOW for picture in painted))
            if kind in PLAIN:
                right.append(sum(found == place for place, found in enumerate(nearest(painted, before[kind]))))
            else:
                found = nearest(painted, list(drawings.values()))
                right.append(sum(hexcodes[place] == thing for place, thing in zip(found, things, strict=True)))
        table.add_row(title, "without colour", *(f"{count} of {len(things)}" for count in grey))
        table.add_row(
            "", "as before" if kind in PLAIN else "the right drawing", *(f"{n} of {len(things)}" for n in right)
        )
    return table


def draw(questions: Questions, drawings: dict[str, Image.Image], before: Pictures, after: Pictures) -> Image.Image:
    """The first captions of each kind: what was painted before, what after, and the set's own drawing."""
    shown = [(kind, place) for kind, places in SHOWN.items() for place in places if place < len(questions[kind])]
    asked = [questions[kind][place] for kind, place in shown]
    rows = [
        [before[kind][place] for kind, place in shown],
        [after[kind][place] for kind, place in shown],
        [drawings[question["thing"]] for question in asked],
    ]
    return draw_grid(
        [picture for row in rows for picture in row],
        cell_size=112,
        row_labels=["微调前", "微调后", "原图"],
        column_labels=[question["caption"] for question in asked],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Paints the same captions before and after fine-tuning.")
    parser.add_argument("--before", default=DEMO_MODEL)
    parser.add_argument("--after", required=True)
    parser.add_argument("--data", type=Path, default=HERE, help="folder of train.tsv, heldout.tsv, evaluation.json")
    parser.add_argument("--output", type=Path, help=".png for the grid; none is drawn without it")
    parser.add_argument("--limit", type=int, help="ask for the first so many captions of each kind only")
    arguments = parser.parse_args()
    questions = json.loads((arguments.data / "evaluation.json").read_text(encoding="utf-8"))
    questions = {kind: questions[kind][: arguments.limit] for kind in KINDS}
    drawings = read_drawings(arguments.data)
    before, after = paint(arguments.before, questions), paint(arguments.after, questions)
    Console(width=100).print(tabulate(questions, drawings, before, after))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        draw(questions, drawings, before, after).save(arguments.output, optimize=True)
        print(f"The pictures: {arguments.output}")


if __name__ == "__main__":
    main()
