# SPDX-License-Identifier: Apache-2.0
"""A page on which captions are painted, for a Space on the Hub."""

import os
import tempfile
from functools import cache
from pathlib import Path

from pai_painter import DEMO_MODEL, PaiPainterPipeline
from pai_painter.imaging.painting import PaintingOptions, paint_files, random_seed

MODEL = os.environ.get("PAI_PAINTER_MODEL")
REVISION = os.environ.get("PAI_PAINTER_REVISION", "main")
PICTURES = Path(tempfile.mkdtemp())


@cache
def painter() -> PaiPainterPipeline:
    """The model, loaded once."""
    return PaiPainterPipeline.from_pretrained(MODEL or DEMO_MODEL, revision=REVISION)


def paint(caption: str, seed: int | None) -> str:
    """Paints as `pai-painter paint` does, and gives the path of a PNG that says how it was made."""
    name, options = MODEL or "the demo model of pai-painter", PaintingOptions.for_model(painter())
    seed = random_seed() if seed is None else seed
    (picture,) = paint_files(painter(), [caption], 1, seed, options, PICTURES, None, name, force=True)
    return str(picture.path)


if __name__ == "__main__":
    import gradio

    gradio.Interface(
        paint,
        [gradio.Textbox("红苹果", label="Caption"), gradio.Number(label="Seed; empty for a new one", precision=0)],
        gradio.Image(type="filepath", format="png", label="Picture"),
        title="PAI-Painter",
        flagging_mode="never",
        analytics_enabled=False,
    ).launch(show_error=True)
