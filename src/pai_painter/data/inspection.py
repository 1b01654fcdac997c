# SPDX-License-Identifier: Apache-2.0
"""What a source of captions and pictures holds, found in one pass: what `pai-painter inspect` does."""

import os
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from ..imaging.grids import draw_grid
from ..model.processing_pai_painter import PaiPainterProcessor
from .picture_rows import DataSource, PictureRow
from .pictures import BadPicture, open_picture, picture_format
from .repeated_ids import RepeatedIds
from .tsv import BadRow

__all__ = ["Inspection", "Reason", "Spread", "inspect_rows"]

_THUMBNAIL = 160  # pixels: what a contact sheet shows of a picture
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_MOST_REASONS = 1000


class Spread:
    """How whole numbers are distributed; memory grows with the number of different ones, not with their count."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Takes one more number."""
        self.counts[value] += 1

    @property
    def total(self) -> int:
        """How many numbers there were."""
        return self.counts.total()

    def quantile(self, share: float) -> int:
        """
        The smallest of the numbers that at least this share of all doesn't exceed: 0 gives the smallest, 1 the largest.

        Raises:
            ValueError: if there was none.
        """
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= share * self.total:
                return value
        raise ValueError("There is no number to be ranked.")

    def below(self, limit: int) -> int:
        """How many of the numbers are smaller than this."""
        return sum(count for value, count in self.counts.items() if value < limit)


@dataclass
class Reason:
    """
    Args:
        first ([`~data.tsv.BadRow`]): The first row that can't be used for this reason.
        count (`int`): How many there are.
    """

    first: BadRow
    count: int = 0


@dataclass
class Inspection:
    """
    Args:
        name (`str`): The source.
        text_length (`int`): Word pieces of a caption that the model reads.
        resolution (`int`): Pixels of a side that the model paints.
        rows (`int`): Rows that can be used.
        bad_rows (`int`): Rows that can't.
        reasons (`list[Reason]`): Why not, the most frequent first.
        repeated_ids (`int`): Usable rows with an id of an earlier one.
        caption_lengths ([`Spread`]): Word pieces of each caption.
        unknown (`int`): Captions with something that the vocabulary lacks.
        widths, heights, shorter_sides ([`Spread`]): Pixels of the upright pictures.
        formats (`Counter`): Formats of the picture files.
        complete (`bool`): Whether the source was read to its end.
    """

    name: str
    text_length: int
    resolution: int
    rows: int = 0
    bad_rows: int = 0
    reasons: list[Reason] = field(default_factory=list)
    repeated_ids: int = 0
    caption_lengths: Spread = field(default_factory=Spread)
    unknown: int = 0
    widths: Spread = field(default_factory=Spread)
    heights: Spread = field(default_factory=Spread)
    shorter_sides: Spread = field(default_factory=Spread)
    formats: Counter[str] = field(default_factory=Counter)
    complete: bool = True
    sample: list[tuple[int, str, Image.Image]] = field(default_factory=list)

    @property
    def cut(self) -> int:
        """Captions of which the model doesn't read the end."""
        return self.caption_lengths.total - self.caption_lengths.below(self.text_length + 1)

    @property
    def small(self) -> int:
        """Pictures that would have to be enlarged for the model."""
        return self.shorter_sides.below(self.resolution)

    def draw_contact_sheet(self) -> Image.Image:
        """
        The drawn rows in their order, each picture over its caption.

        Raises:
            ValueError: if there are no pictures.
        """
        if not self.sample:
            raise ValueError(f"{self.name} has no picture for a contact sheet.")
        _, captions, images = zip(*sorted(self.sample, key=lambda drawn: drawn[0]), strict=True)
        title = f"{os.path.basename(self.name)}: {len(images)} of {self.rows:,} rows"
        return draw_grid(images, captions, title=title, cell_size=_THUMBNAIL)


def inspect_rows(
    source: DataSource,
    processor: PaiPainterProcessor,
    *,
    text_length: int | None = None,
    max_rows: int | None = None,
    num_pictures: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Inspection:
    """
    Reads a source once. Memory doesn't grow with it, but for eight bytes a row that find repeated ids.

    Args:
        source (`DataSource`): See [`~data.sources.find_source`].
        processor ([`PaiPainterProcessor`]): Of the model that is to read the captions.
        text_length (`int`, *optional*): Word pieces that the model reads, if not what the processor says.
        max_rows (`int`, *optional*): Look at no more than the first so many rows, good and bad.
        num_pictures (`int`, *optional*, defaults to 0): Rows to draw at random for the contact sheet.
        seed (`int`, *optional*, defaults to 0): The same seed draws the same rows.
        progress (`Callable`, *optional*): Called with the number of rows read so far.

    Raises:
        ValueError: if an option is out of range, or if the source can't be read.
    """
    for name, value, least in (
        ("text_length", text_length, 1),
        ("max_rows", max_rows, 1),
        ("num_pictures", num_pictures, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}.")
    text_length = processor.text_length if text_length is None else text_length
    found = Inspection(source.name, text_length, processor.image_processor.size["shortest_edge"])
    reasons: dict[str, Reason] = {}
    ids, draw = RepeatedIds(), random.Random(seed)
    for number, row in enumerate(source.good_and_bad_rows()):
        if number == max_rows:
            found.complete = False
            break
        bad = row if isinstance(row, BadRow) else _look_at(row, found, processor, ids, num_pictures, draw)
        if bad is not None:
            found.bad_rows += 1
            _count_reason(reasons, bad)
        progress(number + 1)
    found.reasons = sorted(reasons.values(), key=lambda reason: -reason.count)
    found.repeated_ids = ids.count()
    return found


def _look_at(
    row: PictureRow,
    found: Inspection,
    processor: PaiPainterProcessor,
    ids: RepeatedIds,
    num_pictures: int,
    draw: random.Random,
) -> BadRow | None:
    """Adds a row to what was found, or says why it can't be used."""
    try:
        picture = open_picture(row.picture)
    except BadPicture as error:
        return BadRow(row.file, row.line, str(error), row.idx)
    found.formats[str(picture_format(row.picture))] += 1
    found.widths.add(picture.width)
    found.heights.add(picture.height)
    found.shorter_sides.add(min(picture.size))
    for caption in row.captions:
        pieces = processor.word_pieces(caption)
        found.caption_lengths.add(len(pieces))
        found.unknown += processor.tokenizer.unk_token in pieces[: found.text_length]
    ids.add(row.idx)
    # Each row so far is in the sample with the same probability (reservoir sampling).
    place = found.rows if found.rows < num_pictures else draw.randrange(found.rows + 1)
    if place < num_pictures:
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        drawn = (found.rows, row.captions[0], picture)
        found.sample[place : place + 1] = [drawn]
    found.rows += 1
    return None


def _count_reason(reasons: dict[str, Reason], bad: BadRow) -> None:
    """Reasons that differ only in numbers and names are one."""
    kind = _PARTICULARS.sub("…", bad.reason)
    if kind not in reasons and len(reasons) == _MOST_REASONS:
        kind = next(reversed(reasons))
    reasons.setdefault(kind, Reason(bad)).count += 1
