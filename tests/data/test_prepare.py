# SPDX-License-Identifier: Apache-2.0
"""Any source to shards: what is kept, what is refused, and that stopping changes nothing."""

import base64
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
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

SCHEMA = "idx:str:1,text:str:1,imgbase64:str:1"


def picture(number: int = 0, size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def prepare(source: Path | str, output: Path, force: bool = False, max_bad_rows: int = 100, **options) -> Prepared:
    names = ("caption_separator", "image_folder", "image_column", "id_column", "caption_column")
    reading = {name: options.pop(name) for name in names if name in options}
    found = find_source([str(source)], input_schema=SCHEMA, **reading)
    workers = options.pop("workers", 1)
    options = PrepareOptions(caption_separator=reading.get("caption_separator"), **options)
    return prepare_rows(found, output, options, workers=workers, max_bad_rows=max_bad_rows, force=force)


def rows_of(done: Prepared) -> list[tuple[str, str, bytes]]:
    lines = [line for shard in done.shards for line in shard.read_text(encoding="utf-8").split("\n")[:-1]]
    return [(idx, text, base64.b64decode(data)) for idx, text, data in (line.split("\t") for line in lines)]


def reasons_of(done: Prepared) -> list[dict]:
    assert done.rejected_file is not None
    return [json.loads(line) for line in done.rejected_file.read_text(encoding="utf-8").splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Seven good rows and two bad ones; with shards of two rows there are four, the last of them not full."""
    lines = [f"{number}\t图{number}\t{base64_of(picture(number))}" for number in range(7)]
    lines.insert(2, "cut\t截断\t" + base64_of(picture()[:60]))
    lines.insert(5, "empty\t \t" + base64_of(picture()))
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    (path / "猫").mkdir(parents=True)
    (path / "b.png").write_bytes(picture(1))
    (path / "b.txt").write_text("\ufeff一只🐱\n", encoding="utf-8")
    (path / "猫" / "a.jpg").write_bytes(picture(2, format="JPEG"))
    (path / "猫" / "a.txt").write_text("黑猫\n\n在桌上", encoding="utf-8")
    return path


# Sources


def test_a_table_is_kept_byte_for_byte(table, tmp_path) -> None:
    done = prepare(table, tmp_path / "out", shard_size=2)
    assert [path.name for path in done.shards] == [f"shard-0000{number}.tsv" for number in range(4)]
    assert rows_of(done) == [(str(number), f"图{number}", picture(number)) for number in range(7)]
    assert (done.rows, done.rejected, done.joined_lines, done.repeated_ids) == (7, 2, 0, 0)
    assert done.bytes == sum(path.stat().st_size for path in done.shards)
    cut, empty = reasons_of(done)
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


def test_parquet_is_what_datasets_writes(table, tmp_path) -> None:
    done = prepare(table, tmp_path / "out", format="parquet", shard_size=5)
    rows = datasets.Dataset.from_parquet([str(path) for path in done.shards], cache_dir=str(tmp_path / "cache"))
    assert rows.features["image"] == datasets.Image()
    assert rows["idx"][:] == [str(number) for number in range(7)]
    np.testing.assert_array_equal(np.asarray(rows[6]["image"]), np.asarray(Image.open(io.BytesIO(picture(6)))))


def test_a_folder_of_pictures_and_captions(folder, tmp_path) -> None:
    (folder / "c.png").write_bytes(picture(3))
    (folder / "note.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(picture(3))
    done = prepare(folder, tmp_path / "out")
    assert rows_of(done) == [
        ("b.png", "一只🐱", picture(1)),
        ("猫/a.jpg", "黑猫 在桌上", picture(2, format="JPEG")),
    ]
    assert done.joined_lines == 1
    assert [(row["idx"], row["reason"]) for row in reasons_of(done)] == [("c.png", "There is no file c.txt.")]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_metadata(folder, name, tmp_path) -> None:
    if name.endswith(".csv"):
        (folder / name).write_text('file_name,text\nb.png,"红,""苹果"""\n', encoding="utf-8")
    else:
        (folder / name).write_text(json.dumps({"file_name": "b.png", "text": '红,"苹果"'}) + "\n", encoding="utf-8")
    assert rows_of(prepare(folder, tmp_path / "out")) == [("b.png", '红,"苹果"', picture(1))]


def test_csv(folder, tmp_path) -> None:
    rows = [
        'image,text,idx\r\n"b.png","第一行\n第二行",007\r\n',
        "猫/a.jpg,黑猫,007\r\n\r\nb.png\r\n",
        f"{base64_of(picture(5))},🍎,\r\n",
        f'"data:image/png;base64,{base64_of(picture(6))}",梨,x\r\n',
        "https://example.org/x.png,网,n\r\n",
    ]
    path = folder / "rows.csv"
    path.write_text("".join(rows), encoding="utf-8", newline="")
    done = prepare(path, tmp_path / "out")
    assert [(idx, text) for idx, text, _ in rows_of(done)] == [
        *(("007", "第一行 第二行"), ("007", "黑猫"), ("7", "🍎"), ("x", "梨")),
    ]
    assert (done.joined_lines, done.repeated_ids) == (1, 1)
    assert [(row["line"], row["reason"]) for row in reasons_of(done)] == [
        (5, "The row is empty."),
        (6, "The row has 1 cells instead of 3 (image, text, idx)."),
        (9, "The picture https://example.org/x.png is on the net; nothing is downloaded."),
    ]


def test_jsonl(folder, tmp_path) -> None:
    lines = [
        json.dumps({"image": "b.png", "text": "苹果", "idx": 3}).encode(),
        json.dumps({"image": base64_of(picture(5)), "text": "梨"}).encode(),
        b"[]",
        b"",
        b"{",
        b"[" * 100_000,
        b'{"image": "b.png", "text": "\\ud800"}',
        b'{"image": "b.png", "text": "\xff"}',
        b'{"image": 3, "text": "x"}',
        b'{"image": "b.png", "text": null}',
        b'{"image": "b.png", "text": "x", "idx": {}}',
        b'{"text": "x"}',
    ]
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    done = prepare(path, tmp_path / "out")
    assert [(idx, text) for idx, text, _ in rows_of(done)] == [("3", "苹果"), ("2", "梨")]
    assert [row["line"] for row in reasons_of(done)] == list(range(3, 13))


def test_several_captions(tmp_path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text(f"1\t红| 苹果||\t{base64_of(picture())}\n", encoding="utf-8")
    assert rows_of(prepare(path, tmp_path / "out", caption_separator="|"))[0][1] == "红|苹果"
    table = datasets.Dataset.from_dict({"text": [["红", "苹果"]], "image": [picture()]})
    table.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="has 2 captions: please say what stands between them"):
        prepare(tmp_path / "rows.parquet", tmp_path / "parquet")
    done = prepare(tmp_path / "rows.parquet", tmp_path / "parquet", caption_separator="|", force=True)
    assert rows_of(done)[0][1] == "红|苹果"


def test_pictures_are_shrunk_but_never_enlarged(tmp_path) -> None:
    data = [picture(1, (40, 20)), picture(2, (20, 40), "JPEG"), picture(3, (10, 30)), picture(4, (30, 20), "WEBP")]
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{number}\t图\t{base64_of(file)}\n" for number, file in enumerate(data)))
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
    path.write_text("".join(f"{number}\t图\t{base64_of(file.getvalue())}\n" for number, file in enumerate(files)))
    kept = rows_of(prepare(path, tmp_path / "kept"))
    assert [file for _, _, file in kept] == [file.getvalue() for file in files]
    small = [file for _, _, file in rows_of(prepare(path, tmp_path / "small", size=10))]
    pictures = [Image.open(io.BytesIO(file)) for file in small]
    assert [(image.format, image.size) for image in pictures] == [
        ("JPEG", (20, 10)),
        ("PNG", (10, 20)),
        ("JPEG", (10, 20)),
    ]
    for before, after in zip(kept, pictures, strict=True):
        assert not {"icc_profile", "exif", "comment"} & after.info.keys()
        colour = open_picture(before[2]).getpixel((5, 5))
        assert np.abs(np.subtract(after.getpixel((5, 5)), colour)).max() <= 1
    assert pictures[1].getpixel((5, 5)) == (36, 181, 58)


def test_every_ending_of_a_jpeg(tmp_path) -> None:
    for name in ("a.jfif", "b.JFIF", "c.jpe", "d.mpo", "e.jpg"):
        (tmp_path / "pictures" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(picture(1, format="JPEG"))
        (tmp_path / "pictures" / name).with_suffix(".txt").write_text("图")
    done = prepare(tmp_path / "pictures", tmp_path / "out")
    assert [idx for idx, _, _ in rows_of(done)] == ["a.jfif", "b.JFIF", "c.jpe", "d.mpo", "e.jpg"]


# Hostile sources


def test_paths_stay_in_the_folder(folder, tmp_path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(9))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "loop.png", "pipe.png", "猫/../../secret.png"]
    names += ["none.png", "a\x00.png", "x" * 5000 + ".png", ".", "b.png/x.png"]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"image": name, "text": "x"}) for name in [*names, "b.png"]))
    done = prepare(path, tmp_path / "out")
    assert [idx for idx, _, _ in rows_of(done)] == ["b.png"]
    reasons = [row["reason"] for row in reasons_of(done)]
    assert len(reasons) == len(names)
    for place in (0, 1, 2, 5):
        assert "lies outside of the folder" in reasons[place]


