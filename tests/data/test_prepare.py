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

import datasets
import numpy as np
import pytest
from colour_profiles import cmyk_profile, rgb_profile
from PIL import Image

from pai_painter.data import open_picture
from pai_painter.data.prepare import Prepared, PrepareOptions, prepare_rows
from pai_painter.data.sources import find_source


def picture(number: int = 0, size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def line(idx: object, text: str, data: bytes) -> str:
    return f"{idx}\t{text}\t{base64.b64encode(data).decode()}\n"


def prepare(source: Path | str, output: Path, force: bool = False, max_bad_rows: int = 100, **options) -> Prepared:
    reading = {name: options.pop(name) for name in ("caption_separator", "image_folder") if name in options}
    workers = options.pop("workers", 1)
    options = PrepareOptions(caption_separator=reading.get("caption_separator"), **options)
    more = {"max_bad_rows": max_bad_rows, "force": force, "workers": workers, "cache_dir": output.parent / "cache"}
    return prepare_rows(find_source([str(source)], **reading), output, options, **more)


def rows_of(done: Prepared) -> list[tuple[str, str, bytes]]:
    lines = [line for shard in done.shards for line in shard.read_text(encoding="utf-8").split("\n")[:-1]]
    return [(idx, text, base64.b64decode(data)) for idx, text, data in (line.split("\t") for line in lines)]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


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
    done = prepare(table, tmp_path / "out", shard_size=2)
    assert [path.name for path in done.shards] == [f"shard-0000{number}.tsv" for number in range(4)]
    assert rows_of(done) == [(str(number), f"图{number}", picture(number)) for number in range(7)]
    assert (done.rows, done.rejected, done.joined_lines) == (7, 2, 0)
    cut, empty = (json.loads(line) for line in done.rejected_file.read_text(encoding="utf-8").splitlines())
    assert (cut["file"], cut["line"], cut["idx"]) == (str(table), 3, "cut")
    assert "cut off" in cut["reason"]
    assert (empty["line"], empty["reason"]) == (6, "The caption is empty.")


def test_shards_are_a_source_again(table, tmp_path) -> None:
    first = prepare(table, tmp_path / "out", shard_size=2)
    parquet = prepare(tmp_path / "out" / "*.tsv", tmp_path / "parquet", format="parquet", shard_size=100)
    again = prepare(tmp_path / "parquet" / "*.parquet", tmp_path / "again", shard_size=2)
    assert rows_of(again) == rows_of(first)
    assert parquet.rejected_file is again.rejected_file is None
    assert not (tmp_path / "again" / "rejected_rows.jsonl").exists()
    rows = datasets.Dataset.from_parquet([str(path) for path in parquet.shards], cache_dir=str(tmp_path / "hub"))
    assert rows.features["image"] == datasets.Image()
    np.testing.assert_array_equal(np.asarray(rows[6]["image"]), np.asarray(Image.open(io.BytesIO(picture(6)))))


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_every_control_character_comes_back(format: str, tmp_path) -> None:
    text = "红" + "".join(chr(code) for code in [*range(32), *range(127, 160), 0x2028, 0xFEFF]) + "果"
    rows = [{"idx": f"{number}\0", "text": text, "image": base64.b64encode(picture()).decode()} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = prepare(tmp_path / "rows.jsonl", tmp_path / "out", format=format)
    found = [(row["idx"], row["captions"], row["reason"]) for row in find_source(done.shards).rows()]
    assert found == [(f"{number}\0", [text.replace("\t\n", " ").replace("\r", " ")], None) for number in range(3)]
    assert (done.rows, done.rejected, done.joined_lines) == (3, 0, 3)


def test_captions_of_several_lines_and_several_captions(tmp_path) -> None:
    rows = [{"text": ["黑猫\n\n在桌上", "红| 苹果"], "image": base64.b64encode(picture()).decode()}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="has 2 captions: please say what stands between them"):
        prepare(tmp_path / "rows.jsonl", tmp_path / "out")
    done = prepare(tmp_path / "rows.jsonl", tmp_path / "out", caption_separator="|")
    assert rows_of(done) == [("1", "黑猫 在桌上|红|苹果", picture())]
    assert done.joined_lines == 1


def test_pictures_are_shrunk_but_never_enlarged(tmp_path) -> None:
    data = [picture(1, (40, 20)), picture(2, (20, 40), "JPEG"), picture(3, (10, 30)), picture(4, (30, 20), "WEBP")]
    path = tmp_path / "rows.tsv"
    path.write_text("".join(line(number, "图", file) for number, file in enumerate(data)))
    files = [file for _, _, file in rows_of(prepare(path, tmp_path / "out", size=10))]
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
    kept = rows_of(prepare(path, tmp_path / "kept"))
    assert [file for _, _, file in kept] == [file.getvalue() for file in files]
    small = [file for _, _, file in rows_of(prepare(path, tmp_path / "small", size=10))]
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
        ("rows.csv", b"file_name,text\n", "has no rows"),
        ("rows.jsonl", b"{}\n", "has no column 'text', but none at all"),
        ("rows.tsv", b"1\tx\n", "has no usable row; the first of 1 bad ones: "),
    ],
)
def test_wrong_files_and_options(name, content, sentence, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prepare(tmp_path / name, tmp_path / "out")
    assert not list(tmp_path.glob("out/*shard*"))
    for options in ({"shard_size": 0}, {"size": 0}, {"format": "csv"}, {"caption_separator": "\t"}):
        with pytest.raises(ValueError, match=r"must be at least 1|is tsv or parquet|can't be a tab"):
            PrepareOptions(**options)


# Other people's files


def test_only_what_the_manifest_names_is_removed(table, tmp_path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.txt and perhaps more"):
        prepare(table, output)
    prepare(table, output, force=True, shard_size=2)
    (output / "shard-00009.tsv").write_text("mine, too")
    done = prepare(table, output, force=True, shard_size=100)
    assert (output / "thesis.txt").read_text() == "mine"
    assert (output / "shard-00009.tsv").read_text() == "mine, too"
    assert sorted(path.name for path in output.glob("shard-*")) == ["shard-00000.tsv", "shard-00009.tsv"]
    assert done.rows == 7


@pytest.mark.parametrize("name", ["shard-00000.tsv", "manifest.json", "rejected_rows.jsonl"])
def test_files_of_others_are_not_overwritten(name, table, tmp_path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    for content in ("mine", json.dumps({"layout": "shards of pai-painter, 2", "run": {}, "shards": ["../rows.tsv"]})):
        (output / name).write_text(content)
        for force in (False, True):
            with pytest.raises(ValueError, match="please name a new folder"):
                prepare(table, output, force=force)
        assert (output / name).read_text() == content
        assert table.exists()
        for rest in set(output.iterdir()) - {output / name}:
            rest.unlink()


def test_no_input_lies_in_what_is_replaced(table, tmp_path) -> None:
    before = tmp_path / "out"
    prepare(table, before, shard_size=2)
    (tmp_path / "link").symlink_to(before)
    for source in (before / "*.tsv", tmp_path / "link" / "shard-00000.tsv"):
        with pytest.raises(ValueError, match="please name another folder for the shards"):
            prepare(source, before, force=True)
    assert len(list(before.glob("shard-*"))) == 4
    for wrong in (table, tmp_path / "new.tsv"):
        with pytest.raises(ValueError, match="is a file or named like one"):
            prepare(table, wrong)


# Stopping and resuming


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
        for name in ("fsync", "replace", "unlink", "mkdir"):
            setattr(os, name, counting(getattr(os, name)))
        work()

    return counted_work


@pytest.mark.parametrize(("format", "step"), [("tsv", 1), ("parquet", 4)])
def test_killed_before_every_call_that_matters(table, format, step, tmp_path) -> None:
    table.write_text("".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    options = {"format": format, "shard_size": 2}
    prepare(table, tmp_path / "straight", **options)
    wanted = tree(tmp_path / "straight")
    for call in range(0, 100, step):
        output = tmp_path / f"killed-{call}" / "out"
        status = in_a_child(killed_at(call, lambda output=output: prepare(table, output, **options)))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        output.parent.mkdir(exist_ok=True)
        done = prepare(table, output, **options)
        assert tree(output) == wanted
        assert (done.rows, done.rejected) == (3, 1)
    assert call > 8


def test_what_is_done_is_not_done_again(table, tmp_path) -> None:
    done = prepare(table, tmp_path / "out", shard_size=2)
    before = {path: path.stat().st_mtime_ns for path in done.shards}
    assert prepare(table, tmp_path / "out", shard_size=2) == done
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_shards_of_another_run_are_refused(table, tmp_path) -> None:
    """Also if that was killed in the middle: no shard of it is taken for one of this run."""
    output = tmp_path / "out"
    prepare(table, output, shard_size=2)
    with pytest.raises(ValueError, match=r"other options \(shard_size 2 instead of 3\)"):
        prepare(table, output, shard_size=3)
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("图6", "画6"), encoding="utf-8")  # as long as before
    with pytest.raises(ValueError, match=r"another source or other options \(rows "):
        prepare(table, output, shard_size=2)
    in_a_child(killed_at(6, lambda: prepare(table, output, shard_size=2, force=True)))
    prepare(table, output, shard_size=2, force=True)
    prepare(table, tmp_path / "straight", shard_size=2)
    assert tree(output) == tree(tmp_path / "straight")


def test_too_many_bad_rows(table, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"2 unusable and 4 usable rows, but at most 1 .* The first: .*line 3"):
        prepare(table, tmp_path / "out", max_bad_rows=1)
    assert (tmp_path / "out" / "rejected_rows.jsonl").read_text().count("\n") == 2
    prepare(table, tmp_path / "out", max_bad_rows=2)
    prepare(table, tmp_path / "straight")
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


def test_two_at_once(table, tmp_path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="Another process is writing"):
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
        assert not list((tmp_path / "out").glob(".*.partial"))
    prepare(table, tmp_path / "out", format=format, shard_size=3)
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


@pytest.mark.slow
def test_several_processes(tmp_path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("".join(line(number, "图", picture(number, (60, 50))) for number in range(60)), encoding="utf-8")
    prepare(path, tmp_path / "straight", shard_size=20, size=10)
    prepare(path, tmp_path / "two" / "out", shard_size=20, size=10, workers=2)
    assert tree(tmp_path / "two" / "out") == tree(tmp_path / "straight")
