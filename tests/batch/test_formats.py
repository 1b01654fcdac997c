# SPDX-License-Identifier: Apache-2.0
"""What other programs read in the outputs."""

import base64
import io
import json
import resource
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from pai_painter.batch.formats import OutputFormat, find_format
from pai_painter.batch.pictures import PaintedRow, Picture, PictureEncoder
from pai_painter.data.sources import find_source
from pai_painter.imaging.painting import PaintingOptions

OPTIONS = PaintingOptions(best_of=2, temperature=1.0, top_k=100, top_p=None)


def painted(number: int, num_images: int = 1, text: str = "红\n苹果") -> PaintedRow:
    kind = PictureEncoder("png", OPTIONS, "model")
    pictures = [
        Picture(kind.encode(Image.new("RGB", (4, 4), (number, i, 0)), text, 7 + i, 8 + i, -0.5), 7 + i, -0.5)
        for i in range(num_images)
    ]
    return PaintedRow(number, f"id{number}", text, pictures)


def write(format: OutputFormat, folder: Path, shards: list[list[PaintedRow]]) -> Path:
    folder.mkdir()
    paths = []
    for shard, rows in enumerate(shards):
        paths.append(format.part_path(folder, shard))
        part = format.open_part(paths[-1], shard)
        for row in rows:
            part.write(row)
        part.close()
    format.join(paths, folder / "joined")
    return folder / "joined"


def pixel(data: bytes) -> tuple[int, ...]:
    return Image.open(io.BytesIO(data)).getpixel((0, 0))


def test_tsv(tmp_path: Path) -> None:
    whole = write(find_format(Path("a.tsv")), tmp_path / "one", [[painted(1)], [], [painted(2)]])
    cells = [line.split("\t") for line in whole.read_text().splitlines()]
    assert [row[:2] for row in cells] == [["id1", "红 苹果"], ["id2", "红 苹果"]]
    assert [pixel(base64.b64decode(row[2], validate=True)) for row in cells] == [(1, 0, 0), (2, 0, 0)]
    several = find_format(Path("a.tsv"), output_schema="seed,gen_imgbase64:str:1,score")
    cells = [line.split("\t") for line in write(several, tmp_path / "two", [[painted(1, 2)]]).read_text().splitlines()]
    assert [json.loads(cell) for cell in (cells[0][0], cells[0][2])] == [[7, 8], [-0.5, -0.5]]
    assert [pixel(base64.b64decode(text)) for text in json.loads(cells[0][1])] == [(1, 0, 0), (1, 1, 0)]


def test_parquet(tmp_path: Path) -> None:
    format = find_format(Path("a.parquet"))
    whole = write(format, tmp_path / "one", [[painted(1, 2)], [], [painted(2, 2)]])
    rows = datasets.Dataset.from_parquet(str(whole), cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows.features["image"], datasets.Image)
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0)]
    assert [(row["idx"], row["text"], row["seed"], row["score"]) for row in rows][1] == ("id1", "红\n苹果", 8, -0.5)
    again = write(format, tmp_path / "two", [[painted(1, 2)], [], [painted(2, 2)]])
    assert again.read_bytes() == whole.read_bytes()


def test_webdataset(tmp_path: Path) -> None:
    whole = write(find_format(Path("a.tar")), tmp_path / "one", [[painted(1)], [painted(2)]])
    with tarfile.open(whole) as archive:
        names = archive.getnames()
        assert names == [f"0000000{number}.{ending}" for number in (1, 2) for ending in ("png", "txt", "json")]
        assert json.load(archive.extractfile(names[2])) == {"idx": "id1", "text": "红\n苹果", "seed": 7, "score": -0.5}
    assert whole.stat().st_size % 10240 == 0
    named = whole.rename(tmp_path / "a.tar")
    rows = list(find_source([named]).rows(pytest.fail))
    assert [(row.idx, row.captions, pixel(row.picture)) for row in rows][1] == ("id2", ["红\n苹果"], (2, 0, 0))


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_folder(tmp_path: Path, kind) -> None:
    format = find_format(Path("a"), kind)
    whole = write(format, tmp_path / "one", [[painted(1, 2)], [painted(2, 2)]])
    lines = [json.loads(line) for line in (whole / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines][::3] == [f"000000/00000001-0.{kind}", f"000001/00000002-1.{kind}"]
    rows = datasets.load_dataset("imagefolder", data_dir=str(whole), split="train", cache_dir=str(tmp_path / "cache"))
    assert {(row["idx"], row["image"].getpixel((0, 0))) for row in rows} == {
        (f"id{number}", (number, i, 0)) for number in (1, 2) for i in (0, 1)
    }


def test_the_metadata_of_a_png_says_how_it_was_painted() -> None:
    text = Image.open(io.BytesIO(painted(1).pictures[0].data)).text
    assert (text["caption"], text["seed"], text["candidate_seed"], text["model"]) == ("红\n苹果", "7", "8", "model")
    assert json.loads(text["options"])["best_of"] == 2


def test_webp_pictures() -> None:
    data = PictureEncoder("webp", OPTIONS, "model").encode(Image.new("RGB", (4, 4), "red"), "红", 1, 1, 0.0)
    assert Image.open(io.BytesIO(data)).format == "WEBP"


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of this process can't grow beyond 30 kB: as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["a.tsv", "a.parquet", "a.tar"])
def test_a_full_disk_is_an_oserror_and_a_part_can_be_discarded(tmp_path: Path, name, small_disk) -> None:
    format = find_format(Path(name))
    part = format.open_part(tmp_path / "part", 0)
    row = PaintedRow(0, "1", "x", [Picture(bytes(100_000), 1, 0.0)] * 512)  # as many as a group of Parquet
    with pytest.raises(OSError, match="too large"):
        part.write(row)
    part.discard()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("a.jpg", {}, "ends in none of .tsv, .parquet and .tar"),
        ("a", {"name": "zip"}, "The format is one of tsv, parquet, png, webp, webdataset, not 'zip'"),
        ("a.tsv", {"output_schema": "idx,picture"}, "has 'picture': please name gen_imgbase64 and any of"),
        ("a.tsv", {"output_schema": "idx,text"}, "lacks gen_imgbase64"),
        ("a.tar", {"output_schema": "idx"}, "An output schema is for TSV; a.tar becomes webdataset"),
    ],
)
def test_impossible_formats(name, options, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        find_format(Path(name), **options)


def test_parquet_has_small_groups(tmp_path: Path) -> None:
    rows = [PaintedRow(number, "1", "x", [Picture(b"x", 1, 0.0)]) for number in range(1030)]
    whole = write(find_format(Path("a.parquet")), tmp_path / "one", [rows])
    metadata = pyarrow.parquet.read_metadata(whole)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [512, 512, 6]
