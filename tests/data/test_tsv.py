# SPDX-License-Identifier: Apache-2.0
"""Tables of captions and pictures."""

import gzip
import tracemalloc
from pathlib import Path

import pytest

from pai_painter.data import BadRow, Schema, read_rows, tsv

SCHEMA = Schema.parse("idx:str:1,text:str:1,imgbase64:str:1")


@pytest.fixture
def table(tmp_path):
    def write(content: bytes | str, name: str = "table.tsv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def cells(path: Path, **options: object) -> list[tuple[str, str, str | None]]:
    return [(row.idx, row.text, row.imgbase64) for row in read_rows(path, SCHEMA, **options)]


def test_schemas() -> None:
    assert SCHEMA.columns == ("idx", "text", "imgbase64")
    assert Schema.parse(" idx, text ,imgbase64") == SCHEMA
    assert Schema.parse("imgbase64:str:1,idx:int:1").index("idx") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name for every column"),
        ("idx,,text", "name for every column"),
        (":str:1", "name for every column"),
        ("idx:str", "'idx:str'"),
        ("idx:text:1", "'idx:text:1'"),
        ("idx:str:x", "'idx:str:x'"),
        ("idx:str:1:2", "name:type:number"),
        ("idx,text,idx", "repeats idx"),
    ],
)
def test_bad_schemas(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.parse(text)


def test_rows(table) -> None:
    rows = list(read_rows(table("003\t红苹果\tAAAA\nNA\tnull\t\n"), SCHEMA))
    assert [(row.line_number, row.idx, row.text, row.captions, row.imgbase64) for row in rows] == [
        (1, "003", "红苹果", ["红苹果"], "AAAA"),
        (2, "NA", "null", ["null"], ""),
    ]


def test_column_order_and_names(table) -> None:
    path = table("AAAA\t红\tx\t1\n")
    schema = Schema.parse("picture,caption,unused,id")
    (row,) = read_rows(path, schema, id_column="id", text_column="caption", picture_column="picture")
    assert (row.idx, row.text, row.imgbase64) == ("1", "红", "AAAA")


def test_tables_without_pictures(table) -> None:
    (row,) = read_rows(table("1\t红\n"), Schema.parse("idx:str:1,text:str:1"), picture_column=None)
    assert (row.text, row.imgbase64) == ("红", None)


@pytest.mark.parametrize(
    "content",
    [
        b"1\ta\tA\n2\tb\tB\n",
        b"1\ta\tA\n2\tb\tB",
        b"1\ta\tA\r\n2\tb\tB\r\n",
        b"\xef\xbb\xbf1\ta\tA\n2\tb\tB\n",
    ],
    ids=["newline", "no last newline", "windows", "byte order mark"],
)
@pytest.mark.parametrize("name", ["table.tsv", "table.tsv.gz", "gzip under another name.tsv"])
def test_spellings_of_a_file(table, content: bytes, name: str) -> None:
    path = table(gzip.compress(content) if "gz" in name else content, name)
    assert cells(path) == [("1", "a", "A"), ("2", "b", "B")]


def test_nothing_but_tabs_and_newlines_has_a_meaning(table) -> None:
    text = '"a" "b\u2028c\u0085d\x0ce\rf\x1cg'
    assert cells(table(f"1\t{text}\tA\n2\t'\tB\n")) == [("1", text, "A"), ("2", "'", "B")]


def test_several_captions(table) -> None:
    path = table("1\t红苹果| 一个苹果 ||\tA\n2\t果\tB\n3\t | \tC\n")
    bad: list[BadRow] = []
    rows = list(read_rows(path, SCHEMA, caption_separator="|", on_bad_row=bad.append))
    assert [row.captions for row in rows] == [["红苹果", "一个苹果"], ["果"]]
    assert rows[0].text == "红苹果| 一个苹果 ||"
    assert [(row.line_number, row.idx, row.reason) for row in bad] == [(3, "3", "The caption is empty.")]
    assert next(read_rows(path, SCHEMA)).captions == ["红苹果| 一个苹果 ||"]


def test_bad_rows_are_reported_and_the_rest_is_read(table) -> None:
    lines = [
        b"1\ta\tA",
        b"2\tb",
        b"3\tc\tC\tc",
        b"",
        b"5\t\xff\tE",
        b"6\t  \tF",
        b"idx\ttext\timgbase64",
        b"8\th\tH",
    ]
    path = table(b"\n".join(lines) + b"\n")
    bad: list[BadRow] = []
    assert [idx for idx, _, _ in cells(path, on_bad_row=bad.append)] == ["1", "idx", "8"]
    assert [(row.line_number, row.idx) for row in bad] == [(2, "2"), (3, "3"), (4, None), (5, None), (6, "6")]
    assert [row.reason for row in bad] == [
        "The row has 2 cells instead of 3 (idx, text, imgbase64).",
        "The row has 4 cells instead of 3 (idx, text, imgbase64).",
        "The row is empty.",
        "The row is not UTF-8 (its byte 3).",
        "The caption is empty.",
    ]
    assert str(bad[0]) == f"{path}, line 2: {bad[0].reason}"


def test_bad_rows_are_raised_if_nobody_takes_them(table) -> None:
    rows = read_rows(table("1\ta\tA\n2\tb\n"), SCHEMA)
    assert next(rows).idx == "1"
    with pytest.raises(BadRow, match="line 2: The row has 2 cells"):
        next(rows)


def test_a_header_is_no_row(table) -> None:
    with pytest.raises(BadRow, match="no header"):
        cells(table("idx\ttext\timgbase64\n1\ta\tA\n"))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_empty_files(table, content: bytes) -> None:
    with pytest.raises(ValueError, match="is empty"):
        read_rows(table(content), SCHEMA)


def test_wrong_files_are_an_error_before_the_first_row(table, tmp_path) -> None:
    with pytest.raises(ValueError, match="There is no file"):
        read_rows(tmp_path / "none.tsv", SCHEMA)
    with pytest.raises(ValueError, match="is a folder"):
        read_rows(str(tmp_path), SCHEMA)
    with pytest.raises(ValueError, match="is UTF-16"):
        read_rows(table("1\ta\tA\n".encode("utf-16")), SCHEMA)
    with pytest.raises(ValueError, match="no column 'imgbase64'"):
        read_rows(table("1\ta\n"), Schema.parse("idx,text"))
    with pytest.raises(ValueError, match="no column 'caption'"):
        read_rows(table("1\ta\tA\n"), SCHEMA, text_column="caption")
    with pytest.raises(ValueError, match="caption_separator"):
        read_rows(table("1\ta\tA\n"), SCHEMA, caption_separator="")


def test_damaged_archives(table) -> None:
    archive = gzip.compress(b"".join(b"%d\ta\t%d\n" % (n, n * n) for n in range(50_000)))
    with pytest.raises(ValueError, match="damaged gzip archive"):
        cells(table(archive[: len(archive) // 2]))
    with pytest.raises(ValueError, match="damaged gzip archive"):
        cells(table(archive[:1000] + bytes(100) + archive[1100:]))


def test_lines_without_end(table, monkeypatch) -> None:
    monkeypatch.setattr(tsv, "MAX_LINE_BYTES", 20)
    content = b"1\ta\tA\n2\tb\t" + b"B" * 95 + b"\n3\tc\tC\n4\td\t" + b"D" * 15 + b"\n5\te\t" + b"E" * 95
    bad: list[BadRow] = []
    rows = cells(table(content), on_bad_row=bad.append)
    assert rows == [("1", "a", "A"), ("3", "c", "C"), ("4", "d", "D" * 15)]
    assert [(row.line_number, row.reason) for row in bad] == [
        (2, "The row is longer than 20 bytes."),
        (5, "The row is longer than 20 bytes."),
    ]


def test_memory_does_not_grow_with_the_file(table) -> None:
    path = table(b"".join(b"%d\ta\t%s\n" % (n, b"A" * 50_000) for n in range(400)))  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path, SCHEMA)) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
