# SPDX-License-Identifier: Apache-2.0
"""benchmarks/start.py and benchmarks/busy.py run, and print what they are for."""

import json
from pathlib import Path

import pytest
from benchmark_scripts import run


@pytest.mark.slow
def test_start_times_help_import_and_the_first_picture(tmp_path: Path) -> None:
    done = run("start", tmp_path, "--rounds", "1", "--json", "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {"pai-painter --help", "import pai_painter", "pai-painter paint 红苹果"} <= figures["seconds"].keys()
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in figures["seconds"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.slow
def test_busy_compares_both_ways_of_waiting_quiet_and_busy(tmp_path: Path) -> None:
    words = ["--size", "demo", "--speed", "exact", "--spins", "100", "--rounds", "1", "--json", "figures.json"]
    done = run("busy", tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert [(each["way"], each["busy"]) for each in figures] == [
        ("the libraries' own", False),
        ("the libraries' own", True),
        ("GOMP_SPINCOUNT=100", False),
        ("GOMP_SPINCOUNT=100", True),
    ]
    assert "busy / quiet" in done.stdout


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    done = run("busy", tmp_path, "--size", "giant")
    assert done.returncode == 2
    assert "sizes are demo" in done.stderr
