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
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sample_files import WRITERS, samples, write_jsonl_folder, write_parquet

from pai_painter.data import rows as rows_module
from pai_painter.data.pictures import PICTURE_FORMATS, open_picture
from pai_painter.data.rows import PictureRows, load_rows
from pai_painter.data.sources import find_source
from pai_painter.model.image_processing_pai_painter import PaiPainterImageProcessor

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
        separator = options.pop("caption_separator", None)
        source = find_source([path], input_schema=SCHEMA, caption_separator=separator)
        return load_rows(source, cache_dir=tmp_path / "cache", **options)

    return load


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were read row by row."""
    found = []
    write = rows_module._write_table
    monkeypatch.setattr(
        rows_module, "_write_table", lambda source, *rest: found.append(source.name) or write(source, *rest)
    )
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
    assert built == [str(path)]
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
    swapped = load_rows(find_source([path], input_schema="text,idx,imgbase64"), cache_dir=tmp_path / "cache")
    assert (swapped[0]["idx"], swapped[0]["captions"]) == ("红|绿", ["1"])
    # The same columns, written another way.
    same = load_rows(find_source([path], input_schema="idx,text,imgbase64"), cache_dir=tmp_path / "cache")
    assert same._fingerprint == load(path)._fingerprint
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
    load_rows(find_source([path]), cache_dir=cache)


def build_slowly(path: Path, cache: Path, done: str) -> None:
    """Notes in `done` how many rows it got, and whether it had to build."""
    write = rows_module._write_table
    built = []

    def slowly(*arguments: object) -> None:
        built.append(1)
        time.sleep(0.5)
        write(*arguments)

    rows_module._write_table = slowly
    rows = load_rows(find_source([path]), cache_dir=cache)
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
    with pytest.raises(
        ValueError, match=r"has no usable row: of all 2 the first is .*`input_schema` \(idx,text,imgbase64\)"
    ):
        load(table("a\tb\n", "c\td\n"))
    with pytest.raises(ValueError, match=r"table\.tsv is empty"):
        load(table())
    with pytest.raises(ValueError, match=r"There is no file \S+nothing\.tsv\."):
        load(tmp_path / "nothing.tsv")
    with pytest.raises(ValueError, match=r"is a folder without metadata\.csv or metadata\.jsonl"):
        load(tmp_path)


def test_renamed_files(table: Callable, load: Callable, tmp_path: Path, built: list) -> None:
    """The table is found again, and the list of bad rows says what the files are called now."""
    for number in range(2):
        table(line("1", "红", number), "2\tbad\n", name=f"{number}.tsv")
    rejects = tmp_path / "rejected.jsonl"
    files = [tmp_path / "0.tsv", tmp_path / "1.tsv"]
    for names in (["0.tsv", "1.tsv"], ["a.tsv", "b.tsv"]):
        for number, name in enumerate(names):
            files[number] = files[number].rename(tmp_path / name)
        load_rows(find_source(files), cache_dir=tmp_path / "cache", rejects=rejects)
        records = [json.loads(record) for record in rejects.read_text(encoding="utf-8").splitlines()]
        assert [(record["file"], record["line"]) for record in records] == [(str(file), 2) for file in files]
    assert len(built) == 1
    message = rf"^{files[0]} and 1 more has 2 unusable and 2 usable rows \(the first, {files[0]}, line 2: "
    with pytest.raises(ValueError, match=message):
        load_rows(find_source(files), max_bad_rows=1, cache_dir=tmp_path / "cache")


def test_reading_stops_when_there_are_too_many_bad_rows(
    table: Callable, load: Callable, tmp_path: Path, built: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(line("1", "红", 1), *["bad\n"] * 3, *(line(str(n), "绿", n) for n in range(50)))
    opened: list[bytes] = []
    check = rows_module.open_picture
    monkeypatch.setattr(rows_module, "open_picture", lambda data: opened.append(data) or check(data))
    rejects = tmp_path / "rejected.jsonl"
    with pytest.raises(ValueError, match=r"has 3 unusable and 1 usable rows .*`max_bad_rows`\), and reading stopped"):
        load(path, max_bad_rows=2, rejects=rejects)
    assert len(opened) == 1
    assert len(rejects.read_text(encoding="utf-8").splitlines()) == 3
    assert not [found for found in (tmp_path / "cache" / "pai_painter_rows").iterdir() if found.is_dir()]
    # What was read until then is not taken for the table.
    assert len(load(path, max_bad_rows=3)) == 51
    assert len(built) == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    expected = samples(10, bad=(3,))
    path = WRITERS[kind](tmp_path, expected)
    rejects = tmp_path / "rejected.jsonl"
    rows = load_rows(find_source([path]), cache_dir=tmp_path / "cache", rejects=rejects)
    assert rows.to_list() == [
        {"idx": idx, "captions": [text], "picture": data} for idx, text, data in expected if idx != "r3"
    ]
    (record,) = [json.loads(record) for record in rejects.read_text(encoding="utf-8").splitlines()]
    assert record["file"].startswith(str(path))
    assert (record["idx"], record["line"]) == ("r3", 5 if kind == "csv folder" else 4)
    with pytest.raises(ValueError, match=r"1 unusable and 9 usable rows"):
        load_rows(find_source([path]), max_bad_rows=0, cache_dir=tmp_path / "cache")


def test_a_data_set_by_name(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(2):
        write_parquet(tmp_path / "set", samples(4, first=4 * number), f"train-{number}.parquet")
    source = find_source(None, dataset_name=str(tmp_path / "set"))
    assert load_rows(source, cache_dir=tmp_path / "cache")["idx"][:] == [f"r{number}" for number in range(8)]


@pytest.mark.parametrize("option", [{"caption_column": "other"}, {"id_column": "other"}, {"image_column": "other"}])
def test_other_columns_are_another_table(option: dict, tmp_path: Path, built: list) -> None:
    columns = {"idx": ["1"], "text": ["红"], "image": [picture(1)]}
    columns["other"] = [picture(2)] if "image_column" in option else ["绿"]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    one = load_rows(find_source([tmp_path / "x.parquet"]), cache_dir=tmp_path / "cache")
    other = load_rows(find_source([tmp_path / "x.parquet"], **option), cache_dir=tmp_path / "cache")
    assert len(built) == 2
    assert one._fingerprint != other._fingerprint
    assert one[0] != other[0]


def test_pictures_of_all_sorts(tmp_path: Path) -> None:
    """What a picture may be, each through a table and out again upright, opaque and in RGB."""

    def file_of(image: Image.Image, file_format: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format=file_format, **options)
        return buffer.getvalue()

    rotated = Image.Exif()
    rotated[0x0112] = 6
    half = Image.new("RGB", (8, 8), "red")
    half.paste("blue", (0, 0, 8, 4))  # blue above red; turned clockwise, blue is on the right
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    deep = Image.fromarray(np.full((8, 8), 257 * 77, dtype=np.uint16))
    bomb = Image.new("1", (8193, 8193))
    good = {
        **{name: file_of(red, name, **({"lossless": True} if name == "WEBP" else {})) for name in PICTURE_FORMATS},
        "EXIF": file_of(half, "PNG", exif=rotated),
        "transparent": file_of(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"),
        "16 bits": file_of(deep, "PNG"),
        "CMYK": file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"),
        "animation": file_of(red, "GIF", save_all=True, append_images=[blue, blue]),
    }
    bad = {
        "pixels": (file_of(bomb, "PNG"), "8193x8193 pixels, more than"),
        "cut off": (file_of(half, "BMP")[:100], "cut off"),
        "format": (file_of(red, "PPM"), "none of PNG"),
        "page": (b"<html></html>", "none of PNG"),
        "nothing": (b"", "is empty"),
    }
    lines = [f"{name}\t红\t{base64.b64encode(data).decode()}\n" for name, data in good.items()]
    lines += [f"{name}\t红\t{base64.b64encode(data).decode()}\n" for name, (data, _) in bad.items()]
    (tmp_path / "x.tsv").write_text("".join(lines), encoding="utf-8")
    rejects = tmp_path / "rejected.jsonl"
    rows = load_rows(find_source([tmp_path / "x.tsv"]), cache_dir=tmp_path / "cache", rejects=rejects)
    found = {row["idx"]: open_picture(row["picture"]) for row in rows}
    assert list(found) == list(good)
    assert all(image.mode == "RGB" for image in found.values())
    wanted = {"EXIF": (0, 0, 255), "transparent": (255, 255, 255), "16 bits": (77, 77, 77)}
    for name, image in found.items():
        pixel = image.getpixel((6, 6))
        assert max(abs(one - two) for one, two in zip(pixel, wanted.get(name, (255, 0, 0)), strict=True)) < 3, name
    records = [json.loads(record) for record in rejects.read_text(encoding="utf-8").splitlines()]
    assert [record["idx"] for record in records] == list(bad)
    for record in records:
        assert bad[record["idx"]][1] in record["reason"]


def test_every_spelling_of_base64(tmp_path: Path) -> None:
    data = next(found for found in map(picture, range(256)) if {"+", "/"} <= set(base64.b64encode(found).decode()))
    assert len(data) % 3  # there is something to pad
    text, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    spellings = [text, url_safe, text.rstrip("="), url_safe.rstrip("="), f"data:image/png;base64,{text}", f" {text} "]
    wrong = [text[:21], text.replace("+", " "), f"b'{text}'", f"data:image/png,{text}"]
    (tmp_path / "x.tsv").write_text("".join(f"{n}\t红\t{cell}\n" for n, cell in enumerate(spellings + wrong)))
    # In Parquet a cell may have line breaks, too.
    broken = "\r\n".join(text[place : place + 10] for place in range(0, len(text), 10))
    table = pyarrow.table({"text": ["红"] * 7, "image": [*spellings, broken]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    for name, count in (("x.tsv", 6), ("x.parquet", 7)):
        rows = load_rows(find_source([tmp_path / name]), max_bad_rows=4, cache_dir=tmp_path / "cache")
        assert rows["picture"][:] == [data] * count


def test_names_that_are_not_unicode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be written as UTF-8 is no reason to fall over the list of bad rows."""
    write_jsonl_folder(tmp_path, samples(2))
    metadata = tmp_path / "pictures" / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + json.dumps({"idx": "\ud83d", "text": "红", "file_name": "no\ud83d.png"}))
    rejects = tmp_path / "rejected.jsonl"
    for _ in range(2):
        rows = load_rows(find_source([tmp_path / "pictures"]), cache_dir=tmp_path / "cache", rejects=rejects)
        assert len(rows) == 2
        assert json.loads(rejects.read_text(encoding="utf-8"))["idx"] == "\ud83d"


def test_rows_are_written_in_small_batches(table: Callable, load: Callable) -> None:
    """Memory doesn't grow with the file, nor do a thousand large pictures have to fit."""
    rows = load(table(*(line(str(n), "红", n % 256) for n in range(100))))
    assert [len(batch) for batch in rows.data.table.to_batches()] == [32, 32, 32, 4]