def test_linked_captions_and_folders_stay_in_the_folder(folder, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "c.png").write_bytes(picture(3))
    (tmp_path / "other" / "c.txt").write_text("secret")
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / "c.png").write_bytes(picture(4))
    (folder / "c.txt").symlink_to(tmp_path / "other" / "c.txt")
    done = prepare(folder, tmp_path / "out")
    assert [idx for idx, _, _ in rows_of(done)] == ["b.png", "猫/a.jpg"]
    assert "lies outside" in reasons_of(done)[0]["reason"]


def test_an_image_folder_elsewhere(folder, tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("path,caption\nb.png,苹果\n", encoding="utf-8")
    options = {"image_column": "path", "caption_column": "caption", "image_folder": folder}
    assert rows_of(prepare(path, tmp_path / "out", **options)) == [("b.png", "苹果", picture(1))]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(folder, tmp_path) -> None:
    (folder / "b.png").chmod(0)
    assert "can't be read (Permission denied)" in reasons_of(prepare(folder, tmp_path / "out"))[0]["reason"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.csv", b"", "is empty"),
        ("rows.csv", b"file_name,file_name\n", "different name for every column"),
        ("rows.csv", b"a,b\n1,2\n", "has no column 'text', but 'a', 'b': please set"),
        (
            "rows.csv",
            b'file_name,text\nb.png,"never closed\n',
            "line 2: a quotation mark is opened that is never closed",
        ),
        ("rows.csv", b"file_name,text\n", "has no usable row"),
        ("rows.csv", b"PK\x03\x04", "looks like a zip archive"),
        ("rows.jsonl", b"\xff\xfe{", "looks like UTF-16"),
        ("rows.jsonl", b"{}\n", "has no column 'text', but none at all"),
        ("rows.jsonl", b"[]\n", "has no column 'text', but none at all"),
        ("rows.xlsx", b"PK\x03\x04", "not known by its name"),
        ("rows.tsv", b"1\tx\n", "has no usable row. For example"),
    ],
)
def test_wrong_files(name, content, sentence, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prepare(tmp_path / name, tmp_path / "out")
    assert not list(tmp_path.glob("out/shard*"))
    assert not list(tmp_path.glob("out/.*.partial"))


def test_wrong_folders_and_options(folder, table, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"none of its pictures has a \.txt file"):
        prepare(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="There is no file"):
        prepare(tmp_path / "nowhere.csv", tmp_path / "out")
    with pytest.raises(ValueError, match="is neither"):
        prepare(table, tmp_path / "out", image_folder=folder)
    with pytest.raises(ValueError, match="is a file"):
        prepare(table, table)
    with pytest.raises(ValueError, match=r"please name it without \.tsv"):
        prepare(table, tmp_path / "out.tsv")
    for options in ({"shard_size": 0}, {"size": 0}, {"workers": 0}, {"format": "csv"}, {"caption_separator": "\t"}):
        with pytest.raises(ValueError, match=r"must be at least 1|is tsv or parquet|can't be a tab"):
            prepare(table, tmp_path / "out", **options)


def test_too_many_bad_rows(table, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"2 of the first 6 rows .* more than the 1 allowed \(--max-bad-rows\)"
    ) as error:
        prepare(table, tmp_path / "out", max_bad_rows=1, shard_size=100)
    assert "line 3" in str(error.value)
    assert (tmp_path / "out" / "rejected_rows.jsonl").read_text().count("\n") == 2
    prepare(table, tmp_path / "out", max_bad_rows=2, shard_size=100)  # goes on
    prepare(table, tmp_path / "straight", shard_size=100)
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


def test_a_bad_row_after_the_first_shard_is_an_example(table, tmp_path) -> None:
    with pytest.raises(ValueError, match="line 6: The caption is empty"):
        prepare(table, tmp_path / "out", max_bad_rows=1, shard_size=2)


# Stopping and going on


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


@pytest.mark.parametrize(("format", "step"), [("tsv", 1), ("parquet", 5)])
def test_killed_before_every_call_that_matters(table, format, step, tmp_path) -> None:
    table.write_text("".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    options = {"format": format, "shard_size": 2}
    prepare(table, tmp_path / "straight", **options)
    wanted = tree(tmp_path / "straight")
    for call in range(0, 100, step):
        output = tmp_path / f"killed-{call}"
        status = in_a_child(killed_at(call, lambda output=output: prepare(table, output, **options)))
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        done = prepare(table, output, **options)
        assert tree(output) == wanted
        assert (done.rows, done.rejected) == (3, 1)
    assert call > 10


def test_killed_at_random_moments_again_and_again(table, tmp_path) -> None:
    prepare(table, tmp_path / "straight", shard_size=1)
    random = np.random.default_rng(0)

    def work() -> None:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.03))
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        prepare(table, tmp_path / "out", shard_size=1)

    for _ in range(5):
        random.uniform()
        in_a_child(work)
    prepare(table, tmp_path / "out", shard_size=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


def test_what_is_done_is_not_done_again(table, tmp_path) -> None:
    prepare(table, tmp_path / "out", shard_size=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != ".lock"}
    assert prepare(table, tmp_path / "out", shard_size=2).rows == 7
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_shards_are_refused(table, tmp_path) -> None:
    output = tmp_path / "out"
    prepare(table, output, shard_size=2)
    with pytest.raises(ValueError, match=r"made from other options \(shard_size 2 instead of 3\)"):
        prepare(table, output, shard_size=3)
    with pytest.raises(ValueError, match=r"other options \(format tsv instead of parquet\)"):
        prepare(table, output, shard_size=2, format="parquet")
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("图6", "画6"), encoding="utf-8")  # as long as before
    with pytest.raises(ValueError, match=r"another source \(sha256 "):
        prepare(table, output, shard_size=2)
    prepare(table, output, shard_size=4, format="parquet", force=True)
    assert sorted(tree(output)) == [
        "manifest.json",
        "rejected_rows.jsonl",
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]


