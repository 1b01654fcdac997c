# SPDX-License-Identifier: Apache-2.0
"""
Measures the demo model, prints a table and draws what it paints.

    python examples/emoji/evaluate.py --output docs/images

A painted picture is right if the nearest of all pictures in the dataset (16×16 RGB, squared distance) shows the thing
in the caption. Judge the everyday captions by eye: see the grid.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from pai_painter import DEMO_MODEL, PaiPainterPipeline
from pai_painter.data.open_picture import open_picture
from pai_painter.data.row_cache import load_rows
from pai_painter.data.sources import find_source
from pai_painter.imaging.grids import draw_grid
from pai_painter.training.train_vqgan import validate_vqgan

DATA = Path(__file__).parent / "data"


@dataclass
class Gallery:
    """All pictures of the dataset as points, (n, 16·16·3) in 0…255, and what each shows."""

    points: np.ndarray
    things: list[str]
    pictures: dict[str, Image.Image]

    @classmethod
    def load(cls, data: Path) -> "Gallery":
        """Reads train.tsv and heldout.tsv."""
        pictures = {}
        for name in ("train.tsv", "heldout.tsv"):
            for row in _rows(data / name):
                pictures[row["idx"]] = open_picture(row["picture"])
        things = [idx.split("/")[1] for idx in pictures]
        return cls(np.stack([_point(picture) for picture in pictures.values()]), things, pictures)

    def nearest_thing(self, picture: Image.Image) -> str:
        """What the nearest picture shows."""
        return self.things[int(((self.points - _point(picture)) ** 2).sum(1).argmin())]


def _rows(path: Path) -> datasets.Dataset:
    return load_rows(find_source([path], caption_separator="|"))


def _point(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel()


def paint(pipe: PaiPainterPipeline, captions: list[str], settings: dict, batch: int = 25) -> tuple[list, list[float]]:
    """One picture of each caption with seed 0, and its score."""
    images, scores = [], []
    for start in range(0, len(captions), batch):
        output = pipe(captions[start : start + batch], seed=0, **settings)
        images += output.images
        scores += [float(score) for score in output.scores]
    return images, scores


def hits(gallery: Gallery, images: list, things: list[str]) -> list[bool]:
    """Which pictures show what they should."""
    return [gallery.nearest_thing(image) == thing for image, thing in zip(images, things, strict=True)]


def draw_reconstructions(pipe: PaiPainterPipeline, gallery: Gallery, idxs: list[str]) -> Image.Image:
    """Held-out pictures beside what the VQGAN makes of them."""
    originals = [gallery.pictures[idx] for idx in idxs]
    images = pipe.processor.image_processor
    with torch.no_grad():
        painted = pipe.model.vqgan(images(originals, return_tensors="pt")["pixel_values"]).pixel_values
    pairs = zip(originals, images.postprocess(painted, output_type="pil"), strict=True)
    shown = [picture for pair in pairs for picture in pair]
    return draw_grid(shown, captions=["原图", "编解码后"] * len(originals), columns=12, cell_size=96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--output", type=Path, help="folder for the grids; none are drawn without it")
    parser.add_argument("--temperature", type=float, help="instead of the model's recommendation, like the next three")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--best-of", type=int)
    arguments = parser.parse_args()
    names = ("temperature", "top_k", "top_p", "best_of")
    settings = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}

    pipe = PaiPainterPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    gallery = Gallery.load(arguments.data)
    questions = json.loads((arguments.data / "evaluation.json").read_text(encoding="utf-8"))
    table = Table("metric", "value")
    vqgan = validate_vqgan(
        pipe.model.vqgan,
        _rows(arguments.data / "heldout.tsv"),
        pipe.processor.image_processor,
    )
    table.add_row("VQGAN: PSNR of held-out pictures", f"{vqgan['psnr']:.2f} dB")
    everything = validate_vqgan(
        pipe.model.vqgan,
        _rows(arguments.data / "train.tsv"),
        pipe.processor.image_processor,
    )
    table.add_row("VQGAN: PSNR of trained pictures", f"{everything['psnr']:.2f} dB")
    table.add_row("VQGAN: codebook entries in use", f"{100 * everything['codes_used']:.1f} %")
    table.add_row("VQGAN: codebook perplexity", f"{everything['perplexity']:.0f}")

    grids = {}
    asked = {
        "trained labels": [(q["caption"], q["thing"]) for q in questions["trained"]],
        "held-out pairs": [(q["caption"], q["thing"]) for q in questions["heldout"]],
        "held-out pairs, label only": [(q["label"], q["thing"]) for q in questions["heldout"]],
        "everyday captions (by this metric)": [(q["caption"], q["thing"]) for q in questions["everyday"]],
    }
    for name, pairs in asked.items():
        captions, things = [list(each) for each in zip(*pairs, strict=True)]
        images, scores = paint(pipe, captions, settings)
        right = hits(gallery, images, things)
        table.add_row(f"right thing: {name}", f"{sum(right)} of {len(right)}")
        sure = [hit for hit, score in zip(right, scores, strict=True) if score > -0.1]
        table.add_row("  of those with a score above -0.1", f"{sum(sure)} of {len(sure)}")
        grids[name] = (images, captions)
    Console(width=100).print(table)

    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        images, captions = grids["everyday captions (by this metric)"]
        draw_grid(images, captions=captions, columns=8).save(arguments.output / "everyday.png", optimize=True)
        images, captions = grids["held-out pairs"]
        draw_grid(images[:40], captions=captions[:40], columns=8).save(arguments.output / "heldout.png", optimize=True)
        idxs = [f"{q['set']}/{q['thing']}" for q in questions["heldout"][:36]]
        draw_reconstructions(pipe, gallery, idxs).save(arguments.output / "reconstructions.png", optimize=True)
        print(f"Grids: {arguments.output}/everyday.png, heldout.png, reconstructions.png")


if __name__ == "__main__":
    main()
