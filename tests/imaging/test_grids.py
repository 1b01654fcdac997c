# SPDX-License-Identifier: Apache-2.0
"""A grid has the size its cells ask for, and its texts are ink in the right places."""

import numpy as np
import pytest
from PIL import Image, ImageChops

from pai_painter.imaging.grids import _font, draw_grid


def square(size: int = 64, color: tuple[int, int, int] = (200, 30, 30)) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def ink(page: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Dark pixels inside (left, top, right, bottom)."""
    return int((np.asarray(page.crop(box).convert("L")) < 128).sum())


def difference(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int] | None:
    return ImageChops.difference(one, other).getbbox()


def test_small_pictures_are_enlarged_to_128_and_larger_ones_set_the_cell() -> None:
    small, large = draw_grid([square(64)]), draw_grid([square(64), square(300)], columns=2)
    red = (np.asarray(small) == (200, 30, 30)).all(axis=2)
    assert red.sum() == 128 * 128
    assert (np.asarray(large) == (200, 30, 30)).all(axis=2).sum() == 2 * 300 * 300


def test_cell_size_and_columns_decide_the_size_of_the_page() -> None:
    one, six = draw_grid([square()], cell_size=96), draw_grid([square()] * 6, columns=3, cell_size=96)
    gap = 8
    assert one.size == (96 + 2 * gap, 96 + 2 * gap)
    assert six.size == (3 * (96 + gap) + gap, 2 * (96 + gap) + gap)
    assert draw_grid([square()] * 6, columns=2, cell_size=96).size == six.size[::-1]
    assert draw_grid([square()] * 9, cell_size=96).size == (3 * (96 + gap) + gap,) * 2


def test_the_aspect_ratio_is_kept() -> None:
    page = np.asarray(draw_grid([Image.new("RGB", (64, 32), (0, 0, 255))], cell_size=128))
    rows, columns = np.where((page == (0, 0, 255)).all(axis=2))
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (128, 64)


def test_transparent_parts_show_the_white_page() -> None:
    clear = draw_grid([Image.new("RGBA", (64, 64), (255, 0, 0, 0))])
    assert clear.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_any_mode_is_drawn(mode: str) -> None:
    assert draw_grid([square().convert(mode)]).mode == "RGB"


def test_a_caption_is_ink_below_its_own_cell_and_centred() -> None:
    pictures = [square(128, (255, 255, 255))] * 2
    page = draw_grid(pictures, ["红苹果", ""], columns=2)
    width, height = page.size
    below = height - 128 // 9 * 3 // 2 - 10
    assert ink(page, (0, below, width // 2, height)) > 40
    assert ink(page, (width // 2, below, width, height)) == 0
    assert ink(page, (0, 0, width, 10 + 128)) == 0
    left, _, right, _ = difference(page, draw_grid(pictures, ["", " "], columns=2)) or (0, 0, 0, 0)
    assert abs((left + right) / 2 - (10 + 64)) <= 2


def test_different_captions_are_different_pixels() -> None:
    pages = [draw_grid([square()], [caption]) for caption in ("熊猫", "汽车", "猫熊", "熊貓")]
    assert len({page.tobytes() for page in pages}) == 4
    assert len({page.size for page in pages}) == 1


def test_a_long_caption_is_cut_to_its_cell() -> None:
    pictures = [square(128, (255, 255, 255))] * 2
    page = draw_grid(pictures, ["宽松T恤纯棉夏季新款" * 20, ""], columns=2)
    box = difference(page, draw_grid(pictures, ["", " "], columns=2))
    assert box is not None
    assert box[0] >= 10
    assert box[2] <= 10 + 128
    same_start = draw_grid(pictures, ["宽松T恤纯棉夏季新款" * 30, ""], columns=2)
    assert difference(page, same_start) is None  # the ends differ where neither is shown


def test_a_very_long_caption_takes_no_time() -> None:
    assert draw_grid([square()], ["红" * 1_000_000]).size == draw_grid([square()], ["红"]).size


def test_characters_that_the_font_lacks_are_drawn_as_boxes() -> None:
    empty, panda, rocket = (draw_grid([square()], [caption]) for caption in (" ", "🐼", "🚀"))
    assert difference(empty, panda) is not None
    assert difference(panda, rocket) is None  # the same box for both
    draw_grid([square()], ["👩‍🔬 \x00 \ud83d مرحبا"])  # joined emoji, control characters, half a surrogate pair


def test_line_breaks_in_a_caption_are_blanks() -> None:
    assert difference(draw_grid([square()], ["红\n\t苹果"]), draw_grid([square()], ["红 苹果"])) is None


def test_every_character_of_gb2312_has_a_glyph_of_its_own() -> None:
    font = _font(16)
    box = bytes(font.getmask("🐼"))
    hanzi = [bytes([row, cell]).decode("gb2312", "ignore") for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF)]
    missing = [c for c in hanzi if c and bytes(font.getmask(c)) == box]
    assert sum(map(len, hanzi)) == 6763
    assert not missing


def test_title_and_labels_make_room_for_themselves() -> None:
    pictures = [square(128, (255, 255, 255))] * 4
    bare = draw_grid(pictures, columns=2)
    assert ink(bare, (0, 0, *bare.size)) == 0
    titled = draw_grid(pictures, columns=2, title="演示模型")
    assert titled.width == bare.width
    assert titled.height > bare.height
    assert ink(titled, (0, 0, titled.width, titled.height - bare.height + 10)) > 40
    rows = draw_grid(pictures, columns=2, row_labels=["训练", "测试"])
    assert rows.height == bare.height
    assert ink(rows, (0, 0, rows.width - bare.width + 10, rows.height)) > 40
    columns = draw_grid(pictures, column_labels=["原图", "重建"])
    assert columns.width == bare.width
    assert ink(columns, (0, 0, columns.width // 2, columns.height - bare.height + 10)) > 20
    assert ink(columns, (columns.width // 2, 0, columns.width, columns.height - bare.height + 10)) > 20


def test_the_same_arguments_give_the_same_pixels() -> None:
    assert difference(draw_grid([square()], ["红苹果"]), draw_grid([square()], ["红苹果"])) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": []}, "`images` is empty"),
        ({"captions": ["一", "二", "三"]}, "3 captions for 2 pictures"),
        ({"captions": "红苹"}, "captions is one string"),
        ({"columns": 0}, "columns is 0"),
        ({"columns": 3, "column_labels": ["一", "二"]}, "2 column_labels for 3 columns"),
        ({"columns": 1, "row_labels": ["一"]}, "1 row_labels for 2 rows"),
        ({"cell_size": 0}, "cell_size is 0"),
        ({"images": [Image.new("RGB", (0, 5))]}, "A picture has 0×5 pixels"),
    ],
)
def test_errors_say_what_came(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw_grid(**{"images": [square(), square()], **arguments})  # type: ignore[arg-type]
