# SPDX-License-Identifier: Apache-2.0
"""Pictures side by side on a white page, each with its caption in legible Chinese."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont, ImageOps

_FONT = "imaging/fonts/pai-painter-sans.otf"
_SMALLEST_DEFAULT_CELL = 128  # pixels; 64×64 pictures are too small for the eye, and for a caption below them
_INK, _PALE_INK = (32, 32, 32), (96, 96, 96)
_ELLIPSIS = "…"


def draw_grid(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    title: str | None = None,
    cell_size: int | None = None,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """
    Draws pictures row by row into a grid on a white page, with a caption centred below each.

    A picture is scaled (Lanczos) so that its longer side fills the cell; transparent parts show the white page. Text is
    drawn on one line with the font that ships with the package (GB2312 and the vocabulary of Chinese BERT) and
    truncated with … where it is wider than its place.

    Args:
        images (`Sequence[PIL.Image.Image]`): At least one picture, of any mode and size.
        captions (`Sequence[str]`, *optional*): One for each picture.
        columns (`int`, *optional*): Cells in a row. By default as many as there are `column_labels`, or else about as
            many as rows.
        title (`str`, *optional*): A line above the grid.
        cell_size (`int`, *optional*): Side of a square cell in pixels. By default the longest side of any picture, and
            at least 128.
        row_labels, column_labels (`Sequence[str]`, *optional*): One for each row, to its left, and for each column,
            above it.

    Returns:
        `PIL.Image.Image`: the page, RGB.

    Raises:
        ValueError: if there is no picture, if a picture is empty or a size below 1, or if the numbers of captions or
            labels don't fit.
    """
    if not images:
        raise ValueError("There is no picture to draw: `images` is empty. Please give at least one.")
    if columns is None:
        columns = len(column_labels) if column_labels else math.ceil(math.sqrt(len(images)))
    for name, size in (("columns", columns), ("cell_size", cell_size)):
        if size is not None and size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1.")
    for image in images:
        if 0 in image.size:
            raise ValueError(f"A picture has {image.width}×{image.height} pixels; there is nothing to draw.")
    rows = math.ceil(len(images) / columns)
    _check_count("captions", captions, len(images), "pictures")
    _check_count("column_labels", column_labels, columns, "columns")
    _check_count("row_labels", row_labels, rows, "rows")

    cell = cell_size or max(_SMALLEST_DEFAULT_CELL, *(side for image in images for side in image.size))
    gap, text_size = max(cell // 12, 8), min(max(cell // 9, 14), 28)
    line, font, title_font = text_size * 3 // 2, _font(text_size), _font(text_size * 4 // 3)
    widest = max((font.getlength(_one_line(label)) for label in row_labels or ()), default=0)
    label_width = min(math.ceil(widest), 2 * cell)
    left = gap + (label_width + gap if label_width else 0)
    top = gap + (line * 3 // 2 if title else 0) + (line if column_labels else 0)
    across, down = cell + gap, cell + gap + (line if captions else 0)
    page = Image.new("RGB", (left + columns * across, top + rows * down), "white")
    draw = ImageDraw.Draw(page)

    def write(text: str, place: tuple[int, int], width: int, ink: tuple[int, int, int], anchor: str = "mm") -> None:
        draw.text(place, _fitted(text, font, width), ink, font, anchor=anchor)

    if title:
        place = (page.width // 2, gap + line * 3 // 4)
        draw.text(place, _fitted(title, title_font, page.width - 2 * gap), _INK, title_font, anchor="mm")
    for index, image in enumerate(images):
        x, y = left + index % columns * across, top + index // columns * down
        _paste(page, image, (x, y), cell)
        if captions:
            write(captions[index], (x + cell // 2, y + cell + line // 2), cell, _INK)
    for column, label in enumerate(column_labels or ()):
        write(label, (left + column * across + cell // 2, top - line // 2), cell, _PALE_INK)
    for row, label in enumerate(row_labels or ()):
        write(label, (left - gap, top + row * down + cell // 2), label_width, _PALE_INK, "rm")
    return page


def _check_count(name: str, texts: Sequence[str] | None, count: int, things: str) -> None:
    if isinstance(texts, str):  # a string is a sequence of characters, hardly what was meant
        raise ValueError(f"{name} is one string; please give a list of {count}, one for each of the {things}.")
    if texts is not None and len(texts) != count:
        raise ValueError(f"There are {len(texts)} {name} for {count} {things}; please give one for each.")


def _paste(page: Image.Image, image: Image.Image, corner: tuple[int, int], cell: int) -> None:
    """Scales `image` into the cell at `corner`, centred there."""
    picture = ImageOps.contain(image.convert("RGBA"), (cell, cell), Image.Resampling.LANCZOS)
    place = (corner[0] + (cell - picture.width) // 2, corner[1] + (cell - picture.height) // 2)
    page.paste(picture, place, mask=picture)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    data = (files("pai_painter") / _FONT).read_bytes()
    # The basic layout draws the same pixels whether or not this Pillow was built with Raqm.
    return ImageFont.truetype(BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` on one line, truncated with … to at most `width` pixels; empty if not even … fits."""
    text = _one_line(text)
    if len(text) <= width and font.getlength(text) <= width:
        return text
    most = min(len(text), width)  # a glyph is at least one pixel wide
    fitting = bisect_right(
        range(most + 1), width, key=lambda length: math.ceil(font.getlength(text[:length].rstrip() + _ELLIPSIS))
    )
    return text[: fitting - 1].rstrip() + _ELLIPSIS if fitting else ""