def test_damaged_shards_are_refused(table, tmp_path) -> None:
    output = tmp_path / "out"
    prepare(table, output)
    rejected = (output / "rejected_rows.jsonl").read_bytes()
    (output / "rejected_rows.jsonl").unlink()
    with pytest.raises(ValueError, match="is missing"):
        prepare(table, output)
    (output / "rejected_rows.jsonl").write_bytes(rejected)
    with open(output / "shard-00000.tsv", "a") as file:
        file.write("x")
    with pytest.raises(ValueError, match="not as it was written"):
        prepare(table, output)
    for damaged in ("{", "[]", '{"layout": 2}', '{"layout": 1}', '{"layout": 1, "source": {}, "options": {}, "x": 1}'):
        (output / "manifest.json").write_text(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            prepare(table, output)
    prepare(table, output, force=True)


def test_a_folder_of_other_things_is_left_alone(table, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.txt and perhaps more"):
        prepare(table, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"thesis.txt", ".lock"}
    prepare(table, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_two_at_once(table, tmp_path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="Another process is writing"):
        prepare(table, tmp_path / "out")


@pytest.mark.parametrize("format", ["tsv", "parquet"])
def test_no_disk_space(table, format, tmp_path) -> None:
    """The file size limit raises where a full disk would; at each of several sizes, nothing half written stays."""
    prepare(table, tmp_path / "straight", format=format, shard_size=3)
    sentences = tmp_path / "sentences"

    def work(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="can't be written to") as full:
            prepare(table, tmp_path / "out", format=format, shard_size=3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with open(sentences, "a") as file:
            file.write(f"{full.value.errno} {full.value.strerror}\n")

    limits = (10, 300, 600, 800)
    for limit in limits:
        assert in_a_child(lambda limit=limit: work(limit)) == 0
        assert not list((tmp_path / "out").glob(".*.partial"))
    said = sentences.read_text().splitlines()
    assert said == [f"{errno.EFBIG} {tmp_path / 'out'} can't be written to (File too large)"] * len(limits)
    prepare(table, tmp_path / "out", format=format, shard_size=3)
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


PROGRAM = """
import sys
from pathlib import Path
from pai_painter.data.prepare import PrepareOptions, prepare_rows
from pai_painter.data.sources import find_source

if __name__ == "__main__":
    source = find_source([sys.argv[1]], input_schema="idx,text,imgbase64")
    prepare_rows(source, Path(sys.argv[2]), PrepareOptions(shard_size=20), workers=3)
"""


@pytest.mark.slow
def test_several_processes_and_what_becomes_of_them(tmp_path) -> None:
    path = tmp_path / "rows.tsv"
    lines = [f"{number}\t图\t{base64_of(picture(number, (300, 300)))}\n" for number in range(200)]
    lines[70] = f"70\t图\t{base64_of(picture(70)[:50])}\n"
    path.write_text("".join(lines), encoding="utf-8")
    prepare(path, tmp_path / "straight", shard_size=20)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(path), str(tmp_path / "out")]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not (tmp_path / "out" / "shard-00001.tsv").exists():
        time.sleep(0.005)
    process.kill()
    process.wait()
    for _ in range(100):  # the workers notice that their parent is gone
        if not others_of_session(process.pid):
            break
        time.sleep(0.1)
    assert not others_of_session(process.pid)
    prepare(path, tmp_path / "out", shard_size=20, workers=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")


def others_of_session(session: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "Z" not in line.split()[1]]
