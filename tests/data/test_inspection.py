# SPDX-License-Identifier: Apache-2.0
"""What a source holds, counted by hand."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from pai_painter import PaiPainterProcessor
from pai_painter.data.inspection import Inspection, Spread, inspect_rows
from pai_painter.data.sources import find_source

SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"


@pytest.fixture(scope="module")
def processor(tiny_painter: Path) -> PaiPainterProcessor:
    """Captions of 8 word pieces, pictures of 16 × 16 pixels."""
    return PaiPainterProcessor.from_pretrained(tiny_painter)


def picture(color: int, size: tuple[int, int] = (16, 16), format: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(file, format)
    return base64.b64encode(file.getvalue()).decode()


def inspect(path: Path, processor: PaiPainterProcessor, lines: list[str], **options) -> Inspection:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    separator = options.pop("caption_separator", None)
    source = find_source([str(path)], input_schema=SCHEMA, caption_separator=separator)
    return inspect_rows(source, processor, **options)


def test_everything_is_counted(tmp_path, processor) -> None:
    lines = [
        f"a\t红苹果\t{picture(1, (20, 30))}",
        f"b\t{'红' * 8}\t{picture(2, (16, 16))}",
        f"a\t{'红' * 9}\t{picture(3, (15, 40), 'JPEG')}",
        f"c\t红🫨\t{picture(4, (100, 12), 'GIF')}",
        "d\t红\tAAAA",
        f"e\t \t{picture(5)}",
        "",
        f"f\t\t{picture(5)}",
        f"g\t红\t{picture(6)[:40]}",
        "h\t红",
    ]
    found = inspect(tmp_path / "rows.tsv", processor, lines)
    assert (found.rows, found.bad_rows, found.repeated_ids, found.cut, found.unknown) == (4, 6, 1, 1, 1)
    assert [found.caption_lengths.quantile(share) for share in (0, 0.5, 1)] == [2, 3, 9]
    assert [found.widths.quantile(share) for share in (0, 0.5, 1)] == [15, 16, 100]
    assert [found.heights.quantile(share) for share in (0, 0.5, 1)] == [12, 16, 40]
    assert (found.resolution, found.small) == (16, 2)
    assert found.formats == {"PNG": 2, "JPEG": 1, "GIF": 1}
    assert found.complete
    counts = [(count, found.examples[kind].line_number) for kind, count in found.reasons.most_common()]
    assert sorted(counts) == [(1, 5), (1, 7), (1, 9), (1, 10), (2, 6)]
    assert found.examples[found.reasons.most_common()[0][0]].reason == "The caption is empty."


def test_pictures_are_counted_by_what_they_are(tmp_path, processor) -> None:
    several, long = io.BytesIO(), io.BytesIO()
    red = Image.new("RGB", (20, 20), "red")
    red.save(several, "MPO", save_all=True, append_images=[red])
    red.save(long, "PNG", icc_profile=bytes(3_000_000))  # more than Pillow reads
    pictures = [base64.b64encode(file.getvalue()).decode() for file in (several, long)]
    found = inspect(tmp_path / "rows.tsv", processor, [f"{idx}\t红\t{data}" for idx, data in enumerate(pictures)])
    assert found.formats == {"JPEG": 1, "PNG": 1}
    assert found.bad_rows == 0


def test_reasons_that_differ_in_numbers_are_one(tmp_path, processor) -> None:
    found = inspect(tmp_path / "rows.tsv", processor, ["1\tx", "2", "3\tx\ty\tz"])
    assert list(found.reasons.values()) == [3]


def test_text_length_and_several_captions(tmp_path, processor) -> None:
    lines = [f"1\t红|红苹果|{'红' * 40}\t{picture(1)}"]
    found = inspect(tmp_path / "rows.tsv", processor, lines, text_length=32, caption_separator="|")
    assert (found.caption_lengths.total(), found.cut, found.text_length) == (3, 1, 32)
    assert inspect(tmp_path / "rows.tsv", processor, lines, text_length=2, caption_separator="|").cut == 2


def test_the_beginning_only(tmp_path, processor) -> None:
    lines = [f"{number}\t红\t{picture(number)}" for number in range(10)]
    found = inspect(tmp_path / "rows.tsv", processor, [*lines, "bad"], max_rows=4)
    assert (found.rows, found.bad_rows, found.complete) == (4, 0, False)
    assert inspect(tmp_path / "rows.tsv", processor, lines, max_rows=10).complete


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"text_length": 0}])
def test_options_out_of_range(tmp_path, processor, options) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        inspect(tmp_path / "rows.tsv", processor, ["x"], **options)


def test_spread() -> None:
    spread = Spread([5, 1, 1, 9])
    assert [spread.quantile(share) for share in (0, 0.5, 0.75, 0.76, 1)] == [1, 1, 5, 9, 9]
    assert (spread.total(), spread.below(5), spread.below(1)) == (4, 2, 0)
