# SPDX-License-Identifier: Apache-2.0
"""Sources of every kind: the same rows out of each, and one sentence for each that is none."""

import errno
import gzip
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from sample_files import WRITERS, line, picture, samples, write_csv_folder, write_parquet, write_shard, write_tar
from sample_files import write_tsv as tsv

from pai_painter.data.sources import FEATURES, DataSource, find_source

Plain = list[tuple[str, list[str], bytes]]


def plain(source: DataSource) -> Plain:
    return [(row["idx"], row["captions"], row["picture"]) for row in source.rows() if row["reason"] is None]


def bad(source: DataSource) -> list[tuple[int, str | None, str]]:
    rows = [source.bad_row(row) for row in source.rows() if row["reason"] is not None]
    return [(row["line"], row["idx"], row["reason"]) for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    expected = samples(12)
    source = find_source([WRITERS[kind](tmp_path, expected)])
    assert plain(source) == [(idx, [text], data) for idx, text, data in expected]
    first = 2 if kind == "csv folder" else 1  # below its header
    assert [row["line"] for row in source.rows()] == list(range(first, first + 12))
    assert datasets.IterableDataset.from_generator(source.rows, FEATURES).take(2).to_list() == list(source.rows())[:2]


@pytest.mark.parametrize("kind", WRITERS)
def test_several_files_stand_one_behind_the_other(kind: str, tmp_path: Path) -> None:
    suffix = {"tsv": ".tsv", "parquet": ".parquet", "webdataset": ".tar"}.get(kind, "")
    for number in (2, 0, 1):
        WRITERS[kind](tmp_path, samples(3, first=3 * number), f"part{number}{suffix}")
    source = find_source([str(tmp_path / f"part*{suffix}")])
    assert [idx for idx, _, _ in plain(source)] == [f"r{number}" for number in range(9)]
    swapped = find_source([tmp_path / f"part1{suffix}", str(tmp_path / f"part[02]{suffix}")])
    assert [idx for idx, _, _ in plain(swapped)] == [f"r{number}" for number in (3, 4, 5, 0, 1, 2, 6, 7, 8)]


@pytest.mark.parametrize("kind", WRITERS)
def test_the_hash_is_of_the_content_and_not_of_the_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = WRITERS[kind](tmp_path / "a", samples(3))
    first = find_source([path]).content_hash()
    renamed = tmp_path / "b" / f"another-{path.name}"
    path.rename(renamed)
    assert find_source([renamed]).content_hash() == first
    other = WRITERS[kind](tmp_path / "a", [*samples(2), ("r2", "红2", picture(99))])
    assert find_source([other]).content_hash() != first
    assert find_source([renamed, other]).content_hash() != find_source([other, renamed]).content_hash()


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    """The datasets library would find nothing, and not say so."""
    for write, name in ((tsv, "rows[1].tsv"), (write_parquet, "rows[1].parquet"), (write_shard, "rows[1].tar")):
        assert len(plain(find_source([write(tmp_path, samples(2), name)]))) == 2


def test_pictures_in_parquet(tmp_path: Path) -> None:
    data = picture(7)
    base64 = line("", "", data).strip()
    spelled = base64.replace("+", "-").replace("/", "_").rstrip("=")
    cells = [pyarrow.array([data]), pyarrow.array([data], pyarrow.large_binary()), pyarrow.array([base64])]
    for cell in [*cells, pyarrow.array([spelled]), pyarrow.array([base64]).dictionary_encode()]:
        table = pyarrow.table({"n": [3], "captions": [["红", " ", "绿 "]], "pixels": cell})
        pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
        options = {"id_column": "n", "caption_column": "captions", "image_column": "pixels"}
        assert plain(find_source([tmp_path / "x.parquet"], **options)) == [("3", ["红", "绿"], data)]


def test_a_long_cell_in_every_row_is_read_one_row_at_a_time(tmp_path: Path) -> None:
    """A dictionary makes such a table small on the disk."""
    text = pyarrow.array(["红" * 9_000_000] * 100).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "image": [picture(1)] * 100}), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 3_000_000
    before = pyarrow.total_allocated_bytes()
    rows = iter(find_source([tmp_path / "x.parquet"]).rows())
    assert next(rows)["reason"] == "The caption is longer than 65536 characters."
    assert pyarrow.total_allocated_bytes() - before < 600_000_000


