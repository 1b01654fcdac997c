# SPDX-License-Identifier: Apache-2.0
"""Tables on the disk: whole or not there, never stale."""

import base64
import gzip
import io
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from pai_painter.data import rows as rows_module
from pai_painter.data.rows import PictureRows, hash_of_file, load_rows
from pai_painter.image_processing_pai_painter import PaiPainterImageProcessor

SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(buffer, format="PNG")
    return buffer.getvalue()


def line(idx: str, text: str, shade: int) -> str:
    return f"{idx}\t{text}\t{base64.b64encode(picture(shade)).decode()}\n"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, name: str = "table.tsv") -> Path:
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., datasets.Dataset]:
    def load(path: Path, **options: object) -> datasets.Dataset:
        return load_rows(path, SCHEMA, cache_dir=tmp_path / "cache", **options)

    return load


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files that were read row by row."""
    found = []
    write = rows_module._write_table
    monkeypatch.setattr(rows_module, "_write_table", lambda path, *rest: found.append(path) or write(path, *rest))
    return found


def test_content(table: Callable, load: Callable) -> None:
    rows = load(table(line("003", "红苹果|苹果", 10), line("NA", "null", 20)), caption_separator="|")
    assert rows.column_names == ["idx", "captions", "picture"]
    assert rows[0] == {"idx": "003", "captions": ["红苹果", "苹果"], "picture": picture(10)}
    assert rows[1] == {"idx": "NA", "captions": ["null"], "picture": picture(20)}
    pictures = PictureRows(rows, PaiPainterImageProcessor(size=4))
    assert len(pictures) == 2
    assert torch.equal(pictures[1], pictures[5, 1])  # (epoch, row)
    expected = torch.tensor([20, 0, 235]) / 127.5 - 1
    torch.testing.assert_close(pictures[1], expected[:, None, None].expand(3, 4, 4))


def test_read_once(table: Callable, load: Callable, built: list) -> None:
    path = table(line("1", "红", 1), line("2", "绿", 2))
    first, again = load(path), load(path)
    copied = load(table(path.read_text(), name="copy.tsv"))
    assert built == [path]
    assert first.to_list() == again.to_list() == copied.to_list()
    assert first._fingerprint == again._fingerprint == copied._fingerprint


def test_another_content_is_another_table(table: Callable, load: Callable, built: list) -> None:
    path = table(line("1", "红", 1))
    first = load(path)
    stat = path.stat()
    table(line("1", "红", 2))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as it happens when archives are unpacked
    second = load(path)
    assert second[0]["picture"] == picture(2)
    assert first._fingerprint != second._fingerprint
    assert len(built) == 2


def test_other_options_are_another_table(table: Callable, load: Callable, tmp_path: Path, built: list) -> None:
    path = table(line("1", "红|绿", 1))
    assert load(path)[0]["captions"] == ["红|绿"]
    assert load(path, caption_separator="|")[0]["captions"] == ["红", "绿"]
    swapped = load_rows(path, "text,idx,imgbase64", cache_dir=tmp_path / "cache")
    assert (swapped[0]["idx"], swapped[0]["captions"]) == ("红|绿", ["1"])
    # The same columns, written another way.
    assert load_rows(path, "idx,text,imgbase64", cache_dir=tmp_path / "cache")._fingerprint == load(path)._fingerprint
    assert len(built) == 3


def test_gzip(tmp_path: Path, load: Callable) -> None:
    (tmp_path / "table.tsv.gz").write_bytes(gzip.compress(line("1", "红", 1).encode()))
    assert load(tmp_path / "table.tsv.gz")[0]["captions"] == ["红"]


def test_a_build_that_was_stopped_is_not_taken(
    table: Callable, load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(*(line(str(n), "红", n) for n in range(100)))
    opened = 0

    def stop_in_the_middle(data: bytes) -> None:
        nonlocal opened
        opened += 1
        if opened == 70:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "open_picture", stop_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            load(path)
    assert not [found for found in (tmp_path / "cache" / "pai_painter_rows").iterdir() if found.is_dir()]
    assert len(load(path)) == 100


def build_and_die(path: Path, cache: Path) -> None:
    """Killed in the middle: nothing gets tidied up, and nothing lets go of the lock but the system."""

    def die(data: bytes) -> None:
        os.kill(os.getpid(), 9)

    rows_module.open_picture = die
    load_rows(path, SCHEMA, cache_dir=cache)


def build_slowly(path: Path, cache: Path, done: str) -> None:
    """Notes in `done` how many rows it got, and whether it had to build."""
    write = rows_module._write_table
    built = []

    def slowly(*arguments: object) -> None:
        built.append(1)
        time.sleep(0.5)
        write(*arguments)

    rows_module._write_table = slowly
    rows = load_rows(path, SCHEMA, cache_dir=cache)
    Path(done).write_text(f"{len(rows)} {len(built)}")


def test_a_killed_build_and_two_at_once(table: Callable, tmp_path: Path) -> None:
    path, cache = table(*(line(str(n), "红", n) for n in range(20))), tmp_path / "cache"
    fork = multiprocessing.get_context("fork")
    killed = fork.Process(target=build_and_die, args=(path, cache))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -9
    names = [found.name for found in (cache / "pai_painter_rows").iterdir() if found.is_dir()]
    assert names
    assert all(name.startswith(".") for name in names)

    notes = [str(tmp_path / f"done-{number}") for number in range(2)]
    runs = [fork.Process(target=build_slowly, args=(path, cache, note)) for note in notes]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert sorted(Path(note).read_text() for note in notes) == ["20 0", "20 1"]
    names = [found.name for found in (cache / "pai_painter_rows").iterdir() if found.is_dir()]
    assert len(names) == 1
    assert not names[0].startswith(".")


def test_rejected_rows_are_listed(
    table: Callable, load: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = table(line("1", "红", 1), "2\t绿\n", line("3", "蓝", 3), "4\t黄\t!!!\n", f"5\t黑\t{'A' * 40}\n")
    rejects = tmp_path / "out" / "rejected.jsonl"
    rows = load(path, rejects=rejects)
    assert rows["idx"][:] == ["1", "3"]
    records = [json.loads(record) for record in rejects.read_text(encoding="utf-8").splitlines()]
    assert [(record["line"], record["idx"]) for record in records] == [(2, "2"), (4, "4"), (5, "5")]
    assert records[0]["file"] == str(path)
    assert "cells" in records[0]["reason"]
    assert "'!'" in records[1]["reason"]
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.messages[-1].startswith(f"3 rows of {path} can't be used; line 2: The row has 2 cells")
    assert caplog.messages[-1].endswith(f"All are listed in {rejects}.")
    # From the cache all is told again; a file without bad rows takes the old list away.
    rejects.unlink()
    load(path, rejects=rejects)
    assert len(rejects.read_text(encoding="utf-8").splitlines()) == 3
    load(table(line("1", "红", 1)), rejects=rejects)
    assert not rejects.exists()


@pytest.mark.parametrize("max_bad_rows", [0, 1])
def test_too_many_bad_rows(table: Callable, load: Callable, max_bad_rows: int) -> None:
    path = table(line("1", "红", 1), "2\t绿\n", "3\n")
    assert len(load(path, max_bad_rows=2)) == 1
    message = rf"has 2 unusable and 1 usable rows \(the first, line 2: .* cells .*\); at most {max_bad_rows} unusable"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            load(path, max_bad_rows=max_bad_rows)


def test_nothing_usable(table: Callable, load: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 2 unusable and 0 usable rows .*`input_schema` \(idx:str:1,"):
        load(table("a\tb\n", "c\td\n"))
    with pytest.raises(ValueError, match=r"table\.tsv is empty"):
        load(table())
    with pytest.raises(ValueError, match=r"There is no file \S+nothing\.tsv\."):
        load(tmp_path / "nothing.tsv")
    with pytest.raises(ValueError, match=r"There is no file"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"has no column 'idx'"):
        load_rows(table(line("1", "红", 1)), "text,imgbase64", cache_dir=tmp_path / "cache")


def test_rows_are_written_in_small_batches(table: Callable, load: Callable) -> None:
    """Memory doesn't grow with the file, nor do a thousand large pictures have to fit."""
    rows = load(table(*(line(str(n), "红", n % 256) for n in range(100))))
    assert [len(batch) for batch in rows.data.table.to_batches()] == [32, 32, 32, 4]


def test_hash_of_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert hash_of_file(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")
