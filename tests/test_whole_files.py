# SPDX-License-Identifier: Apache-2.0
"""Folders that are whole or not there, also after a process was killed in the middle."""

from pathlib import Path

import pytest

from pai_painter.whole_files import new_folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "model"


def write(output: Path, text: str, force: bool | None = None, error: Exception | None = None) -> None:
    with new_folder(output, force=force) as (whole, scraps):
        (scraps / "half").write_text(text)
        (whole / "config.json").write_text(text)
        if error is not None:
            raise error


def test_a_new_one_takes_the_old_ones_place_and_nothing_else_is_left(output: Path) -> None:
    write(output, "old")
    write(output, "new", force=True)
    assert (output / "config.json").read_text() == "new"
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_an_error_leaves_the_old_one(output: Path) -> None:
    write(output, "old")
    with pytest.raises(ValueError, match="half way"):
        write(output, "new", force=True, error=ValueError("half way"))
    assert (output / "config.json").read_text() == "old"
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_removed(output: Path) -> None:
    left = output.with_name(".model.partial") / "whole"
    left.mkdir(parents=True)
    (left / "vocab.txt").write_text("half")
    write(output, "new")
    assert [path.name for path in output.iterdir()] == ["config.json"]


def test_a_process_killed_between_the_renames_loses_nothing(output: Path) -> None:
    write(output, "old")
    left = output.with_name(".model.partial")
    left.mkdir()
    output.rename(left / "old")
    with pytest.raises(FileExistsError, match="isn't empty"):
        write(output, "new", force=False)
    assert (output / "config.json").read_text() == "old"


def test_a_strangers_folder_of_that_name_is_left_alone(output: Path) -> None:
    left = output.with_name(".model.partial")
    left.mkdir()
    (left / "novel.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="aren't of this command"):
        write(output, "new")
    assert (left / "novel.txt").read_text() == "mine"


def test_a_folder_of_somebody_elses_is_not_replaced(output: Path) -> None:
    output.mkdir()
    (output / "novel.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"what --force doesn't replace \(novel.txt\)"):
        write(output, "new", force=True)
    assert (output / "novel.txt").read_text() == "mine"
    assert [path.name for path in output.parent.iterdir()] == ["model"]
