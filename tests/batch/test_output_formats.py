# SPDX-License-Identifier: Apache-2.0
"""What other programs read in the outputs."""

import base64
import io
import json
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from pai_painter.batch.output_formats import PaintedRow, find_format, write_output
from pai_painter.data.table_files import Schema, read_table
from pai_painter.imaging.painting import PaintingOptions, picture_text
from pai_painter.imaging.png_files import png_bytes

OPTIONS = PaintingOptions(best_of=2, temperature=1.0, top_k=100, top_p=None)


def painted(number: int, num_images: int = 1, text: str = "红\n苹果") -> PaintedRow:
    images = [Image.new("RGB", (4, 4), (number, i, 0)) for i in range(num_images)]
    texts = [picture_text(text, 7 + i, 8 + i, -0.5, "model", OPTIONS) for i in range(num_images)]
    pngs = [png_bytes(image, text) for image, text in zip(images, texts, strict=True)]
    pictures = [(base64.b64encode(png).decode(), 7 + i, -0.5) for i, png in enumerate(pngs)]
    return PaintedRow(number, f"id{number}", text, pictures)


def write(path: Path, rows: list[PaintedRow], schema: str | None = None) -> Path:
    write_output(*find_format(path, None, schema, {}), path, rows)
    return path


def pixel(data: bytes) -> tuple[int, ...]:
    return Image.open(io.BytesIO(data)).getpixel((0, 0))


def test_tsv(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tsv", [painted(1), painted(2)])
    cells = [line.split("\t") for line in whole.read_text().splitlines()]
    assert [row[:2] for row in cells] == [["id1", "红 苹果"], ["id2", "红 苹果"]]
    assert [pixel(base64.b64decode(row[2], validate=True)) for row in cells] == [(1, 0, 0), (2, 0, 0)]
    whole = write(tmp_path / "b.tsv", [painted(1, 2)], "seed,gen_imgbase64:str:1,score")
    cells = whole.read_text().split("\t")
    assert [json.loads(cell) for cell in (cells[0], cells[2])] == [[7, 8], [-0.5, -0.5]]
    assert [pixel(base64.b64decode(text)) for text in json.loads(cells[1])] == [(1, 0, 0), (1, 1, 0)]


def test_every_character_of_a_caption_comes_back_from_a_tsv(tmp_path: Path) -> None:
    """Only those that a cell can't hold become blanks: tabs, line breaks and NUL."""
    letters = [chr(code) for code in (*range(0xA0), 0x2028, 0x2029, 0xFEFF)]
    rows = [painted(number, text=f"红{letter}果") for number, letter in enumerate(letters)]
    whole = write(tmp_path / "a.tsv", rows)
    read = [cells for _, cells, _ in read_table(whole, Schema(("idx", "text", "imgbase64")))]
    kept = [" " if letter in "\0\t\r\n" else letter for letter in letters]
    assert [cells["text"] for cells in read] == [f"红{letter}果" for letter in kept]


def test_parquet(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", [painted(1, 2), painted(2, 2, "a\0b")])
    rows = datasets.Dataset.from_parquet(str(whole), cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows.features["image"], datasets.Image)
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0)]
    assert [(row["idx"], row["text"], row["seed"], row["score"]) for row in rows][1] == ("id1", "红\n苹果", 8, -0.5)
    assert rows[3]["text"] == "a\0b"


def test_parquet_has_small_groups(tmp_path: Path) -> None:
    row = PaintedRow(0, "1", "x", [("eA==", 1, 0.0)])
    metadata = pyarrow.parquet.read_metadata(write(tmp_path / "a.parquet", [row] * 520))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [256, 256, 8]


def test_folder(tmp_path: Path) -> None:
    whole = write(tmp_path / "a", [painted(1, 2), painted(1002 % 256, 2)])
    lines = [json.loads(line) for line in (whole / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines][:2] == ["000000/00000001-0.png", "000000/00000001-1.png"]
    rows = datasets.load_dataset("imagefolder", data_dir=str(whole), split="train", cache_dir=str(tmp_path / "cache"))
    assert {(row["idx"], row["image"].getpixel((0, 0))) for row in rows} == {
        (f"id{number}", (number, i, 0)) for number in (1, 1002 % 256) for i in (0, 1)
    }


def test_the_metadata_of_a_png_says_how_it_was_painted() -> None:
    text = Image.open(io.BytesIO(base64.b64decode(painted(1, text="红\0\x1b").pictures[0][0]))).text
    assert (text["caption"], text["seed"], text["candidate_seed"], text["model"]) == ("红\0\x1b", "7", "8", "model")
    assert json.loads(text["options"])["best_of"] == 2


@pytest.mark.parametrize(
    ("name", "format", "schema", "reason"),
    [
        ("a.tar", None, None, "is not known by its name"),
        ("a", "webp", None, "tsv, parquet, png"),
        ("a.tsv", None, "idx,text", "must name gen_imgbase64"),
        ("a.tsv", None, "gen_imgbase64,size", "must name gen_imgbase64 and any of idx, text, seed and score"),
        ("a", None, "idx,gen_imgbase64", "An output schema is for TSV; a becomes png"),
    ],
)
def test_wrong_formats(name, format, schema, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        find_format(Path(name), format, schema, {})
