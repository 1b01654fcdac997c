# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, wherever, and started again gives the bytes of one that was left alone."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "kill_driver.py"


def drive(model: Path, captions: Path, output: Path, *way: object) -> list[str]:
    command = [sys.executable, str(DRIVER), str(model), str(captions), str(output), *map(str, way)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, leftovers too, but for the empty files that try whether it can be written to."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".tmp"}


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.tsv"
    texts = ["红苹果", "熊猫", "", "大海", "一只猫", "山水画", "红苹果", "蓝天", "白云", "草地", "一匹马"]
    path.write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(texts)) + "1\t又\n", encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.tsv", "a.parquet", "a"])
def test_ten_kills_at_random_moments(tiny_painter: Path, captions: Path, tmp_path: Path, name: str) -> None:
    with captions.open("a", encoding="utf-8") as file:
        file.writelines(f"more{number}\t红苹果\n" for number in range(60))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    seconds, status = drive(tiny_painter, captions, whole / name, "after")
    assert status == "0"
    # A twentieth of the whole on average: something is left to do for all, even if the machine has become faster.
    delays = [random.uniform(0, 0.1) * float(seconds) for _ in range(10)]
    statuses = drive(tiny_painter, captions, killed / name, "after", *delays)
    assert statuses[:10].count("-9") >= 8, (delays, statuses)
    assert statuses[-1] == "0"
    assert tree(killed) == tree(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first"), [("a.tsv", 1), ("a", 2)])
def test_a_kill_before_every_third_step_on_the_disk(
    tiny_painter: Path, captions: Path, tmp_path: Path, name: str, first: int
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert drive(tiny_painter, captions, whole / name, "after")[-1] == "0"
    expected = tree(whole)
    lines = drive(tiny_painter, captions, tmp_path / "killed" / name, "at", *range(first, 300, 3))
    for line in lines:
        number, _, second = line.split()
        assert second == "0", line
        assert tree(tmp_path / "killed" / name / number) == expected, line
    assert [line.split()[1] for line in lines] == ["-9"] * (len(lines) - 1) + ["0"]
    assert len(lines) > 10
