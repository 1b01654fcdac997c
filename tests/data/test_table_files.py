# SPDX-License-Identifier: Apache-2.0
"""Tables of text: every spelling of a file, every bad row with its line, nothing read twice or held whole."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pai_painter.data import Schema, table_files
from pai_painter.data.table_files import BadRows, read_table

SCHEMA = Schema.parse("idx:str:1,text:str:1,imgbase64:str:1")
Write = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Write:
    def write(content: bytes | str, name: str = "table.tsv") -> Path:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / name

    return write


def read(path: Path, schema: Schema | None = SCHEMA) -> tuple[list[list], list[tuple]]:
    """Cells of the good rows; line, id and reason of the bad ones."""
    rows = list(read_table(path, schema))
    bad = [(line, cells.get("idx"), reason) for line, cells, reason in rows if reason]
    return [list(cells.values()) for _, cells, reason in rows if not reason], bad


def test_schemas() -> None:
    assert SCHEMA.columns == ("idx", "text", "imgbase64")
    assert Schema.parse(" idx, text ,imgbase64") == SCHEMA
    for text in ("", "idx,,text", ":str:1", "idx:str", "idx:text:1", "idx:str:x", "idx:str:1:2", "idx,text,idx"):
        with pytest.raises(ValueError, match="schema"):
            Schema.parse(text)


@pytest.mark.parametrize(
    "content",
    [
        b"003\ta\tA\nNA\tnull\t\n",
        b"003\ta\tA\nNA\tnull\t",
        b"003\ta\tA\r\nNA\tnull\t\r\n",
        b"\xef\xbb\xbf003\ta\tA\nNA\tnull\t\n",
    ],
    ids=["newline", "no last newline", "windows", "byte order mark"],
)
@pytest.mark.parametrize("name", ["table.tsv", "table.tsv.gz", "gzip under another name.tsv"])
def test_spellings_of_a_file(table: Write, content: bytes, name: str) -> None:
    path = table(gzip.compress(content) if "gz" in name else content, name)
    assert read(path) == ([["003", "a", "A"], ["NA", "null", ""]], [])


def test_only_tabs_and_newlines_have_a_meaning(table: Write) -> None:
    """Every other control character is part of a cell, NUL at the head of the file included."""
    text = '"a" "b\0' + "".join(chr(code) for code in range(1, 160) if chr(code) not in "\t\n") + "\u2028c"
    assert read(table(f"1\t{text}\tA\n2\t'\tB\n")) == ([["1", text, "A"], ["2", "'", "B"]], [])


def test_bad_rows_are_named_and_the_rest_is_read(table: Write) -> None:
    lines = [b"idx\ttext\timgbase64", b"2\tb", b"3\tc\tC\tc", b"", b"5\t\xff\tE", b"6\tf\tF"]
    good, bad = read(table(b"\n".join(lines)))
    assert good == [["6", "f", "F"]]
    assert bad == [
        (1, "idx", "The row repeats the schema's names, but a TSV has no header."),
        (2, "2", "The row has 2 cells instead of 3 (idx, text, imgbase64)."),
        (3, "3", "The row has 4 cells instead of 3 (idx, text, imgbase64)."),
        (4, None, "The row is empty."),
        (5, None, "The row is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 2: invalid start byte."),
    ]


def test_lines_without_end(table: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "MAX_ROW_BYTES", 20)
    content = b"1\ta\tA\n2\tb\t" + b"B" * 95 + b"\n3\tc\tC\n4\td\t" + b"D" * 15 + b"\n5\te\t" + b"E" * 95
    good, bad = read(table(content))
    assert good == [["1", "a", "A"], ["3", "c", "C"], ["4", "d", "D" * 15]]
    assert [(line, reason) for line, _, reason in bad] == [
        (line, "The row is longer than 20 bytes.") for line in (2, 5)
    ]
    assert read(table('{"a": 1}\n"' + "x" * 30, "x.jsonl"), None)[1][0][0] == 2
    with pytest.raises(ValueError, match=r"x\.csv, line 2 is longer than 20 bytes"):
        read(table("a,b\n" + "x" * 30, "x.csv"), None)


def test_memory_does_not_grow_with_the_file(table: Write) -> None:
    path = table(b"".join(b"%d\ta\t%s\n" % (n, b"A" * 50_000) for n in range(400)))  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in read_table(path, SCHEMA)) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_damaged_archives(table: Write) -> None:
    archive = gzip.compress(b"".join(b"%d\ta\t%d\n" % (n, n * n) for n in range(50_000)))
    for content in (archive[: len(archive) // 2], archive[:1000] + bytes(100) + archive[1100:]):
        with pytest.raises(ValueError, match="damaged gzip archive"):
            read(table(content))


def test_csv(table: Write) -> None:
    """A bad row costs no other, and no column is shifted."""
    lines = ["idx,text", 'NA,"a ""quoted""', ' caption, of two lines"', "", "5", "6,b,c", '7,"x"y', "003,null\x1b"]
    path = table(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n9,\xff", "x.csv")
    assert list(next(read_table(path))[1]) == ["idx", "text"]
    good, bad = read(path, None)
    assert good == [["NA", 'a "quoted"\r\n caption, of two lines'], ["003", "null\x1b"], ["9", "\udcff"]]
    assert bad == [
        (4, None, "The row is empty."),
        (5, "5", "The row has 1 cells instead of 2 (idx, text)."),
        (6, "6", "The row has 3 cells instead of 2 (idx, text)."),
        (7, None, "The row is not CSV: ',' expected after '\"'."),
    ]
    assert read(table("a,b\n1,x\0y\n", "x.csv"), None)[0] == [["1", "x\0y"]]
    with pytest.raises(ValueError, match=r"x\.csv, line 2: a quotation mark is never closed"):
        read(table('a,b\n1,"x\n2,y\n3,z\n', "x.csv"), None)
    with pytest.raises(ValueError, match="different name for every column"):
        read(table("a,a\n", "x.csv"), None)


def test_json_lines(table: Write) -> None:
    lines = [
        b'\xef\xbb\xbf{"idx": 1, "text": "a\\u0000"}',
        b"",
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'"\xff"',
        b'{"x": null}',
    ]
    path = table(b"\n".join(lines), "x.jsonl")
    good, bad = read(path, None)
    assert good == [[1, "a\0"], [None]]
    reasons = [(line, reason.split(":")[0]) for line, _, reason in bad]
    assert reasons == [
        (2, "The row is empty."),
        (3, "The row is not JSON in UTF-8"),
        (4, "The row is not a JSON object."),
        (5, "The row is not JSON in UTF-8"),
        (6, "The row is not JSON in UTF-8"),
    ]
    assert read(table(gzip.compress(b"".join(lines[:1])), "x.jsonl.gz"), None)[0] == [[1, "a\0"]]


def test_what_is_told_of_a_row_is_harmless() -> None:
    bad = BadRows("x.tsv", most=1)
    bad.add({"file": "x.tsv", "line": 3, "idx": "7", "reason": "The id is '\x1b[31m\x9b'."})
    assert str(bad) == "1 unusable row, the first x.tsv, line 3: The id is '\\x1b[31m\\x9b'"
