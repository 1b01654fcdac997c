# SPDX-License-Identifier: Apache-2.0
"""What a source of captions and pictures holds, found in one pass: what `pai-painter inspect` does."""

import re
from array import array
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from ..model.processing_pai_painter import PaiPainterProcessor
from .open_picture import picture_format
from .sources import DataSource, open_row

_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_SHOWN_REASONS = 5


def inspect_rows(
    source: DataSource, processor: PaiPainterProcessor, text_length: int | None = None, max_rows: int | None = None
) -> list[tuple[str, str]]:
    """
    Reads a source once, with a few numbers per row in memory. What it finds are names and values, to be shown. Reasons
    of bad rows that differ only in numbers and names are one.

    Args:
        processor: of the model that is to read the captions.
        text_length: word pieces that the model reads, if not what the processor says.
        max_rows: look at no more than the first so many rows, good and bad.
    """
    for name, value in (("text_length", text_length), ("max_rows", max_rows)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1.")
    text_length, side = text_length or processor.text_length, processor.image_processor.size["shortest_edge"]
    reasons, formats, unknown = Counter[str](), Counter[str](), 0
    first: dict[str, dict[str, Any]] = {}
    ids, lengths, widths, heights = array("q"), array("I"), array("I"), array("I")
    rows = source.rows()
    for row in tqdm(islice(rows, max_rows), unit=" rows", disable=None, leave=False):
        picture = open_row(row)
        if picture is None:
            reason = _PARTICULARS.sub("…", row["reason"])
            reasons[reason] += 1
            first.setdefault(reason, source.bad_row(row))
            continue
        ids.append(hash(row["idx"]))
        formats[str(picture_format(row["picture"]))] += 1
        widths.append(picture.width)
        heights.append(picture.height)
        for pieces in map(processor.word_pieces, row["captions"]):
            lengths.append(len(pieces))
            unknown += processor.tokenizer.unk_token in pieces[:text_length]
    note = "" if next(rows, None) is None else " (only the first rows were checked)"
    facts = [("rows", f"{len(ids):,}{note}"), ("bad rows", f"{reasons.total():,}")]
    for reason, count in reasons.most_common(_SHOWN_REASONS):
        facts.append(("", "{:,} × {reason} (first: {file}, line {line})".format(count, **first[reason])))
    if len(reasons) > _SHOWN_REASONS:
        facts.append(("", f"and {len(reasons) - _SHOWN_REASONS} other reasons"))
    if ids:
        facts += [
            ("repeated ids", f"{len(ids) - len(np.unique(ids)):,}"),
            ("captions", f"{len(lengths):,}"),
            ("word pieces per caption", _spread(lengths)),
            (f"truncated at {text_length}", f"{(np.array(lengths) > text_length).sum():,}"),
            ("with unknown words", f"{unknown:,}"),
            ("widths in pixels", _spread(widths)),
            ("heights in pixels", _spread(heights)),
            (f"with a side below {side} pixels", f"{(np.minimum(widths, heights) < side).sum():,}"),
            ("formats", ", ".join(f"{name} {count:,}" for name, count in formats.most_common())),
        ]
    return facts


def _spread(numbers: "array[int]") -> str:
    smallest, median, most, largest = np.quantile(numbers, (0, 0.5, 0.95, 1), method="inverted_cdf")
    return f"{smallest} to {largest}, median {median}, 95 % up to {most}"
