# SPDX-License-Identifier: Apache-2.0
"""benchmarks/speculative.py runs, and the image tokens that it compares are the same."""

import json
from pathlib import Path

import pytest
from benchmark_scripts import run


@pytest.mark.slow
def test_draft_tokens_save_passes_and_change_no_token(tmp_path: Path) -> None:
    done = run("speculative", tmp_path, "--tiny", "--ahead", "1", "--ahead", "5", "--json", "figures.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # nothing else is left behind
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert list(figures["models"]) == ["demo model", "tiny size, random weights"]
    for rows in figures["models"].values():
        assert [row["num_draft_tokens"] for row in rows] == [0, 1, 5]
        assert rows[0]["tokens_per_pass"] == rows[0]["speedup"] == 1
        assert 1 < rows[1]["tokens_per_pass"] < rows[2]["tokens_per_pass"]
        for row in rows:
            assert row["same_tokens"] == 1
            assert row["speedup_lowest"] <= row["speedup"] <= row["speedup_highest"]
            assert row["milliseconds"] > 0
    assert "tokens per pass" in done.stdout


def test_a_size_that_there_is_not(tmp_path: Path) -> None:
    done = run("speculative", tmp_path, "--size", "giant")
    assert done.returncode == 2
    assert "there is no size 'giant'" in done.stderr
