# SPDX-License-Identifier: Apache-2.0
"""Sources of every kind: the same rows out of each, and one sentence for each that is none."""

import csv
import gzip
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from sample_files import WRITERS, line, picture, samples, write_csv_folder, write_parquet, write_shard, write_tar
from sample_files import write_tsv as tsv

from pai_painter.data import BadRow, csv_jsonl, webdataset
from pai_painter.data.named_dataset import NamedDataset
from pai_painter.data.picture_rows import Columns
from pai_painter.data.sources import DataSource, PictureRow, find_source


def read_all(source: DataSource) -> tuple[list[PictureRow], list[BadRow]]:
    bad: list[BadRow] = []
    return list(source.rows(bad.append)), bad


def plain(rows: list[PictureRow]) -> list[tuple[str, list[str], bytes]]:
    return [(row.idx, row.captions, row.picture) for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    expected = samples(12)
    path = WRITERS[kind](tmp_path, expected)
    source = find_source([str(path)])
    rows, bad = read_all(source)
    assert plain(rows) == [(idx, [text], data) for idx, text, data in expected]
    assert [row.text for row in rows] == [text for _, text, _ in expected]
    assert not bad
    assert {row.file for row in rows} == set(source.parts)
    first = 2 if kind == "csv folder" else 1  # below its header
    assert [row.line for row in rows] == list(range(first, first + 12))


@pytest.mark.parametrize("kind", WRITERS)
def test_several_files_stand_one_behind_the_other(kind: str, tmp_path: Path) -> None:
    suffix = {"tsv": ".tsv", "parquet": ".parquet", "webdataset": ".tar"}.get(kind, "")
    for number in (2, 0, 1):
        WRITERS[kind](tmp_path, samples(3, first=3 * number), f"part{number}{suffix}")
    rows, _ = read_all(find_source([str(tmp_path / f"part*{suffix}")]))
    assert [row.idx for row in rows] == [f"r{number}" for number in range(9)]
    swapped = find_source([tmp_path / f"part1{suffix}", str(tmp_path / f"part[02]{suffix}")])
    assert [row.idx for row in read_all(swapped)[0]] == [f"r{number}" for number in (3, 4, 5, 0, 1, 2, 6, 7, 8)]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_hash_is_of_the_content_and_not_of_the_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = WRITERS[kind](tmp_path / "a", samples(3))
    first = find_source([path]).content_hash()
    renamed = tmp_path / "b" / f"another-{path.name}"
    path.rename(renamed)
    assert find_source([renamed]).content_hash() == first
    other = WRITERS[kind](tmp_path / "a", [*samples(2), ("r2", "红2", picture(99))])
    assert find_source([other]).content_hash() != first
    both = find_source([renamed, other]).content_hash()
    assert both not in (first, find_source([other]).content_hash())
    assert both != find_source([other, renamed]).content_hash()


def test_a_picture_in_a_folder_counts_for_its_hash(tmp_path: Path) -> None:
    folder = write_csv_folder(tmp_path, samples(3))
    hashes = [find_source([folder]).content_hash()]
    (folder / "sub" / "r1.png").write_bytes(picture(200))
    hashes.append(find_source([folder]).content_hash())
    (folder / "sub" / "r1.png").unlink()
    hashes.append(find_source([folder]).content_hash())
    (folder / "notes.md").write_text("of no matter")
    hashes.append(find_source([folder]).content_hash())
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    path = tsv(tmp_path, samples(2), "rows[1].tsv")
    assert find_source([path]).parts == (str(path),)


@pytest.mark.parametrize("value", ["bytes", "base64", "large bytes", "url-safe base64"])
def test_pictures_in_parquet(value: str, tmp_path: Path) -> None:
    data = picture(7)
    base64 = line("", "", data).strip()
    cells = {
        "bytes": pyarrow.array([data]),
        "large bytes": pyarrow.array([data], pyarrow.large_binary()),
        "base64": pyarrow.array([base64]),
        "url-safe base64": pyarrow.array([base64.replace("+", "-").replace("/", "_").rstrip("=")]),
    }
    table = pyarrow.table({"n": [3], "captions": [["红", " ", "绿 "]], "pixels": cells[value]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    options = {"id_column": "n", "caption_column": "captions", "image_column": "pixels"}
    rows, bad = read_all(find_source([tmp_path / "x.parquet"], **options))
    assert not bad
    assert plain(rows) == [("3", ["红", "绿"], data)]


def test_a_file_of_the_datasets_library(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(3)], "text": ["NA", "null", "红"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    found, _ = read_all(find_source([tmp_path / "x.parquet"]))
    assert plain(found) == [("1", ["NA"], picture(0)), ("2", ["null"], picture(1)), ("3", ["红"], picture(2))]


def test_ids_without_a_column_of_ids(tmp_path: Path) -> None:
    for number in range(2):
        tsv(tmp_path, samples(2), f"{number}.tsv")
    one = find_source([tmp_path / "0.tsv"], input_schema="name,text,imgbase64")
    assert [row.idx for row in read_all(one)[0]] == ["1", "2"]
    two = find_source([str(tmp_path / "*.tsv")], input_schema="name,text,imgbase64")
    assert [row.idx for row in read_all(two)[0]] == ["1-1", "1-2", "2-1", "2-2"]
    named = find_source([tmp_path / "0.tsv"], input_schema="name,text,imgbase64", id_column="name")
    assert [row.idx for row in read_all(named)[0]] == ["r0", "r1"]


@pytest.mark.parametrize("compressed", [False, True])
def test_columns_of_tsv(compressed: bool, tmp_path: Path) -> None:
    content = "\t".join(reversed(line("7", "红|绿", picture(1)).strip().split("\t"))).encode() + b"\n"
    path = tmp_path / ("x.tsv.gz" if compressed else "x.txt")
    path.write_bytes(gzip.compress(content) if compressed else content)
    options = {"input_schema": "pixels:str:1,caption:str:1,idx:int:1", "caption_column": "caption"}
    rows, _ = read_all(find_source([path], image_column="pixels", caption_separator="|", **options))
    assert plain(rows) == [("7", ["红", "绿"], picture(1))]


def test_captions_in_texts_beside_pictures(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "红.PNG").write_bytes(picture(ord(folder)))
        (tmp_path / folder / "sub" / "红.txt").write_text("红|绿")
    one = find_source([tmp_path / "a"], caption_separator="|")
    assert plain(read_all(one)[0]) == [("sub/红.PNG", ["红", "绿"], picture(ord("a")))]
    two = find_source([str(tmp_path / "[ab]")])
    assert [(row.idx, row.file, row.line) for row in read_all(two)[0]] == [
        ("1-sub/红.PNG", str(tmp_path / "a"), 1),
        ("2-sub/红.PNG", str(tmp_path / "b"), 1),
    ]
    hashes = [one.content_hash()]
    for name, content in (("红.PNG", picture(1)), ("红.txt", b"x"), ("x.png", picture(2))):
        (tmp_path / "a" / "sub" / name).write_bytes(content)
        hashes.append(one.content_hash())
    assert len(set(hashes)) == 4


def test_tables_beside_each_other(tmp_path: Path) -> None:
    """Each has its own column of pictures; rows without an id are called by their path or their line."""
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "0.csv").write_text("file_name,text,idx\na.png,红,007\na.png,绿,\n", encoding="utf-8")
    base64 = line("", "", picture(2)).strip()
    (tmp_path / "1.csv").write_text(f"text,image\n蓝,{base64}\n蓝, a.png \n", encoding="utf-8")
    rows, bad = read_all(find_source([str(tmp_path / "*.csv")]))
    assert not bad
    assert plain(rows) == [
        ("007", ["红"], picture(1)),
        ("1-a.png", ["绿"], picture(1)),
        ("2-2", ["蓝"], picture(2)),
        ("2-a.png", ["蓝"], picture(1)),
    ]


@pytest.mark.parametrize("value", [b"x", True, {"a": 1}])
def test_ids_that_are_none(value: object, tmp_path: Path) -> None:
    table = pyarrow.table({"idx": [value], "text": ["红"], "image": [picture(1)]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert reasons(tmp_path / "x.parquet")[0][2].startswith("The id is neither text nor a number, but ")


# --- what stops at once


def content_of(kind: str, tmp_path: Path) -> bytes:
    return {
        "a Parquet file": lambda: write_parquet(tmp_path, samples(1), "p").read_bytes(),
        "a PNG picture": lambda: picture(0),
        "a JPEG picture": lambda: picture(0, "JPEG"),
        "a tar archive": lambda: write_shard(tmp_path, samples(1), "t").read_bytes(),
        "a zip archive": lambda: b"PK\x03\x04\x14\0\0\0",
        "a web page": lambda: b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
        "UTF-16": lambda: line("1", "红", b"x").encode("utf-16"),
        "Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "plain text": lambda: line("1", "红", b"x").encode(),
        "a binary file": lambda: bytes(range(200)) + b"\n",
    }[kind]()


KINDS = [
    "a Parquet file",
    "a PNG picture",
    "a JPEG picture",
    "a tar archive",
    "a zip archive",
    "a web page",
    "UTF-16",
    "Git LFS",
    "plain text",
    "a binary file",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.tsv", "x.tsv.gz", "x.parquet", "x.tar", "metadata.csv", "metadata.jsonl"])
def test_files_of_another_kind(name: str, kind: str, tmp_path: Path) -> None:
    own = {".parquet": ["a Parquet file"], ".tar": ["a tar archive"]}.get(Path(name).suffix, ["plain text"])
    content = content_of(kind, tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    if kind in own and not name.startswith("metadata"):
        find_source([tmp_path / name])
        return
    with pytest.raises(ValueError, match=r"looks like|is UTF-16|no column|is no tar") as error:
        find_source([tmp_path / name])
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)
    if kind not in ("plain text", "UTF-16") and (kind, name) != ("a binary file", "x.tar"):
        assert kind in str(error.value)


@pytest.mark.parametrize("name", ["x.tsv", "x.parquet", "x.tar", "metadata.csv", "metadata.jsonl"])
def test_empty_and_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"There is no file {tmp_path / name}"):
        find_source([tmp_path / name])
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is empty"):
        find_source([tmp_path / name])


def test_files_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"e\.parquet is empty"):
        find_source([write_parquet(tmp_path, [], "e.parquet")])
    with pytest.raises(ValueError, match=r"e\.tar is empty"):
        find_source([write_shard(tmp_path, [], "e.tar")])


def test_an_id_may_begin_like_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("PAR1\t红\tAAAA\nGIF8\t绿\tAAAA\n", encoding="utf-8")
    assert len(read_all(find_source([tmp_path / "x.tsv"]))[0]) == 2


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("option", ["caption_column", "image_column", "id_column"])
def test_missing_columns_are_named_with_those_that_are_there(kind: str, option: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, samples(3))
    if (kind, option) == ("webdataset", "id_column"):
        return  # a sample has its name
    there = {
        "tsv": "idx,text,imgbase64",
        "parquet": "'idx', 'text', 'image'",
        "csv folder": "'idx', 'file_name', 'text'",
        "jsonl folder": "'file_name', 'text', 'idx'",
        "webdataset": "'png', 'txt'",
    }[kind]
    with pytest.raises(ValueError, match=there) as error:
        find_source([path], **{option: "bild"})
    assert "\n" not in str(error.value)


def test_what_can_not_be_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No file matches \S+none\*\.tsv\."):
        find_source([str(tmp_path / "none*.tsv")])
    for nothing in (None, []):
        with pytest.raises(ValueError, match="There are no data"):
            find_source(nothing)
    with pytest.raises(ValueError, match="must be a list"):
        find_source("x.tsv")
    (tmp_path / "x.xlsx").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"x\.xlsx is not known by its name; allowed are TSV "):
        find_source([tmp_path / "x.xlsx"])
    with pytest.raises(ValueError, match=r"folder without metadata\.csv .*it holds x\.xlsx"):
        find_source([tmp_path])
    path = tsv(tmp_path, samples(1))
    with pytest.raises(ValueError, match=r"table\.tsv is named twice"):
        find_source([str(path), str(tmp_path / "*.tsv")])
    with pytest.raises(ValueError, match="different kinds"):
        find_source([path, write_parquet(tmp_path, samples(1))])
    with pytest.raises(ValueError, match="Both files and `dataset_name`"):
        find_source([path], dataset_name="x")
    with pytest.raises(ValueError, match="caption_separator is empty"):
        find_source([path], caption_separator="")
    with pytest.raises(ValueError, match="'idx:str'"):
        find_source([path], input_schema="idx:str")
    folder = write_csv_folder(tmp_path, samples(1))
    (folder / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="has both"):
        find_source([folder])
    assert len(read_all(find_source([folder / "metadata.csv"]))[0]) == 1


# --- rows that can't be used


def reasons(path: Path, **options: object) -> list[tuple[int, str | None, str]]:
    return [(bad.line_number, bad.idx, bad.reason) for bad in read_all(find_source([path], **options))[1]]


def test_bad_rows_of_a_csv(tmp_path: Path) -> None:
    folder = write_csv_folder(tmp_path, samples(1))
    lines = [
        "idx,file_name,text",
        "NA,sub/r0.png,NA",
        '003,sub/r0.png,"a ""quoted""',
        ' caption, of two lines"',
        "",
        "5,sub/r0.png",
        "6,none.png,红",
        "7,../secret.png,红",
        "8,sub,红",
        "9,sub/r0.png,  ",
        '10,"sub/r0.png"x,红',
        "11,,红",
        f"12,{tmp_path}/secret.png,红",
        "13,link.png,红",
        f"14,{'n' * 300},红",
        "15,sub/../sub/r0.png,last",
    ]
    (tmp_path / "secret.png").write_bytes(picture(1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    content = "\r\n".join(lines).encode() + b"\r\n16,sub/r0.png,\xff"
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + content)
    rows, _ = read_all(find_source([folder]))
    assert [(row.idx, row.line, row.captions) for row in rows] == [
        ("NA", 2, ["NA"]),
        ("003", 3, ['a "quoted"\r\n caption, of two lines']),
        ("15", 16, ["last"]),
    ]
    assert reasons(folder) == [
        (5, None, "The row is empty."),
        (6, None, "The row has 2 cells instead of 3 (idx, file_name, text)."),
        (7, "6", "There is no file none.png."),
        (8, "7", "The file ../secret.png lies outside of the folder."),
        (9, "8", "There is no file sub."),
        (10, "9", "The caption is empty."),
        (11, None, "The row is no CSV: ',' expected after '\"'."),
        (12, "11", "The picture (file_name) is missing."),
        (13, "12", f"The file {f'{tmp_path}/secret.png'[:80]} lies outside of the folder."),
        (14, "13", "The file link.png lies outside of the folder."),
        (15, "14", f"The file {'n' * 80} can't be read (File name too long)."),
        (17, "16", "The caption holds bytes that are no UTF-8."),
    ]
    assert find_source([folder]).content_hash()


def test_a_quotation_mark_without_end_swallows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_csv_folder(tmp_path, samples(3))
    (folder / "metadata.csv").write_text('file_name,text\nsub/r0.png,"红\nsub/r1.png,绿\nsub/r2.png,蓝\n')
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2: a quotation mark is opened"):
        read_all(find_source([folder]))
    monkeypatch.setattr(csv_jsonl, "MAX_LINE_BYTES", 200)
    monkeypatch.setattr(csv_jsonl.csv, "field_size_limit", lambda limit=None, set=csv.field_size_limit: set(200))
    rows = "".join(f"sub/r{number}.png,绿\n" for number in range(3)) * 20
    (folder / "metadata.csv").write_text(f'file_name,text\nsub/r0.png,"红\n{rows}sub/r1.png,"红"\n')
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2: a quotation mark is opened"):
        read_all(find_source([folder]))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_line_without_end_is_not_held(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_jsonl, "MAX_LINE_BYTES", 100)
    (tmp_path / name).write_text('{"text": "红", "image": "a.png"}\n' if name == "x.jsonl" else "text,image\n")
    with open(tmp_path / name, "a") as file:
        file.write("x" * 101)
    with pytest.raises(ValueError, match=rf"{name}, line 2 is longer than 100 bytes"):
        read_all(find_source([tmp_path / name]))


def test_links_as_the_hubs_cache_has_them(tmp_path: Path) -> None:
    folder = write_csv_folder(tmp_path, samples(2))
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate([folder / "metadata.csv", *sorted(folder.rglob("*.png"))]):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(os.path.relpath(tmp_path / "blobs" / str(number), path.parent))
    rows, bad = read_all(find_source([folder]))
    assert (len(rows), bad) == (2, [])


def test_bad_rows_of_json_lines(tmp_path: Path) -> None:
    good = {"file_name": "a.png", "text": ["红", "绿"]}
    lines = [
        json.dumps(good),
        "",
        "{",
        "[1]",
        "[" * 100_000,
        json.dumps({**good, "text": 3}),
        json.dumps({**good, "text": "\ud800"}),
        json.dumps({**good, "file_name": 3}),
        json.dumps({**good, "file_name": "\ud800"}),
        json.dumps({**good, "idx": "\udc80"}),
        json.dumps({**good, "file_name": "a\0b"}),
        json.dumps({"file_name": "a.png"}),
    ]
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    rows, _ = read_all(find_source([tmp_path]))
    assert [(row.idx, row.line, row.captions) for row in rows] == [("a.png", 1, ["红", "绿"])]
    found = [(number, reason.split(":")[0].rstrip(".")) for number, _, reason in reasons(tmp_path)]
    assert found == [
        (2, "The row is empty"),
        (3, "The row is no JSON in UTF-8"),
        (4, "The row is no JSON object"),
        (5, "The row is no JSON in UTF-8"),
        (6, "The caption is no text, but int"),
        (7, "The caption holds bytes that are no UTF-8"),
        (8, "The picture (file_name) is missing"),
        (9, "No file can have the name \\ud800"),
        (10, "The id holds bytes that are no UTF-8"),
        (11, "No file can have the name a\\x00b"),
        (12, "The caption is empty"),
    ]


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    image = pyarrow.array(
        [{"bytes": None, "path": "/etc/hostname"}, None, {"bytes": None, "path": None}, {"bytes": b"x", "path": None}]
    )
    table = pyarrow.table({"image": image, "text": ["a", "b", "c", None]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert reasons(tmp_path / "x.parquet") == [
        (1, "1", "The picture is not in the table: there is only its path '/etc/hostname'."),
        (2, "2", "The picture is missing."),
        (3, "3", "The picture is missing."),
        (4, "4", "The caption is empty."),
    ]


def test_samples_of_shards(tmp_path: Path) -> None:
    png, jpg = picture(1), picture(2, "JPEG")
    files = [
        ("a/0.png", png),
        ("a/0.txt", "红\n".encode()),
        ("b/0.JPG", jpg),
        ("b/0.json", json.dumps({"caption": "绿", "n": 5}).encode()),
        ("2.txt", b"no picture"),
        ("3.png", png),
        ("4.webp", png),
        ("4.json", b"{"),
        (".hidden.png", png),
        ("5.x.png", png),
        ("5.json", json.dumps({"text": ["蓝", "青"], "idx": "id5", "png": "other"}).encode()),
        ("6.png", png),
        ("6.txt", b"\xff"),
        ("7.png", png),
        ("7.txt", b"t"),
        ("7.json", b"[]"),
        ("8.jfif", jpg),
        ("8.txt", b"t"),
    ]
    path = write_tar(tmp_path / "x.tar", files)
    rows, bad = read_all(find_source([path]))
    assert plain(rows) == [
        ("a/0", ["红"], png),
        ("b/0", ["绿"], jpg),
        ("id5", ["蓝", "青"], png),
        ("7", ["t"], png),
        ("8", ["t"], jpg),
    ]
    assert [(found.line_number, found.idx, found.reason.split(":")[0]) for found in bad] == [
        (3, "2", "The sample has no picture, but txt."),
        (4, "3", "The sample has no caption, but png."),
        (5, "4", "The sample's json is damaged"),
        (7, "6", "The caption holds bytes that are no UTF-8."),
    ]
    rows, _ = read_all(find_source([path], image_column="JPG"))
    assert plain(rows) == [("b/0", ["绿"], jpg)]


def test_damaged_files(tmp_path: Path) -> None:
    content = write_shard(tmp_path, samples(50)).read_bytes()
    for length in (40_000, 40_448, 40_960):  # in a header, behind one, behind a file
        (tmp_path / "x.tar").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x\.tar was cut off"):
            find_source([tmp_path / "x.tar"])
    (tmp_path / "x.tar").write_bytes(bytes(200) + content)
    with pytest.raises(ValueError, match=r"x\.tar (was cut off|is no tar archive)"):
        find_source([tmp_path / "x.tar"])
    archive = gzip.compress(content)
    (tmp_path / "x.tar.gz").write_bytes(archive[: len(archive) * 3 // 4])
    source = find_source([tmp_path / "x.tar.gz"])
    with pytest.raises(ValueError, match=r"x\.tar\.gz is damaged after sample \d+: "):
        read_all(source)
    table = write_parquet(tmp_path, samples(50))
    content = table.read_bytes()
    table.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"table\.parquet is a damaged Parquet file"):
        find_source([table])
    table.write_bytes(content[:2000] + bytes(1000) + content[3000:])
    source = find_source([table])
    with pytest.raises(ValueError, match=r"table\.parquet is damaged after row \d+"):
        read_all(source)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_compressed_shards(suffix: str, tmp_path: Path) -> None:
    content = write_shard(tmp_path, samples(3)).read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(content))
    assert len(read_all(find_source([tmp_path / f"x{suffix}"]))[0]) == 3


def test_a_sample_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files it has, each of them small enough."""
    monkeypatch.setattr(webdataset, "MAX_LINE_BYTES", 1000)
    files = [("a.txt", b"t"), *((f"a.{n}.bin", bytes(600)) for n in range(9)), ("a.z.png", bytes(600))]
    path = write_tar(tmp_path / "x.tar", [*files, ("b.png", picture(1)), ("b.txt", b"t")])
    assert reasons(path) == [(1, "a", "The sample is larger than 1000 bytes.")]
    contents = next(find_source([path]).records(0)).content[1]
    assert sum(len(content) for content in contents.values() if content) < 1000


def test_links_in_a_shard_are_no_files(tmp_path: Path) -> None:
    path = write_shard(tmp_path, samples(1))
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("evil.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    assert [row.idx for row in read_all(find_source([path]))[0]] == ["r0"]


# --- data sets by name


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataSource]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def find(name: str | Path, **options: object) -> DataSource:
        return find_source(None, dataset_name=str(name), cache_dir=tmp_path / "hub cache", **options)

    return find


@pytest.mark.parametrize("kind", ["parquet", "csv folder", "jsonl folder", "webdataset"])
def test_folders_that_the_datasets_library_reads(kind: str, tmp_path: Path, offline: Callable) -> None:
    (tmp_path / "set").mkdir()
    WRITERS[kind](tmp_path / "set", samples(6))
    options = {"image_column": "png", "caption_column": "txt"} if kind == "webdataset" else {}
    source = offline(tmp_path / "set", **options).on_disk()
    rows, bad = read_all(source)
    assert not bad
    assert [(row.captions, row.picture) for row in rows] == [([text], data) for _, text, data in samples(6)]
    assert {row.file for row in rows} == {f"{tmp_path / 'set'} (train)"}
    before = source.content_hash()
    changed = next(path for path in sorted((tmp_path / "set").rglob("*")) if path.is_file())
    stat = changed.stat()
    changed.write_bytes(changed.read_bytes() + b"\n")
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert offline(tmp_path / "set", **options).content_hash() != before
    assert not list((tmp_path / "hub cache").rglob("*.arrow"))


def test_pictures_that_a_folder_does_not_hold(tmp_path: Path, offline: Callable) -> None:
    folder = write_csv_folder(tmp_path, samples(1), "set")
    (tmp_path / "secret.png").write_bytes(picture(1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    rows = "r0,sub/r0.png,红\n7,none.png,红\n8,link.png,红\n9,pipe.png,红\n"
    (folder / "metadata.csv").write_text(f"idx,file_name,text\n{rows}", encoding="utf-8")
    good, bad = read_all(offline(folder))
    assert [row.picture for row in good] == [picture(0)]
    assert [found.line_number for found in bad] == [2, 3, 4]
    assert [found.reason.split("/")[0] for found in bad] == ["There is no file ", "The file ", "There is no file "]
    assert bad[1].reason.endswith("lies outside of the folder.")


def test_snapshots_of_the_hubs_cache(tmp_path: Path, offline: Callable) -> None:
    folder = write_csv_folder(tmp_path / "snapshots", samples(2), "0")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(tmp_path / "blobs" / str(number))
    rows, bad = read_all(offline(folder))
    assert (len(rows), bad) == (2, [])


def test_shards_of_a_data_set(tmp_path: Path, offline: Callable) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        write_parquet(tmp_path / "set", samples(4, first=4 * number), f"train-{number}.parquet")
    source = offline(tmp_path / "set")
    assert source.parts[1] == f"{tmp_path / 'set'} (train), shard 2 of 3"
    rows, _ = read_all(source)
    assert [row.idx for row in rows] == [f"r{number}" for number in range(12)]
    assert (rows[5].file, rows[5].line) == (source.parts[1], 2)


def test_what_comes_from_the_hub_is_fetched_for_a_table(tmp_path: Path) -> None:
    """Only the folder of this machine stands in for the network."""

    class FromHub(NamedDataset):
        @property
        def is_folder(self) -> bool:
            return False

    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set", samples(4))
    source = FromHub(str(tmp_path / "set"), None, "train", Columns(), str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="is streamed and has no hash"):
        source.content_hash()
    fetched = source.on_disk()
    assert plain(read_all(fetched)[0]) == plain(read_all(source)[0])
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert fetched.content_hash() == source.on_disk().content_hash()


def test_data_sets_that_can_not_be_loaded(tmp_path: Path, offline: Callable) -> None:
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set", samples(4))
    with pytest.raises(ValueError, match=r"\(valid\) can't be loaded: .*valid") as error:
        read_all(offline(tmp_path / "set", split="valid"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="can't be loaded"):
        read_all(offline("nobody/nothing"))
    with pytest.raises(ValueError, match="has no column 'caption', but 'idx', 'text', 'image'"):
        read_all(offline(tmp_path / "set", caption_column="caption"))
    (tmp_path / "set" / "set.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"holds a Python script \(set\.py\)"):
        offline(tmp_path / "set")
