# SPDX-License-Identifier: Apache-2.0
"""Tables on the disk: whole or not there, never stale, never damaged."""

import base64
import io
import json
import logging
import multiprocessing
import os
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

from pai_painter.data import sources
from pai_painter.data.open_picture import PICTURE_FORMATS, open_picture
from pai_painter.data.row_cache import PictureRows, load_rows
from pai_painter.data.sources import find_source
from pai_painter.model.image_processing_pai_painter import PaiPainterImageProcessor

SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(buffer, format="PNG")
    return buffer.getvalue()


def line(idx: str, text: str, shade: int) -> str:
    return f"{idx}\t{text}\t{base64.b64encode(picture(shade)).decode()}\n"


def records_of(path: Path) -> list[dict]:
    return [json.loads(record) for record in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str, name: str = "table.tsv") -> Path:
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., datasets.Dataset]:
    def load(*paths: Path, **options: object) -> datasets.Dataset:
        finding = {name: options.pop(name) for name in ("caption_separator", "input_schema") if name in options}
        return load_rows(find_source(paths, **finding), cache_dir=tmp_path / "cache", **options)

    return load


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pictures that were opened to check them."""
    found: list[bytes] = []
    check = sources.open_picture
    monkeypatch.setattr(sources, "open_picture", lambda data: found.append(data) or check(data))
    return found


def test_content(table: Callable, load: Callable) -> None:
    state = torch.get_rng_state()
    rows = load(table(line("003", "红苹果|苹果", 10), line("NA", "null\0\x1b[0m", 20)), caption_separator="|")
    assert torch.equal(torch.get_rng_state(), state)  # what is trained doesn't depend on whether the cache was there
    assert rows.column_names == ["idx", "captions", "picture"]
    assert rows[0] == {"idx": "003", "captions": ["红苹果", "苹果"], "picture": picture(10)}
    assert rows[1] == {"idx": "NA", "captions": ["null\0\x1b[0m"], "picture": picture(20)}
    pictures = PictureRows(rows, PaiPainterImageProcessor(size=4))
    assert torch.equal(pictures[1], pictures[5, 1])  # (epoch, row)
    expected = torch.tensor([20, 0, 235]) / 127.5 - 1
    torch.testing.assert_close(pictures[1], expected[:, None, None].expand(3, 4, 4))


def test_read_once(table: Callable, load: Callable, opened: list) -> None:
    """A copy is known by its content; a change is noticed although size and time are the same."""
    path = table(line("1", "红", 1), "bad\n", line("2", "绿", 2))
    first, again = load(path), load(path)
    copied = load(table(path.read_text(), name="copy.tsv"))
    assert len(opened) == 2
    assert first.to_list() == again.to_list() == copied.to_list()
    assert first._fingerprint == again._fingerprint == copied._fingerprint
    stat = path.stat()
    table(line("1", "红", 1), "bad\n", line("2", "绿", 3))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = load(path)
    assert second[1]["picture"] == picture(3)
    assert first._fingerprint != second._fingerprint


def test_other_options_are_another_table(table: Callable, load: Callable) -> None:
    path = table(line("1", "红|绿", 1))
    plain = load(path)
    assert load(path, caption_separator="|")[0]["captions"] == ["红", "绿"]
    assert load(path, input_schema="text,idx,imgbase64")[0]["captions"] == ["1"]
    assert load(path, input_schema="idx,text,imgbase64")._fingerprint == plain._fingerprint  # written another way


def die(data: bytes) -> None:
    os.kill(os.getpid(), 9)


def load_in_a_child(path: Path, cache: Path, note: Path, killed: bool) -> None:
    """Killed in the middle: nothing gets tidied up, and nothing lets go of the lock but the system."""
    if killed:
        sources.open_picture = die
    note.write_text(str(len(load_rows(find_source([path]), cache_dir=cache))))


def test_a_killed_build_and_two_at_once(table: Callable, load: Callable, tmp_path: Path) -> None:
    path, folder = table(*(line(str(n), "红", n) for n in range(20))), tmp_path / "cache" / "pai_painter_rows"
    fork = multiprocessing.get_context("fork")
    killed = fork.Process(target=load_in_a_child, args=(path, tmp_path / "cache", tmp_path / "note", True))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -9
    assert list(folder.glob(".*.partial"))
    assert not list(folder.glob("*.arrow"))
    notes = [tmp_path / f"note-{number}" for number in range(2)]
    runs = [fork.Process(target=load_in_a_child, args=(path, tmp_path / "cache", note, False)) for note in notes]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [note.read_text() for note in notes] == ["20", "20"]
    assert len(list(folder.glob("*.arrow"))) == 1
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("damage", ["cut", "empty", "head"])
def test_a_damaged_table_is_named_and_made_anew(
    damage: str, table: Callable, load: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture, opened: list
) -> None:
    path = table(*(line(str(n), "红", n) for n in range(40)))
    before = load(path).to_list()
    (cache,) = (tmp_path / "cache" / "pai_painter_rows").glob("*.arrow")
    content = cache.read_bytes()
    cache.unlink()  # a new file: the old one is still mapped into memory
    cache.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "head": bytes(100) + content[100:]}[damage])
    with caplog.at_level(logging.WARNING):
        assert load(path).to_list() == before
    assert f"The cache {cache} is damaged" in caplog.text
    assert len(opened) == 80


def test_rejected_rows_are_listed(
    table: Callable, load: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = table(line("1", "红", 1), "2\t绿\n", line("3", "蓝", 3), "4\t黄\t!!!\n", f"5\t黑\t{'A' * 40}\n")
    rejects = tmp_path / "out" / "rejected.jsonl"
    assert load(path, rejects=rejects)["idx"][:] == ["1", "3"]
    records = records_of(rejects)
    assert [(record["line"], record["idx"]) for record in records] == [(2, "2"), (4, "4"), (5, "5")]
    assert records[0]["file"] == str(path)
    assert "begins with '!!!', is not base64" in records[1]["reason"]
    assert f"{path} has 3 unusable rows, the first {path}, line 2: The row has 2 cells" in caplog.text
    assert f"{rejects} lists all of them" in caplog.text
    # From the cache all is told again, by the file's new name; a file without bad rows takes the old list away.
    moved = path.rename(tmp_path / "moved.tsv")
    load(moved, rejects=rejects)
    assert {record["file"] for record in records_of(rejects)} == {str(moved)}
    load(table(line("1", "红", 1)), rejects=rejects)
    assert not rejects.exists()


def test_too_many_bad_rows(table: Callable, load: Callable, tmp_path: Path, opened: list) -> None:
    path = table(line("1", "红", 1), *["bad\n"] * 3, *(line(str(n), "绿", n) for n in range(50)))
    rejects = tmp_path / "rejected.jsonl"
    message = r"3 unusable rows, the first .*, line 2: .*; at most 2 are allowed \(`max_bad_rows`\)"
    with pytest.raises(ValueError, match=message):
        load(path, max_bad_rows=2, rejects=rejects)
    assert (len(opened), len(records_of(rejects))) == (1, 3)
    assert len(load(path, max_bad_rows=3)) == 51  # what was read until then is not taken for the table
    with pytest.raises(ValueError, match=r"1 unusable row.*; at most 0 are allowed"):
        load(path, max_bad_rows=0)
    with pytest.raises(ValueError, match=r"has no usable row \(2 unusable rows, the first .* instead of 3"):
        load(table("a\tb\n", "c\td\n"))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_source(kind: str, tmp_path: Path, load: Callable) -> None:
    expected = samples(10, bad=(3,))
    path = WRITERS[kind](tmp_path, expected)
    rows = load(path, rejects=tmp_path / "rejected.jsonl")
    good = [(idx, [text], data) for idx, text, data in expected if idx != "r3"]
    assert [tuple(row.values()) for row in rows.to_list()] == good
    (record,) = records_of(tmp_path / "rejected.jsonl")
    assert (record["idx"], record["line"]) == ("r3", 5 if kind == "csv folder" else 4)


def test_a_data_set_by_name(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(2):
        write_parquet(tmp_path / "set", samples(4, first=4 * number), f"train-{number}.parquet")
    source = find_source(None, dataset_name=str(tmp_path / "set"))
    assert load_rows(source, cache_dir=tmp_path / "cache")["idx"][:] == [f"r{number}" for number in range(8)]


@pytest.mark.slow
def test_several_processes(table: Callable, tmp_path: Path) -> None:
    source = find_source([table(*(line(str(n), "红", n % 256) for n in range(100)), "bad\n")])
    one = load_rows(source, cache_dir=tmp_path / "one")
    assert load_rows(source, cache_dir=tmp_path / "two", workers=2).to_list() == one.to_list()


def test_pictures_of_all_sorts(tmp_path: Path, load: Callable) -> None:
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
    jpeg = file_of(red, "JPEG")
    comments = b"".join(b"!\xfe" + b"\xff" + bytes(255) + b"\0" for _ in range(5000))
    gif = file_of(red, "GIF")
    place = gif.index(b",", 13 + (3 << (gif[10] & 7) + 1))
    good = {
        **{name: file_of(red, name, **({"lossless": True} if name == "WEBP" else {})) for name in PICTURE_FORMATS},
        "EXIF": file_of(half, "PNG", exif=rotated),
        "transparent": file_of(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"),
        "16 bits": file_of(deep, "PNG"),
        "CMYK": file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"),
        "animation": file_of(red, "GIF", save_all=True, append_images=[blue, blue]),
    }
    bad = {
        "pixels": (file_of(Image.new("1", (8193, 8193)), "PNG"), "8193x8193 pixels, more than"),
        "cut off": (file_of(half, "BMP")[:100], "truncated"),
        "format": (file_of(red, "PPM"), "none of PNG"),
        "nothing": (b"", "is empty"),
        "scans": (jpeg[:-2] + b"\xff\xda" * 300 + jpeg[-2:], "more than 200 scans"),
        "comments": (gif[:place] + comments + gif[place:], "bytes before its first frame"),
    }
    lines = [f"{name}\t红\t{base64.b64encode(data).decode()}\n" for name, data in good.items()]
    lines += [f"{name}\t红\t{base64.b64encode(data).decode()}\n" for name, (data, _) in bad.items()]
    (tmp_path / "x.tsv").write_text("".join(lines), encoding="utf-8")
    rows = load(tmp_path / "x.tsv", rejects=tmp_path / "rejected.jsonl")
    found = {row["idx"]: open_picture(row["picture"]) for row in rows}
    assert list(found) == list(good)
    wanted = {"EXIF": (0, 0, 255), "transparent": (255, 255, 255), "16 bits": (77, 77, 77)}
    for name, image in found.items():
        assert image.mode == "RGB"
        pixel = image.getpixel((6, 6))
        assert max(abs(one - two) for one, two in zip(pixel, wanted.get(name, (255, 0, 0)), strict=True)) < 3, name
    for record, (name, (_, reason)) in zip(records_of(tmp_path / "rejected.jsonl"), bad.items(), strict=True):
        assert record["idx"] == name
        assert reason in record["reason"]


def test_every_spelling_of_base64(tmp_path: Path, load: Callable) -> None:
    data = next(found for found in map(picture, range(256)) if {"+", "/"} <= set(base64.b64encode(found).decode()))
    assert len(data) % 3  # there is something to pad
    text, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    spellings = [text, url_safe, text.rstrip("="), url_safe.rstrip("="), f"data:image/png;base64,{text}", f" {text} "]
    wrong = [text[:21], text.replace("+", " "), f"b'{text}'", f"data:image/png,{text}"]
    (tmp_path / "x.tsv").write_text("".join(f"{n}\t红\t{cell}\n" for n, cell in enumerate(spellings + wrong)))
    # In Parquet a cell may have line breaks, too.
    broken = "\r\n".join(text[place : place + 10] for place in range(0, len(text), 10))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["红"] * 7, "image": [*spellings, broken]}), tmp_path / "x.parquet"
    )
    for name, count in (("x.tsv", 6), ("x.parquet", 7)):
        assert load(tmp_path / name, max_bad_rows=4)["picture"][:] == [data] * count


def test_names_that_are_not_unicode(tmp_path: Path, load: Callable) -> None:
    """What can't be written as UTF-8 is no reason to fall over the list of bad rows."""
    write_jsonl_folder(tmp_path, samples(2))
    metadata = tmp_path / "pictures" / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + json.dumps({"text": "红", "file_name": "no\ud83d.png"}))
    for _ in range(2):
        assert len(load(tmp_path / "pictures", rejects=tmp_path / "rejected.jsonl")) == 2
        assert records_of(tmp_path / "rejected.jsonl")[0]["idx"] == "no?.png"


def test_rows_are_written_in_small_batches(table: Callable, load: Callable) -> None:
    """Memory doesn't grow with the file, nor do a thousand large pictures have to fit."""
    rows = load(table(*(line(str(n), "红", n % 256) for n in range(100))))
    assert [len(batch) for batch in rows.data.table.to_batches()] == [32, 32, 32, 4]