def test_a_file_of_the_datasets_library(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(3)], "text": ["NA", "null", "红"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    found = plain(find_source([tmp_path / "x.parquet"]))
    assert found == [("1", ["NA"], picture(0)), ("2", ["null"], picture(1)), ("3", ["红"], picture(2))]


def test_ids_and_columns_of_tsv(tmp_path: Path) -> None:
    for number in range(2):
        tsv(tmp_path, samples(2), f"{number}.tsv")
    ids = [idx for idx, _, _ in plain(find_source([str(tmp_path / "*.tsv")], input_schema="name,text,imgbase64"))]
    assert ids == ["1-1", "1-2", "2-1", "2-2"]
    named = find_source([tmp_path / "0.tsv"], input_schema="name,text,imgbase64", id_column="name")
    assert [idx for idx, _, _ in plain(named)] == ["r0", "r1"]
    content = "\t".join(reversed(line("7", "红|绿", picture(1)).strip().split("\t"))).encode() + b"\n"
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(content))
    options = {"input_schema": "pixels:str:1,caption:str:1,idx:int:1", "caption_column": "caption"}
    source = find_source([tmp_path / "x.txt.gz"], image_column="pixels", caption_separator="|", **options)
    assert plain(source) == [("7", ["红", "绿"], picture(1))]


