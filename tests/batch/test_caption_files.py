# SPDX-License-Identifier: Apache-2.0
"""Captions from every kind of file: what is read, and what is said of the rest."""

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pai_painter.batch.caption_files import CaptionFile, find_captions, from_stream


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(source: CaptionFile) -> list[tuple]:
    """(id, text) of good rows, (line, reason) of bad ones."""
    return [(row.line, row.reason) if row.reason else (row.idx, row.text) for row in source.rows()]


def test_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"003\t NA \r\n4\t\xe7\x8c\xab\n\nx\n5\t \n \ty\n6\t\xff\n")
    rows = read(find_captions(path))
    assert rows[:2] == [("003", " NA "), ("4", "猫")]
    assert [line for line, _ in rows[2:]] == [3, 4, 5, 6, 7]
    assert all(
        word in reason
        for word, (_, reason) in zip(("empty", "cells", "empty", "id ' '", "UTF-8"), rows[2:], strict=True)
    )


def test_a_training_file_can_be_painted_again_and_ids_are_lines_where_there_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "红\tabc\t7\n")
    assert read(find_captions(path, input_schema="text:str:1,imgbase64:str:1,idx:str:1")) == [("7", "红")]
    assert read(find_captions(write(path, "红\n绿\n"), input_schema="text")) == [("1", "红"), ("2", "绿")]


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'idx,text\n003,"NA, \n""blue"""\n2\n3,\xff\n"a\tb",c\n4,d,e\n')
    assert read(find_captions(path)) == [
        ("003", 'NA, \n"blue"'),
        (4, "The row has 1 cells instead of 2 (idx, text)."),
        (5, "The caption holds bytes that are not UTF-8."),
        (6, "The id 'a\\tb' is empty, not UTF-8, or has a tab, a line break or NUL."),
        (7, "The row has 3 cells instead of 2 (idx, text)."),
    ]


def test_ids_of_a_csv_without_them_are_the_numbers_of_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dat", 'text\n"红\n红"\n绿\n')
    assert read(find_captions(path, kind="csv")) == [("1", "红\n红"), ("2", "绿")]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        *({"idx": "003", "text": "红"}, {"text": "绿"}, {"idx": "x"}, {"idx": True, "text": "a"}),
        *({"idx": "y", "text": ["a"]}, {"idx": "\ud800", "text": "a"}, {"idx": "z", "text": "\ud800"}),
        {"idx": 4, "text": "x" * 65_537},
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + "{\n[1]\n")
    assert read(find_captions(path))[:9] == [
        ("003", "红"),
        ("2", "绿"),
        (3, "There is no text in 'text'."),
        (4, "The id in 'idx' is neither text nor a whole number."),
        (5, "There is no text in 'text'."),
        (6, "The id '\\ud800' is empty, not UTF-8, or has a tab, a line break or NUL."),
        (7, "The caption holds bytes that are not UTF-8."),
        (8, "The caption is longer than 65536 characters."),
        (9, read(find_captions(path))[8][1]),
    ]
    assert read(find_captions(path))[8][1].startswith("The row is not JSON in UTF-8")
    assert read(find_captions(path))[9] == (10, "The row is not a JSON object.")


def test_parquet(tmp_path: Path) -> None:
    table = pyarrow.table({"key": [1, 2, None], "caption": ["红", None, "绿"], "other": [b"", b"", b""]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = read(find_captions(tmp_path / "a.parquet", id_column="key", caption_column="caption"))
    assert rows[:2] == [("1", "红"), (2, "There is no text in 'caption'.")]
    assert rows[2] == (3, "The id in 'key' is neither text nor a whole number.")


def test_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"\xef\xbb\xbf\xe7\xba\xa2\n\na\tb\n\xe7\xbb\xbf"))
    rows = read(find_captions(path))
    assert [rows[0], rows[3]] == [("1", "红"), ("4", "绿")]
    assert [row[0] for row in rows[1:3]] == [2, 3]


def test_standard_input_may_be_read_twice() -> None:
    source = from_stream(io.BytesIO("红\n绿\n".encode()))
    assert read(source) == read(source) == [("1", "红"), ("2", "绿")]
    assert read(from_stream(io.BytesIO(b'{"idx": "a", "text": "b"}\n'), "jsonl")) == [("a", "b")]
    assert read(from_stream(io.BytesIO(b"idx,text\na,b\n"), "csv")) == [("a", "b")]
    with pytest.raises(ValueError, match=r"^standard input is empty"):
        from_stream(io.BytesIO())


@pytest.mark.parametrize(
    ("name", "content", "options", "reason"),
    [
        ("a.tsv", None, {}, "There is no file"),
        ("a.tsv", "", {}, "is empty"),
        ("a.tsv", b"\xff\xfea\0", {}, "UTF-16|not text in UTF-8"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", {}, "PNG"),
        ("a.dat", "x", {}, "set the input format of .*a.dat to one of tsv, csv, jsonl, parquet, text"),
        ("a.tsv", "x", {"kind": "xml"}, "got 'xml'"),
        ("a.csv", "a,b\n", {"input_schema": "a:str:1,b:str:1"}, "is read as csv: please set the input format"),
        ("a.csv", 'a,b\n"1\n', {}, "a quotation mark is never closed"),
        ("a.txt", "x", {"caption_column": "c"}, "which has no columns to name"),
        ("a.parquet", "idx", {}, "can't be read as Parquet"),
    ],
)
def test_wrong_files(tmp_path: Path, name, content, options, reason) -> None:
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(ValueError, match=reason):
        find_captions(tmp_path / name, **options)


def test_a_pipe_and_a_folder_are_refused_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tsv")
    for path, kind in ((tmp_path / "a.tsv", "tsv"), (tmp_path / "a.tsv", "parquet"), (tmp_path, "tsv")):
        with pytest.raises(ValueError, match=r"is a (pipe|folder).*: please name a file"):
            find_captions(path, kind=kind)
