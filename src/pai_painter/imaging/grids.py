# SPDX-License-Identifier: Apache-2.0
"""Pictures side by side on a white page, each with its caption in legible Chinese."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

FONT_FILE = "pai-painter-sans.otf"
SMALLEST_DEFAULT_CELL = 128  # pixels; 64x64 pictures are too small for the eye, and for a caption below them

_PAGE = (255, 255, 255)
_INK = (32, 32, 32)
_PALE_INK = (96, 96, 96)
_ELLIPSIS = "…"


@dataclass(frozen=True)
class _Layout:
    """Where things stand on the page, in pixels: it follows from the cell's size and from what is shown."""

    columns: int
    rows: int
    cell: int
    title: bool
    captions: bool
    column_labels: bool
    row_label_width: int

    @property
    def text_size(self) -> int:
        return _text_size(self.cell)

    @property
    def gap(self) -> int:
        return max(self.cell // 12, 8)

    @property
    def line(self) -> int:
        """Height of one line of text with its spacing."""
        return self.text_size * 3 // 2

    @property
    def left(self) -> int:
        return self.gap + (self.row_label_width + self.gap if self.row_label_width else 0)

    @property
    def title_height(self) -> int:
        return self.line * 3 // 2 if self.title else 0

    @property
    def top(self) -> int:
        return self.gap + self.title_height + (self.line if self.column_labels else 0)

    @property
    def pitch(self) -> tuple[int, int]:
        """From one cell's corner to the next one's, across and down."""
        return self.cell + self.gap, self.cell + self.gap + (self.line if self.captions else 0)

    @property
    def page(self) -> tuple[int, int]:
        across, down = self.pitch
        return self.left + self.columns * across, self.top + self.rows * down

    def corner(self, index: int) -> tuple[int, int]:
        """Top left corner of cell `index`, counted row by row."""
        across, down = self.pitch
        return self.left + index % self.columns * across, self.top + index // self.columns * down


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
    Draw pictures row by row into a grid on a white page, with a caption centred below each.

    A picture is scaled (Lanczos) so that its longer side fills the cell: small pictures are enlarged for the
    eye, large ones reduced; the grid is for looking at, not for measuring pixels. Transparent parts show the
    white page. The text is drawn on one line with the font that ships with the package (GB2312 and the
    vocabulary of Chinese BERT), cut with … where it is wider than its place; a character that the font lacks
    is drawn as a box.

    Args:
        images (`Sequence[PIL.Image.Image]`):
            At least one picture, of any mode and size.
        captions (`Sequence[str]`, *optional*):
            One caption for each picture; an empty one leaves its place white.
        columns (`int`, *optional*):
            Cells in a row. By default as many as there are `column_labels`, or else about as many as rows.
        title (`str`, *optional*):
            A line above the grid.
        cell_size (`int`, *optional*):
            Side of a square cell in pixels. By default the longest side of any picture, and at least 128.
        row_labels (`Sequence[str]`, *optional*):
            One label for each row, to its left.
        column_labels (`Sequence[str]`, *optional*):
            One label for each column, above it.

    Returns:
        `PIL.Image.Image`: the page, RGB.

    Raises:
        `ValueError`: if there is no picture, if a picture is empty or a size below 1, or if the numbers of
            captions or labels don't fit.
    """
    columns = _checked_columns(len(images), columns, column_labels)
    rows = math.ceil(len(images) / columns)
    _check_count("captions", captions, len(images), "pictures")
    for index, image in enumerate(images):
        if min(image.size) == 0:
            raise ValueError(f"Picture {index} is {image.width}x{image.height} pixels; there is nothing to draw.")
    _check_count("row_labels", row_labels, rows, "rows")
    if cell_size is None:
        cell_size = max(SMALLEST_DEFAULT_CELL, *(side for image in images for side in image.size))
    elif cell_size < 1:
        raise ValueError(f"cell_size is {cell_size}; it must be a number of pixels of at least 1.")

    layout = _Layout(
        columns,
        rows,
        cell_size,
        title=bool(title),
        captions=bool(captions),
        column_labels=bool(column_labels),
        row_label_width=_row_label_width(row_labels, cell_size),
    )

    page = Image.new("RGB", layout.page, _PAGE)
    for index, image in enumerate(images):
        _paste(page, image, layout.corner(index), cell_size)
    _write_texts(ImageDraw.Draw(page), layout, title, captions, row_labels, column_labels)
    return page


def _checked_columns(count: int, columns: int | None, column_labels: Sequence[str] | None) -> int:
    if count == 0:
        raise ValueError("There is no picture to draw: `images` is empty. Please give at least one.")
    if columns is None:
        columns = len(column_labels) if column_labels else math.ceil(math.sqrt(count))
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1.")
    _check_count("column_labels", column_labels, columns, "columns")
    return columns


def _check_count(name: str, texts: Sequence[str] | None, count: int, things: str) -> None:
    if isinstance(texts, str):  # a string is a sequence of characters, hardly what was meant
        raise ValueError(f"{name} is one string; please give a list of {count}, one for each of the {things}.")
    if texts is not None and len(texts) != count:
        raise ValueError(f"There are {len(texts)} {name} for {count} {things}; please give one for each.")


def _text_size(cell: int) -> int:
    return min(max(cell // 9, 14), 28)


def _row_label_width(row_labels: Sequence[str] | None, cell: int) -> int:
    """Pixels that the widest row label takes, at most two cells."""
    font = _font(_text_size(cell))
    widest = max((font.getlength(_one_line(label)) for label in row_labels or ()), default=0)
    return min(math.ceil(widest), 2 * cell)


def _paste(page: Image.Image, image: Image.Image, corner: tuple[int, int], cell: int) -> None:
    """Scale `image` into the cell at `corner`, centred there."""
    picture = image.convert("RGBA")
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    place = (corner[0] + (cell - size[0]) // 2, corner[1] + (cell - size[1]) // 2)
    page.paste(picture, place, mask=picture)


def _write_texts(
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    title: str | None,
    captions: Sequence[str] | None,
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
) -> None:
    font, title_font = _font(layout.text_size), _font(layout.text_size * 4 // 3)
    half_cell, half_line = layout.cell // 2, layout.line // 2
    if title:
        width = layout.page[0] - 2 * layout.gap
        place = (layout.page[0] // 2, layout.gap + layout.title_height // 2)
        draw.text(place, _fitted(title, title_font, width), _INK, title_font, anchor="mm")
    for index, caption in enumerate(captions or ()):
        x, y = layout.corner(index)
        place = (x + half_cell, y + layout.cell + half_line)
        draw.text(place, _fitted(caption, font, layout.cell), _INK, font, anchor="mm")
    for column, label in enumerate(column_labels or ()):
        place = (layout.corner(column)[0] + half_cell, layout.top - half_line)
        draw.text(place, _fitted(label, font, layout.cell), _PALE_INK, font, anchor="mm")
    for row, label in enumerate(row_labels or ()):
        place = (layout.left - layout.gap, layout.corner(row * layout.columns)[1] + half_cell)
        draw.text(place, _fitted(label, font, layout.row_label_width), _PALE_INK, font, anchor="rm")


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    data = (files("pai_painter") / "fonts" / FONT_FILE).read_bytes()
    # The basic layout draws the same pixels whether or not this Pillow was built with Raqm.
    return ImageFont.truetype(BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


def _one_line(text: str) -> str:
    """`text` with every run of white space, line breaks included, as one blank."""
    return " ".join(text.split())


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` on one line, cut with … so that it is at most `width` pixels wide; empty if not even … fits."""
    text = _one_line(text)
    if len(text) <= width and font.getlength(text) <= width:
        return text
    low, high = 0, min(len(text), width)  # a glyph is at least one pixel wide, so more characters never fit
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + _ELLIPSIS) <= width:
            low = middle
        else:
            high = middle - 1
    cut = text[:low].rstrip() + _ELLIPSIS
    return cut if font.getlength(cut) <= width else ""