def test_captions_in_texts_beside_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be read is a bad row, what is none of it is named: nothing is left out without a word."""
    folder = tmp_path / "a"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.jfif", "sub/红.PNG", "c.avif", "d.heic", "e.png"):
        (folder / name).write_bytes(picture(1, "PNG" if name.endswith("PNG") else "JPEG"))
        (folder / name).with_suffix(".txt").write_text("\ufeff红|绿\n")
    (folder / "e.txt").unlink()
    (folder / "notes.md").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / ".hidden.png").write_bytes(b"x")
    source = find_source([folder], caption_separator="|")
    with caplog.at_level(logging.WARNING):
        rows = plain(source)
    assert f"left out of {folder}: notes.md" in caplog.text
    assert [row[:2] for row in rows] == [(name, ["红", "绿"]) for name in ("b.jfif", "c.avif", "d.heic", "sub/红.PNG")]
    assert bad(source) == [
        (4, "e.png", "There is no file e.txt."),
        (5, "linked", "This is a linked folder, which is not followed: please name it as a further folder."),
    ]
    hashes = [source.content_hash()]
    for name, content in (("b.jfif", picture(2)), ("b.txt", b"x"), ("x.png", picture(2))):
        (folder / name).write_bytes(content)
        hashes.append(find_source([folder]).content_hash())
    assert len(set(hashes)) == 4


def test_tables_beside_each_other(tmp_path: Path) -> None:
    """Each has its own column of pictures; rows without an id are called by their path or their line."""
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "0.csv").write_text("file_name,text,idx\na.png,红,007\na.png,绿,\n", encoding="utf-8")
    base64 = line("", "", picture(2)).strip()
    (tmp_path / "1.csv").write_text(f"text,image\n蓝,{base64}\n蓝, a.png \n", encoding="utf-8")
    assert plain(find_source([str(tmp_path / "*.csv")])) == [
        ("007", ["红"], picture(1)),
        ("1-a.png", ["绿"], picture(1)),
        ("2-2", ["蓝"], picture(2)),
        ("2-a.png", ["蓝"], picture(1)),
    ]
    (tmp_path / "sub").mkdir()
    (tmp_path / "0.csv").rename(tmp_path / "sub" / "0.csv")
    assert len(plain(find_source([tmp_path / "sub" / "0.csv"], image_folder=tmp_path))) == 2


def test_bad_rows_of_tables(tmp_path: Path) -> None:
    good = {"file_name": "a.png", "text": ["红", "绿"]}
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"text": 3}, "The caption is not text, but int."),
        ({"text": "\ud800"}, "The caption holds bytes that are not UTF-8."),
        ({"text": " "}, "The caption is empty."),
        ({"text": "红" * 70_000}, "The caption is longer than 65536 characters."),
        ({"idx": "\udc80"}, "The id holds bytes that are not UTF-8."),
        ({"idx": {}}, "The id is neither text nor a number, but dict."),
        ({"file_name": 3}, "The picture is neither bytes nor base64, but int."),
        ({"file_name": " "}, "The picture is empty."),
        ({"file_name": None}, "The picture is missing."),
        ({"file_name": "\ud800"}, "surrogates not allowed"),
        ({"file_name": "a\0b"}, "embedded null byte"),
        ({"file_name": "none\x1b[0m.png"}, "There is no file none\\x1b[0m.png."),
        ({"file_name": "pipe.png"}, "There is no file pipe.png."),
        ({"file_name": "."}, "There is no file .."),
        ({"file_name": "loop.png"}, "The file loop.png can't be read (Too many levels of symbolic links)."),
        ({"file_name": "n" * 300}, f"The file {'n' * 80} can't be read (File name too long)."),
        ({"file_name": "a.png/b.png"}, "There is no file a.png/b.png."),
        ({"file_name": "https://a.org/x.png"}, "There is no file https://a.org/x.png."),
    ]
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = [good, *({**good, **change} for change, _ in changes)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = find_source([tmp_path])
    assert plain(source) == [("a.png", ["红", "绿"], picture(1))]
    reasons = [reason for _, _, reason in bad(source)]
    for reason, (_, wanted) in zip(reasons, changes, strict=True):
        assert reason.endswith(wanted) or "loop" in wanted
    assert source.content_hash()


def test_paths_stay_in_the_folder(tmp_path: Path) -> None:
    folder = write_csv_folder(tmp_path, samples(1))
    (tmp_path / "secret.png").write_bytes(picture(1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "sub/../../secret.png"]
    (folder / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{name},红\n" for name in [*names, "sub/r0.png"])
    )
    source = find_source([folder])
    assert [idx for idx, _, _ in plain(source)] == ["sub/r0.png"]
    assert all("lies outside of the folder" in reason for _, _, reason in bad(source))


@pytest.mark.parametrize("kind", ["csv folder", "jsonl folder", "texts", "named"])
def test_links_as_the_hubs_cache_has_them(kind: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123"
    write = WRITERS["jsonl folder" if kind == "jsonl folder" else "csv folder"]
    folder = write(snapshot, samples(2))
    if kind == "texts":
        (folder / "metadata.csv").unlink()
        for path in list(folder.rglob("*.png")):
            path.with_suffix(".txt").write_text("红")
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    for number, path in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    source = find_source(None, dataset_name=str(folder)) if kind == "named" else find_source([folder])
    assert (len(plain(source)), bad(source)) == (2, [])


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    image = [
        {"bytes": None, "path": "/etc/hostname"},
        None,
        {"bytes": None, "path": None},
        {"bytes": b"x", "path": None},
    ]
    pyarrow.parquet.write_table(pyarrow.table({"image": image, "text": ["a", "b", "c", None]}), tmp_path / "x.parquet")
    assert bad(find_source([tmp_path / "x.parquet"])) == [
        (1, "1", "The picture is not in the table: there is only its path '/etc/hostname'."),
        (2, "2", "The picture is missing."),
        (3, "3", "The picture is missing."),
        (4, "4", "The caption is empty."),
    ]


def test_samples_of_shards(tmp_path: Path) -> None:
    png, in_json = picture(1), {"caption": ["蓝", "青"], "idx": "id1"}
    files = [("a/0.png", png), ("a/0.json", json.dumps(in_json).encode()), ("1.png", png), ("1.json", b"{}")]
    path = write_tar(tmp_path / "x.tar", files)
    assert plain(find_source([path])) == [("id1", ["蓝", "青"], png)]
    assert bad(find_source([path])) == [(2, "1", "The caption is empty.")]
    (tmp_path / "x.tgz").write_bytes(gzip.compress(path.read_bytes()))
    assert plain(find_source([tmp_path / "x.tgz"])) == plain(find_source([path]))


# --- what stops at once


@pytest.mark.parametrize("name", ["x.tsv", "x.parquet", "x.tar", "metadata.csv", "metadata.jsonl"])
def test_files_of_another_kind(name: str, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", bytes(range(256)))
    contents = [
        (picture(0), "is not text in UTF-8: it begins with b'.x89PNG"),
        (archive.getvalue(), "is not text in UTF-8: it begins with b.PK"),
        (line("1", "红", b"x").encode("utf-16"), "is not text in UTF-8"),
        (bytes(range(200)) + b"\n", "is not text in UTF-8"),
    ]
    for content, message in contents:
        (tmp_path / name).write_bytes(content)
        message = {
            "x.parquet": "can't be read after row 0: .*not a parquet file",
            "x.tar": "can't be read after row 0: it is not a tar archive",
        }.get(name, message)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            find_source([tmp_path / name])
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=rf"{name} is not the file, but a pointer of Git LFS: .*`git lfs pull`"):
        find_source([tmp_path / name])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name} is empty"):
        find_source([tmp_path / name])
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"There is no file {tmp_path / name}"):
        find_source([tmp_path / name])
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="can be read only once"):
        find_source([tmp_path / name])


def test_an_id_may_begin_like_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("PAR1\t红\tAAAA\n\x89PNG\t绿\tAAAA\n", encoding="utf-8")
    assert len(plain(find_source([tmp_path / "x.tsv"]))) == 2


@pytest.mark.parametrize("kind", ["tsv", "parquet", "csv folder", "jsonl folder"])
@pytest.mark.parametrize("option", ["caption_column", "image_column", "id_column"])
def test_missing_columns_are_named_with_those_that_are_there(kind: str, option: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, samples(1))
    with pytest.raises(ValueError, match=rf"has no column 'absent', but .*'text'.*: please set `{option}`"):
        find_source([path], **{option: "absent"})


def test_what_can_not_be_meant(tmp_path: Path) -> None:
    one, other = tsv(tmp_path, samples(1)), write_parquet(tmp_path, samples(1))
    folder = write_csv_folder(tmp_path, samples(1))
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    (tmp_path / "both").mkdir()
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / "both" / name).touch()
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (None, {}, "No data given"),
        ([one, other], {}, "are of different kinds"),
        ([one, one], {}, "is named twice"),
        ([str(tmp_path / "*.none")], {}, "No file matches"),
        ([tmp_path / "x.xlsx"], {}, "is not known by its name"),
        ([tmp_path / "both"], {}, "has both"),
        ([one], {"dataset_name": "a/b"}, "Both files and"),
        ([one], {"image_folder": folder}, "is neither"),
        (str(one), {}, "must be a list of files"),
    ]
    for files, options, message in cases:
        with pytest.raises(ValueError, match=message):
            find_source(files, **options)


def test_damaged_files(tmp_path: Path) -> None:
    content = write_shard(tmp_path, samples(50)).read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:40_960])  # behind a file
    with pytest.raises(ValueError, match=r"x\.tar can't be read after row 0: the end of the tar archive is missing"):
        find_source([tmp_path / "x.tar"])
    archive = gzip.compress(content)
    (tmp_path / "x.tar.gz").write_bytes(archive[: len(archive) * 3 // 4])
    with pytest.raises(ValueError, match=r"x\.tar\.gz can't be read after row \d+: "):
        plain(find_source([tmp_path / "x.tar.gz"]))
    table = write_parquet(tmp_path, samples(50))
    content = table.read_bytes()
    table.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"table\.parquet can't be read after row 0: Parquet magic bytes not found"):
        find_source([table])
    table.write_bytes(content[:2000] + bytes(1000) + content[3000:])
    with pytest.raises(ValueError, match=r"table\.parquet can't be read after row \d+"):
        plain(find_source([table]))
    assert plain(find_source([write_parquet(tmp_path, [], "e.parquet")])) == []


# --- data sets by name


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataSource]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def find(name: str | Path, **options: object) -> DataSource:
        return find_source(None, dataset_name=str(name), cache_dir=tmp_path / "hub cache", **options)

    return find


@pytest.mark.parametrize("kind", ["parquet", "csv folder", "jsonl folder", "webdataset"])
def test_folders_that_the_datasets_library_reads(kind: str, tmp_path: Path, offline: Callable) -> None:
    (tmp_path / "set").mkdir()
    WRITERS[kind](tmp_path / "set", samples(6))
    options = {"image_column": "png", "caption_column": "txt"} if kind == "webdataset" else {}
    source = offline(tmp_path / "set", **options)
    assert [(captions, data) for _, captions, data in plain(source)] == [([text], data) for _, text, data in samples(6)]
    assert source.parts == (f"{tmp_path / 'set'} (train)",)
    assert not list((tmp_path / "hub cache").rglob("*.arrow"))


def test_a_changed_file_of_a_folder_is_noticed(tmp_path: Path, offline: Callable) -> None:
    path = WRITERS["jsonl folder"](tmp_path, samples(2), "set") / "r0.png"
    before, stat = offline(tmp_path / "set").content_hash(), path.stat()
    path.write_bytes(picture(9))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert offline(tmp_path / "set").content_hash() != before


def test_a_folder_does_not_reach_outside(tmp_path: Path, offline: Callable) -> None:
    folder = write_csv_folder(tmp_path, samples(1), "set")
    (tmp_path / "secret.png").write_bytes(picture(1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    rows = "r0,sub/r0.png,红\n8,link.png,红\n9,pipe.png,红\n"
    (folder / "metadata.csv").write_text(f"idx,file_name,text\n{rows}", encoding="utf-8")
    source = offline(folder)
    assert [data for _, _, data in plain(source)] == [picture(0)]
    assert [reason.split("/")[0] for _, _, reason in bad(source)] == ["The file ", "There is no file "]
    (tmp_path / "secret.jsonl").write_text('{"text": "x", "image": "y"}\n')
    (tmp_path / "card").mkdir()
    card = "---\nconfigs:\n- config_name: default\n  data_files: ../secret.jsonl\n---\n"
    (tmp_path / "card" / "README.md").write_text(card)
    with pytest.raises(ValueError, match=r"outside of the folder|secret"):
        offline(tmp_path / "card")
    (tmp_path / "card" / "README.md").unlink()
    (tmp_path / "card" / "data.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(ValueError, match="lies outside of the folder"):
        offline(tmp_path / "card")


def test_shards_of_a_data_set(tmp_path: Path, offline: Callable) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        write_parquet(tmp_path / "set", samples(4, first=4 * number), f"train-{number}.parquet")
    source = offline(tmp_path / "set")
    assert source.parts[1] == f"{tmp_path / 'set'} (train), shard 2 of 3"
    assert [(row["idx"], row["part"], row["line"]) for row in source.rows()][5:7] == [("r5", 1, 2), ("r6", 1, 3)]


def test_data_sets_that_can_not_be_loaded(tmp_path: Path, offline: Callable) -> None:
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set", samples(4))
    for name, options, message in (
        ("set", {"split": "valid"}, r"\(valid\) can't be loaded: .*valid"),
        ("none/nothing", {}, "can't be loaded"),
        ("set", {"caption_column": "caption"}, "has no column 'caption', but 'idx', 'text', 'image'"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            offline(tmp_path / name if name == "set" else name, **options)
        assert "\n" not in str(error.value)


def test_trouble_of_the_machine_is_no_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be cached as the file's fault, and the row missing from then on."""

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    source = find_source([write_csv_folder(tmp_path, samples(3))])
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        list(source.rows())
