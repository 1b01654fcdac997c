# SPDX-License-Identifier: Apache-2.0
"""Any source to shards: what is kept, what is refused, and that stopping changes nothing."""

import base64
import errno
import io
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from colour_profiles import cmyk_profile, rgb_profile
from PIL import Image

from pai_painter.data import open_picture
from pai_painter.data.prepare import prepare_rows
from pai_painter.data.sources import find_source


def picture(number: int = 0, size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def line(idx: object, text: str, data: bytes) -> str:
    return f"{idx}\t{text}\t{base64.b64encode(data).decode()}\n"


def prepare(source: Path | str, output: Path, **options) -> dict[str, Any]:
    source = find_source([str(source)], caption_separator=options.get("caption_separator"))
    return prepare_rows(source, output, cache_dir=output.parent / "cache", **options)


def shards_of(output: Path) -> list[Path]:
    return sorted(output.glob("shard-*"))


def rows_of(output: Path) -> list[tuple[str, str, bytes]]:
    lines = [line for shard in shards_of(output) for line in shard.read_text(encoding="utf-8").split("\n")[:-1]]
    return [(idx, text, base64.b64decode(data)) for idx, text, data in (line.split("\t") for line in lines)]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Seven good rows and two bad ones; with shards of two rows there are four, the last of them not full."""
    lines = [line(number, f"图{number}", picture(number)) for number in range(7)]
    lines.insert(2, line("cut", "截断", picture()[:60]))
    lines.insert(5, line("empty", " ", picture()))
    path = tmp_path / "rows.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_table_is_kept_byte_for_byte(table, tmp_path) -> None:
    output = tmp_path / "out"
    done = prepare(table, output, shard_size=2)
    assert [path.name for path in shards_of(output)] == [f"shard-0000{number}.tsv" for number in range(4)]
    assert rows_of(output) == [(str(number), f"图{number}", picture(number)) for number in range(7)]
    assert (done["rows"], done["rejected"], done["joined_lines"]) == (7, 2, 0)
    assert json.loads((output / "manifest.json").read_text()) == done
    assert sorted(done["files"]) == sorted(path.name for path in output.iterdir())
    listed = (output / "rejected_rows.jsonl").read_text(encoding="utf-8").splitlines()
    cut, empty = (json.loads(line) for line in listed)
    assert (cut["file"], cut["line"], cut["idx"]) == (str(table), 3, "cut")
    assert "truncated" in cut["reason"]
    assert (empty["line"], empty["reason"]) == (6, "The caption is empty.")


def test_shards_are_a_source_again(table, tmp_path) -> None:
    prepare(table, tmp_path / "out", shard_size=2)
    prepare(tmp_path / "out" / "*.tsv", tmp_path / "parquet", format="parquet", shard_size=100)
    assert prepare(tmp_path / "parquet" / "*.parquet", tmp_path / "again", shard_size=2)["rejected"] == 0
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "out")
    assert not (tmp_path / "again" / "rejected_rows.jsonl").exists()
    (shard,) = shards_of(tmp_path / "parquet")
    rows = datasets.Dataset.from_parquet(str(shard), cache_dir=str(tmp_path / "hub"))
    assert rows.features["image"] == datasets.Image()
    np.testing.assert_array_equal(np.asarray(rows[6]["image"]), np.asarray(Image.open(io.BytesIO(picture(6)))))


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_every_control_character_comes_back(format: str, tmp_path) -> None:
    text = "红" + "".join(chr(code) for code in [*range(32), *range(127, 160), 0x2028, 0xFEFF]) + "果"
    rows = [{"idx": f"{number}\0", "text": text, "image": base64.b64encode(picture()).decode()} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = prepare(tmp_path / "rows.jsonl", tmp_path / "out", format=format)
    found = [(row["idx"], row["captions"], row["reason"]) for row in find_source(shards_of(tmp_path / "out")).rows()]
    assert found == [(f"{number}\0", [text.replace("\t\n", " ").replace("\r", " ")], None) for number in range(3)]
    assert (done["rows"], done["rejected"], done["joined_lines"]) == (3, 0, 3)


def test_captions_of_several_lines_and_several_captions(tmp_path) -> None:
    rows = [{"text": ["黑猫\n\n在桌上", "红| 苹果"], "image": base64.b64encode(picture()).decode()}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="has 2 captions: please give a --caption-separator"):
        prepare(tmp_path / "rows.jsonl", tmp_path / "out")
    done = prepare(tmp_path / "rows.jsonl", tmp_path / "out", caption_separator="|")
    assert rows_of(tmp_path / "out") == [("1", "黑猫 在桌上|红|苹果", picture())]
    assert done["joined_lines"] == 1


def test_pictures_are_shrunk_but_never_enlarged(tmp_path) -> None:
    data = [picture(1, (40, 20)), picture(2, (20, 40), "JPEG"), picture(3, (10, 30)), picture(4, (30, 20), "WEBP")]
    path = tmp_path / "rows.tsv"
    path.write_text("".join(line(number, "图", file) for number, file in enumerate(data)))
    prepare(path, tmp_path / "out", size=10)
    files = [file for _, _, file in rows_of(tmp_path / "out")]
    assert files[2] == data[2]
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    assert [image.size for image in pictures] == [(20, 10), (10, 20), (10, 30), (15, 10)]
    assert [image.format for image in pictures] == ["PNG", "JPEG", "PNG", "JPEG"]


def test_pictures_are_shrunk_by_what_they_are(tmp_path) -> None:
    """A JPEG with more pictures in it stays a JPEG; colours become sRGB once, and metadata is left behind."""
    photo = Image.new("RGB", (40, 20), (106, 180, 71))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO() for _ in range(3)]
    photo.save(files[0], "MPO", save_all=True, append_images=[photo], icc_profile=rgb_profile())
    photo.save(files[1], "PNG", icc_profile=rgb_profile(), exif=exif, comment="by me")
    photo.convert("CMYK").save(files[2], "JPEG", icc_profile=cmyk_profile(), exif=exif, comment="by me")
    path = tmp_path / "rows.tsv"
    path.write_text("".join(line(number, "图", file.getvalue()) for number, file in enumerate(files)))
    prepare(path, tmp_path / "kept")
    kept = rows_of(tmp_path / "kept")
    assert [file for _, _, file in kept] == [file.getvalue() for file in files]
    prepare(path, tmp_path / "small", size=10)
    small = [file for _, _, file in rows_of(tmp_path / "small")]
    pictures = [Image.open(io.BytesIO(file)) for file in small]
    kinds = [("JPEG", (20, 10)), ("PNG", (10, 20)), ("JPEG", (10, 20))]
    assert [(image.format, image.size) for image in pictures] == kinds
    for before, after in zip(kept, pictures, strict=True):
        assert not {"icc_profile", "exif", "comment"} & after.info.keys()
        colour = open_picture(before[2]).getpixel((5, 5))
        assert np.abs(np.subtract(after.getpixel((5, 5)), colour)).max() <= 1
    assert pictures[1].getpixel((5, 5)) == (36, 181, 58)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.csv", b"file_name,text\n", "has no usable row .no unusable rows either"),
        ("rows.jsonl", b"{}\n", "has no column 'text', but none at all"),
        ("rows.tsv", b"1\tx\n", "has no usable row .1 unusable row, the first "),
    ],
)
def test_wrong_files_and_options(name, content, sentence, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prepare(tmp_path / name, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [name]
    source = tmp_path / "good.tsv"
    source.write_text(line(1, "图", picture()), encoding="utf-8")
    for options in ({"shard_size": 0}, {"size": 0}, {"format": "csv"}, {"caption_separator": "\t"}):
        with pytest.raises(ValueError, match=r"must be at least 1|is tsv or parquet|can't be a tab"):
            prepare_rows(find_source([source]), tmp_path / "out", **options)


# Other people's files, and those of earlier runs


def test_only_what_the_manifest_names_is_replaced(table, tmp_path) -> None:
    output = tmp_path / "out"
    prepare(table, output, shard_size=2)
    with pytest.raises(OSError, match=r"isn't empty: please name a new folder, or --force"):
        prepare(table, output)
    prepare(table, output, shard_size=100, force=True)
    prepare(table, tmp_path / "straight", shard_size=100)
    assert tree(output) == tree(tmp_path / "straight")
    for name in ("thesis.txt", "shard-00009.tsv"):
        before = tree(output)
        (output / name).write_text("mine")
        for force in (False, True):
            with pytest.raises(OSError, match=rf"doesn't replace \({name}\)" if force else "isn't empty"):
                prepare(table, output, force=force)
        assert tree(output) == {**before, name: b"mine"}
        (output / name).unlink()


@pytest.mark.parametrize("name", ["shard-00000.tsv", "manifest.json", "rejected_rows.jsonl"])
@pytest.mark.parametrize(
    "content", ["mine", "[]", '{"files": ["manifest.json"]}', '{"layout": "shards of pai-painter, 3", "files": 3}']
)
def test_files_of_others_are_not_overwritten(name, content, table, tmp_path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_text(content)
    for force in (False, True):
        with pytest.raises(OSError, match="please name a new folder"):
            prepare(table, output, force=force)
    assert tree(output) == {name: content.encode()}


def test_no_input_lies_in_what_is_replaced(table, tmp_path) -> None:
    before = tmp_path / "out"
    prepare(table, before, shard_size=2)
    (tmp_path / "link").symlink_to(before)
    for source in (before / "*.tsv", tmp_path / "link" / "shard-00000.tsv"):
        with pytest.raises(ValueError, match="must be different folders, neither inside the other"):
            prepare(source, before, force=True)
    assert len(shards_of(before)) == 4
    with pytest.raises(OSError, match="is a link or a mount point"):
        prepare(table, tmp_path / "link", force=True)
    with pytest.raises(ValueError, match="must be different"):
        prepare(table, table)


# Stopping


def in_a_child(work: Callable[[], object]) -> int:
    """Runs it in a copy of this process; returns how that ended, as `os.waitpid` has it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def killed_at(call: int, work: Callable[[], object]) -> Callable[[], object]:
    """`work`, with this process killed right before the so-manieth time that something is brought to the disk."""
    calls = iter(range(10**6))

    def counting(function: Callable) -> Callable:
        def counted(*arguments, **options) -> object:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    def counted_work() -> None:
        for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir"):
            setattr(os, name, counting(getattr(os, name)))
        work()

    return counted_work


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_killed_before_every_call_that_matters(table, format, tmp_path) -> None:
    """All is there or nothing; what is left behind is removed by the next run, and no shard of another run is taken."""
    table.write_text("".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    prepare(table, tmp_path / "before", shard_size=1)
    prepare(table, tmp_path / "straight", format=format, shard_size=2)
    before, wanted = tree(tmp_path / "before"), tree(tmp_path / "straight")
    for call in range(100):
        output = tmp_path / f"killed-{call}" / "out"
        prepare(table, output, shard_size=1)
        work = killed_at(call, lambda output=output: prepare(table, output, format=format, shard_size=2, force=True))
        status = in_a_child(work)
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        if output.exists():  # or the old one was being replaced
            assert tree(output) in (before, wanted)
        if status == 0:
            break
        done = prepare(table, output, format=format, shard_size=2, force=True)
        assert tree(output) == wanted
        assert (done["rows"], done["rejected"]) == (3, 1)
        assert sorted(path.name for path in output.parent.iterdir()) == ["cache", "out"]
    assert call > 8


def test_too_many_bad_rows(table, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"2 unusable rows, the first .*line 3: .*; at most 1 are allowed"):
        prepare(table, tmp_path / "out", max_bad_rows=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "rows.tsv"]
    prepare(table, tmp_path / "out", max_bad_rows=2)
    prepare(table, tmp_path / "straight")
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


def test_two_at_once(table, tmp_path) -> None:
    from filelock import FileLock

    (tmp_path / ".out.partial").mkdir()
    with FileLock(tmp_path / ".out.partial" / "lock"), pytest.raises(OSError, match="could not be acquired"):
        prepare(table, tmp_path / "out")


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_no_disk_space(table, format, tmp_path) -> None:
    """The file size limit raises where a full disk would; at each of several sizes, nothing half written stays."""
    prepare(table, tmp_path / "straight", format=format, shard_size=3)  # which also fills the cache

    def work(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"can't be written to|File too large") as full:
            prepare(table, tmp_path / "out", format=format, shard_size=3)
        assert full.value.errno == errno.EFBIG

    for limit in (10, 300, 600, 800):
        assert in_a_child(lambda limit=limit: work(limit)) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "rows.tsv", "straight"]
    prepare(table, tmp_path / "out", format=format, shard_size=3)
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


@pytest.mark.slow
def test_several_processes(tmp_path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("".join(line(number, "图", picture(number, (60, 50))) for number in range(60)), encoding="utf-8")
    prepare(path, tmp_path / "straight", shard_size=20, size=10)
    prepare(path, tmp_path / "two" / "out", shard_size=20, size=10, workers=2)
    assert tree(tmp_path / "two" / "out") == tree(tmp_path / "straight")
