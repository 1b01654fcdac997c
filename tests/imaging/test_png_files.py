# SPDX-License-Identifier: Apache-2.0
"""File names from strangers' captions, and files that are whole or not there."""

import errno
import resource
from pathlib import Path

import pytest
from PIL import Image

from pai_painter.imaging.png_files import enlarge, file_stem, in_folder_or_file, save_png, unique_names
from pai_painter.whole_files import check_new_files, write_whole

PICTURE = Image.effect_noise((64, 64), 50).convert("RGB")


@pytest.mark.parametrize(
    ("caption", "stem"),
    [
        ("红苹果", "红苹果"),
        ("一只 大熊猫，在竹林里。", "一只_大熊猫_在竹林里"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "picture"),
        ("", "picture"),
        ("/", "picture"),
        ("C:\\Windows\\x", "C_Windows_x"),
        ("a\x00b\nc\x1b[31md", "a_b_c_31md"),
        ("\u202egnp.exe", "gnp_exe"),
        ("-rf", "rf"),
        ("--output=x", "output_x"),
        ("con", "con_"),
        ("NUL", "NUL_"),
        ("Com1", "Com1_"),
        ("con.txt", "con_txt"),
        ("~", "picture"),
        ("$(reboot)`x`*?", "reboot_x"),
        ("🍎", "picture"),
        ("cafe\u0301", "café"),
        ("half \ud83c pair", "half_pair"),
        ("é_ü-1", "é_ü-1"),
    ],
)
def test_names_from_captions(caption, stem) -> None:
    assert file_stem(caption) == stem


def test_long_names_are_cut_between_characters() -> None:
    stem = file_stem("红" * 1000)
    assert stem == "红" * 40
    assert len(f"{stem}-{2**63}-1000.png".encode()) < 200


def test_unique_names() -> None:
    assert unique_names(["a", "b", "A", "a"], ".png") == ["a.png", "b.png", "A-2.png", "a-3.png"]
    assert unique_names(["a-2", "a", "a"], ".png") == ["a-2.png", "a.png", "a-3.png"]


def test_folder_or_file(tmp_path) -> None:
    names = ["a.png", "b.png"]
    assert in_folder_or_file(tmp_path / "new", names) == [tmp_path / "new" / "a.png", tmp_path / "new" / "b.png"]
    assert in_folder_or_file(tmp_path / "v1.5", ["a.png"]) == [tmp_path / "v1.5" / "a.png"]
    assert in_folder_or_file(tmp_path / "X.PNG", ["a.png"]) == [tmp_path / "X.PNG"]
    with pytest.raises(ValueError, match="one file for 2 pictures"):
        in_folder_or_file(tmp_path / "x.png", names)
    with pytest.raises(ValueError, match=r"end in \.png"):
        in_folder_or_file(tmp_path / "x.jpg", ["a.png"])
    (tmp_path / "folder.png").mkdir()
    assert in_folder_or_file(tmp_path / "folder.png", ["a.png"]) == [tmp_path / "folder.png" / "a.png"]


def test_check_new_files(tmp_path) -> None:
    there = tmp_path / "there.png"
    there.write_bytes(b"x")
    check_new_files([tmp_path / "new" / "deep" / "a.png"], force=False)
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    with pytest.raises(FileExistsError, match="--force"):
        check_new_files([there], force=False)
    check_new_files([there], force=True)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_new_files([tmp_path], force=True)
    with pytest.raises(OSError, match="Nothing can be written to the folder"):
        check_new_files([there / "a.png"], force=False)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="--force"):
        check_new_files([tmp_path / "link.png"], force=False)


def test_png_with_metadata(tmp_path) -> None:
    path = tmp_path / "a.png"
    text = {"caption": "红\n苹果 🍎", "Software": "pai-painter"}
    save_png(PICTURE, path, text)
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    with Image.open(path) as picture:
        assert picture.text == text
        assert picture.tobytes() == PICTURE.tobytes()


def test_nothing_is_overwritten_without_force(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists already"):
        save_png(PICTURE, path, {})
    assert path.read_bytes() == b"mine"
    save_png(PICTURE, path, {}, force=True)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_a_link_is_replaced_not_followed(tmp_path) -> None:
    target, link = tmp_path / "target", tmp_path / "a.png"
    target.write_bytes(b"mine")
    link.symlink_to(target)
    save_png(PICTURE, link, {}, force=True)
    assert target.read_bytes() == b"mine"
    assert not link.is_symlink()


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_left_of_a_file_that_did_not_fit(tmp_path, force) -> None:
    """The operating system really stops the writing, after 1,000 bytes."""
    path = tmp_path / "a.png"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.png can't be written") as caught:
            save_png(PICTURE, path, {}, force)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_an_interrupted_file(tmp_path) -> None:
    def write(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.png", write)
    assert list(tmp_path.iterdir()) == []


def test_the_usual_permissions(tmp_path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    save_png(PICTURE, tmp_path / "a.png", {})
    assert (tmp_path / "a.png").stat().st_mode == plain.stat().st_mode


def test_enlarge() -> None:
    assert enlarge(PICTURE, 256).size == (256, 256)
    assert enlarge(PICTURE, 64).tobytes() == PICTURE.tobytes()
    for side in (0, 63, 8193):
        with pytest.raises(ValueError, match="from 64 to 8192"):
            enlarge(PICTURE, side)


def test_files_are_named_like_paths(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_png(PICTURE, Path("a.png"), {})
    assert (tmp_path / "a.png").is_file()
