# SPDX-License-Identifier: Apache-2.0
"""What a source of captions and pictures holds, found in one pass: what `pai-painter inspect` does."""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..model.processing_pai_painter import PaiPainterProcessor
from .open_picture import BadPicture, open_picture, picture_format
from .sources import DataSource
from .table_files import BadRow

__all__ = ["Inspection", "Spread", "inspect_rows"]

_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_MOST_REASONS = 1000


class Spread(Counter[int]):
    """How often each whole number occurs; memory grows with the different ones, not with their count."""

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of all doesn't exceed: 0 gives the smallest, 1 the largest."""
        seen = 0
        for value in sorted(self):
            seen += self[value]
            if seen >= share * self.total():
                return value
        raise ValueError("There is no number to be ranked.")

    def below(self, limit: int) -> int:
        """How many of the numbers are smaller than this."""
        return sum(count for value, count in self.items() if value < limit)


@dataclass
class Inspection:
    """
    Args:
        name (`str`): The source.
        text_length (`int`): Word pieces of a caption that the model reads; `cut` captions are longer.
        resolution (`int`): Pixels of a side that the model paints; `small` pictures have to be enlarged.
        rows, bad_rows (`int`): Rows that can be used, and that can't.
        reasons (`Counter`): Why not; reasons that differ only in numbers and names are one.
        examples (`dict[str, BadRow]`): The first row of each reason.
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
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, BadRow] = field(default_factory=dict)
    repeated_ids: int = 0
    caption_lengths: Spread = field(default_factory=Spread)
    unknown: int = 0
    widths: Spread = field(default_factory=Spread)
    heights: Spread = field(default_factory=Spread)
    shorter_sides: Spread = field(default_factory=Spread)
    formats: Counter[str] = field(default_factory=Counter)
    complete: bool = True

    @property
    def cut(self) -> int:
        return self.caption_lengths.total() - self.caption_lengths.below(self.text_length + 1)

    @property
    def small(self) -> int:
        return self.shorter_sides.below(self.resolution)


def inspect_rows(
    source: DataSource,
    processor: PaiPainterProcessor,
    text_length: int | None = None,
    max_rows: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Inspection:
    """
    Reads a source once. Memory doesn't grow with it, but for the hashes of the ids that find repeated ones.

    Args:
        source (`DataSource`): See [`~data.sources.find_source`].
        processor ([`PaiPainterProcessor`]): Of the model that is to read the captions.
        text_length (`int`, *optional*): Word pieces that the model reads, if not what the processor says.
        max_rows (`int`, *optional*): Look at no more than the first so many rows, good and bad.
        progress (`Callable`, *optional*): Called with the number of rows read so far.

    Raises:
        ValueError: if an option is out of range, or if the source can't be read.
    """
    for name, value in (("text_length", text_length), ("max_rows", max_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1.")
    found = Inspection(
        source.name, text_length or processor.text_length, processor.image_processor.size["shortest_edge"]
    )
    ids = array("Q")  # hashes of 64 bits: millions of rows have long ids
    for number, row in enumerate(map(source.read, source.records())):
        if number == max_rows:
            found.complete = False
            break
        if row["reason"] is None:
            _look_at(row, found, processor)
        if row["reason"] is None:
            found.rows += 1
            ids.append(int.from_bytes(hashlib.blake2b(row["idx"].encode(), digest_size=8).digest(), "big"))
        else:
            found.bad_rows += 1
            kind = _PARTICULARS.sub("…", row["reason"])
            if kind not in found.reasons and len(found.reasons) == _MOST_REASONS:
                kind = next(reversed(found.reasons))
            found.reasons[kind] += 1
            found.examples.setdefault(kind, source.bad_row(row))
        progress(number + 1)
    found.repeated_ids = found.rows - len(np.unique(np.array(ids, dtype=np.uint64)))
    return found


def _look_at(row: dict[str, Any], found: Inspection, processor: PaiPainterProcessor) -> None:
    """Adds a row to what was found, or says why it can't be used."""
    try:
        picture = open_picture(row["picture"])
    except BadPicture as error:
        row["reason"] = str(error)
        return
    found.formats[str(picture_format(row["picture"]))] += 1
    found.widths[picture.width] += 1
    found.heights[picture.height] += 1
    found.shorter_sides[min(picture.size)] += 1
    for caption in row["captions"]:
        pieces = processor.word_pieces(caption)
        found.caption_lengths[len(pieces)] += 1
        found.unknown += processor.tokenizer.unk_token in pieces[: found.text_length]
