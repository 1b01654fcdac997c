# SPDX-License-Identifier: Apache-2.0
"""What a source holds, counted by hand."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from pai_painter import PaiPainterProcessor
from pai_painter.data.inspection import inspect_rows
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


def inspect(path: Path, processor: PaiPainterProcessor, lines: list[str], **options) -> list[tuple[str, str]]:
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
    facts = inspect(tmp_path / "rows.tsv", processor, lines)
    assert facts[:3] == [
        ("rows", "4"),
        ("bad rows", "6"),
        ("", f"2 × The caption is empty. (first: {tmp_path / 'rows.tsv'}, line 6)"),
    ]
    assert [fact.rpartition(" ")[2] for _, fact in facts[3:7]] == ["5)", "7)", "9)", "10)"]
    assert facts[7:] == [
        ("repeated ids", "1"),
        ("captions", "4"),
        ("word pieces per caption", "2 to 9, median 3, 95 % up to 9"),
        ("truncated at 8", "1"),
        ("with unknown words", "1"),
        ("widths in pixels", "15 to 100, median 16, 95 % up to 100"),
        ("heights in pixels", "12 to 40, median 16, 95 % up to 40"),
        ("with a side below 16 pixels", "2"),
        ("formats", "PNG 2, JPEG 1, GIF 1"),
    ]


def test_pictures_are_counted_by_what_they_are(tmp_path, processor) -> None:
    several, long = io.BytesIO(), io.BytesIO()
    red = Image.new("RGB", (20, 20), "red")
    red.save(several, "MPO", save_all=True, append_images=[red])
    red.save(long, "PNG", icc_profile=bytes(3_000_000))  # more than Pillow reads
    pictures = [base64.b64encode(file.getvalue()).decode() for file in (several, long)]
    facts = inspect(tmp_path / "rows.tsv", processor, [f"{idx}\t红\t{data}" for idx, data in enumerate(pictures)])
    assert dict(facts)["formats"] == "JPEG 1, PNG 1"
    assert dict(facts)["bad rows"] == "0"


def test_reasons_that_differ_in_numbers_are_one(tmp_path, processor) -> None:
    _, bad, reason = inspect(tmp_path / "rows.tsv", processor, ["1\tx", "2", "3\tx\ty\tz"])
    assert bad == ("bad rows", "3")
    assert reason[1].startswith("3 × The row has 2 cells")


def test_text_length_and_several_captions(tmp_path, processor) -> None:
    lines = [f"1\t红|红苹果|{'红' * 40}\t{picture(1)}"]
    facts = dict(inspect(tmp_path / "rows.tsv", processor, lines, text_length=32, caption_separator="|"))
    assert (facts["captions"], facts["truncated at 32"]) == ("3", "1")
    facts = dict(inspect(tmp_path / "rows.tsv", processor, lines, text_length=2, caption_separator="|"))
    assert facts["truncated at 2"] == "2"


def test_the_beginning_only(tmp_path, processor) -> None:
    lines = [f"{number}\t红\t{picture(number)}" for number in range(10)]
    facts = inspect(tmp_path / "rows.tsv", processor, [*lines, "bad"], max_rows=4)
    assert facts[:2] == [("rows", "4 (only the first rows were checked)"), ("bad rows", "0")]
    assert inspect(tmp_path / "rows.tsv", processor, lines, max_rows=10)[0] == ("rows", "10")


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"text_length": 0}])
def test_options_out_of_range(tmp_path, processor, options) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        inspect(tmp_path / "rows.tsv", processor, ["x"], **options)
