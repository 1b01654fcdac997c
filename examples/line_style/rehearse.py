# SPDX-License-Identifier: Apache-2.0
"""
Paints things as the model paints them now, as rows to train on beside the new drawings.

    python examples/line_style/rehearse.py --output runs/rehearsal.tsv

A model that is shown line drawings only soon draws nothing else. Its own pictures of plain captions remind it of what
they mean, and need none of the pictures that it was trained on.
"""

import argparse
import base64
import hashlib
import io
import sys
from pathlib import Path

from tqdm import tqdm

from pai_painter import DEMO_MODEL, PaiPainterPipeline

HERE = Path(__file__).resolve().parent
EMOJI = HERE.parent / "emoji"
sys.path.insert(0, str(EMOJI))  # the demo's recipe has the words

from captions import Thing, make_captions, read_things  # noqa: E402

STYLE = "线条风格"
BATCH = 20


def choose_things() -> list[Thing]:
    """First the things of train.tsv, which are not to become line drawings everywhere; then others, not held out."""
    words = read_things(EMOJI / "words.tsv")
    trained, heldout = (
        [line.split("\t")[0].split("/")[1] for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
        for name in ("train.tsv", "heldout.tsv")
    )
    others = sorted(words.keys() - {*trained, *heldout}, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [words[hexcode] for hexcode in trained + others]


def main() -> None:
    parser = argparse.ArgumentParser(description="Paints things as the model paints them now.")
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--output", type=Path, required=True, help="TSV for the rows")
    parser.add_argument("--pictures", type=int, default=480, help="how many things to paint")
    arguments = parser.parse_args()
    things = choose_things()[: arguments.pictures]
    pipe = PaiPainterPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", encoding="utf-8", newline="\n") as table:
        for start in tqdm(range(0, len(things), BATCH), unit="batch"):
            batch = things[start : start + BATCH]
            pictures = pipe([thing.label for thing in batch], seed=0).images
            for thing, picture in zip(batch, pictures, strict=True):
                png = io.BytesIO()
                picture.save(png, format="PNG")
                captions = "|".join(caption for caption in make_captions(thing, STYLE) if STYLE not in caption)
                table.write(f"rehearsal/{thing.hexcode}\t{captions}\t{base64.b64encode(png.getvalue()).decode()}\n")
    print(f"{arguments.output}: {len(things)} pictures")


if __name__ == "__main__":
    main()
