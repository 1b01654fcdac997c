# SPDX-License-Identifier: Apache-2.0
"""Captions from every kind of file: what is read, and what is said of the rest."""

import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pai_painter.batch.captions import CaptionRow, find_captions, from_stream
from pai_painter.data.tsv import BadRow


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, **options) -> list[tuple]:
    """(id, text) of good rows, (line, reason) of bad ones."""
    return [
        (row.line_number, row.reason) if isinstance(row, BadRow) else (row.idx, row.text)
        for row in find_captions(path, **options).rows()
    ]


def test_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"003\t NA \r\n4\t\xe7\x8c\xab\n\nx\n5\t \n \ty\n6\t\xff\n")
    assert read(path) == [
        ("003", " NA "),
        ("4", "猫"),
        (3, "The row is empty."),
        (4, "The row has 1 cells instead of 2 (idx, text)."),
        (5, "The caption is empty."),
        (6, "The id ' ' is empty, not UTF-8, or has line breaks or tabs."),
        (7, "The row is not UTF-8 (its byte 3)."),
    ]


def test_a_training_file_can_be_painted_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "红\tabc\t7\n")
    assert read(path, input_schema="text:str:1,imgbase64:str:1,idx:str:1") == [("7", "红")]


def test_tsv_without_ids_has_lines(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.tsv", "红\n绿\n"), input_schema="text") == [("1", "红"), ("2", "绿")]


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'idx,text,more\n1,"red, \n""blue""",x\n2,y\n3,\xff,z\n"a\tb",c,d\n')
    assert read(path) == [
        ("1", 'red, \n"blue"'),
        (4, "The row has 2 cells instead of 3 (idx, text, more)."),
        (5, "The caption is not UTF-8, or holds half a surrogate pair."),
        (6, "The id 'a\\tb' is empty, not UTF-8, or has line breaks or tabs."),
    ]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        *({"idx": 3, "text": "红"}, {"text": "绿"}, {"idx": "x"}, {"idx": True, "text": "a"}),
        *({"idx": "y", "text": ["a"]}, {"idx": "\ud800", "text": "a"}, {"idx": "z", "text": "\ud800"}),
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    assert read(path)[:6] == [
        ("3", "红"),
        ("2", "绿"),
        (3, "The row has no 'text'."),
        (4, "The id in 'idx' is neither a string nor a whole number."),
        (5, "The caption is no text, but list."),
        (6, "The id '\\ud800' is empty, not UTF-8, or has line breaks or tabs."),
    ]
    assert read(path)[6] == (7, "The caption is not UTF-8, or holds half a surrogate pair.")
    assert read(path)[7][1].startswith("The row is no JSON in UTF-8")


def test_parquet(tmp_path: Path) -> None:
    table = pyarrow.table({"key": [1, 2, None], "caption": ["红", None, "绿"], "other": [b"", b"", b""]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", id_column="key", caption_column="caption")
    assert rows == [("1", "红"), (2, "The row has no 'caption'."), ("3", "绿")]


def test_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"\xef\xbb\xbf\xe7\xba\xa2\n\na\tb\n\xe7\xbb\xbf"))
    assert read(path) == [
        ("1", "红"),
        (2, "The row is empty."),
        (3, "The line has a tab: for a TSV please set the input format to tsv."),
        ("4", "绿"),
    ]


def test_standard_input() -> None:
    with from_stream(io.BytesIO("红\n绿\n".encode())) as source:
        assert not source.resumable
        assert list(source.rows()) == list(source.rows()) == [CaptionRow(1, "1", "红"), CaptionRow(2, "2", "绿")]
    with from_stream(io.BytesIO(b'{"idx": "a", "text": "b"}\n'), "jsonl") as source:
        assert list(source.rows()) == [CaptionRow(1, "a", "b")]
    with from_stream(io.BytesIO(b"idx,text\na,b\n"), "csv") as source:
        assert list(source.rows()) == [CaptionRow(2, "a", "b")]
    with pytest.raises(ValueError, match="no captions on standard input"), from_stream(io.BytesIO()):
        pass
    with (
        pytest.raises(ValueError, match=r"^standard input has no column 'text'"),
        from_stream(io.BytesIO(b"a,b\n"), "csv"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "content", "options", "reason"),
    [
        ("a.tsv", None, {}, "There is no file"),
        ("a.tsv", "", {}, "is empty"),
        ("a.tsv", b"\xff\xfea\0", {}, "is UTF-16: please save it as UTF-8"),
        ("a.txt", b"\x89PNG\r\n", {}, "looks like a PNG picture"),
        ("a.dat", "x", {}, "not known by its name"),
        ("a.dat", "x", {"kind": "csv"}, "if its name ends in .csv"),
        ("a.tsv", "x", {"kind": "xml"}, "The input format is one of tsv, csv, jsonl, parquet, text, not 'xml'"),
        ("a.tsv", "x", {"caption_column": "c"}, "has no column 'c', but 'idx', 'text': please set `caption_column`"),
        ("a.tsv", "x", {"id_column": "c"}, "please set `id_column`"),
        ("a.csv", "a,b\n", {"input_schema": "a:str:1,b:str:1"}, "is read as csv: please set the input format"),
        ("a.txt", "x", {"caption_column": "c"}, "which has no columns to name"),
        ("a.txt", "x", {"id_column": "c"}, "which has no columns to name"),
        ("a.csv", "a,b\n", {}, "has no column 'text', but 'a', 'b'"),
        ("a.csv", "a,a\n", {}, "a different name for every column"),
        ("a.jsonl", '{"a": 1}\n', {}, "has no column 'text'"),
        ("a.parquet", "idx", {}, "is no Parquet file: it looks like plain text"),
        ("a.parquet", "PAR1 and no more", {}, "is a damaged Parquet file"),
    ],
)
def test_wrong_files(tmp_path: Path, name, content, options, reason) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=reason):
        find_captions(path, **options)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: please give a file of captions"):
        find_captions(tmp_path, kind="text")
