# SPDX-License-Identifier: Apache-2.0
"""`pai-painter prepare` and `inspect`: what a person types, sees and finds on the disk."""

import base64
import io
import json
import re
from pathlib import Path

import datasets
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pai_painter.cli import app
from pai_painter.data import sources


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.fixture
def table(here: Path) -> str:
    """Three good rows, two of them with the same id, and a bad one."""
    lines = [
        f"{idx}\t{text}\t{picture()}" for idx, text in (("1", "红苹果"), ("2", "[bold]青[/nonsense]"), ("1", "梨"))
    ]
    (here / "rows.tsv").write_text("\n".join([*lines, "4\t红\tAAAA"]), encoding="utf-8")
    return "rows.tsv"


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_sentence(result: Result, code: int = 2) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"Error: .+[.)]\n", result.stderr), result.stderr
    return result.stderr


@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_help(command) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"pai-painter {command}" in result.stdout


def test_prepare(table, here) -> None:
    result = run("prepare", table, "out", "--shard-size", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "out: 3 rows in 2 shards",
        "1 row can't be used: out/rejected_rows.jsonl says why.",
    ]
    record = json.loads((here / "out" / "rejected_rows.jsonl").read_text(encoding="utf-8"))
    assert (record["file"], record["line"], record["idx"]) == (table, 4, "4")
    assert "isn't empty" in one_sentence(run("prepare", table, "out", "--shard-size", 2))


def test_prepare_errors(table, here) -> None:
    assert "There is no file nowhere.csv" in one_sentence(run("prepare", "nowhere.csv", "out"))
    assert "must be different" in one_sentence(run("prepare", table, table))
    assert "at most 0 are allowed" in one_sentence(run("prepare", table, "out", "--max-bad-rows", 0))
    assert run("prepare", table, "out").exit_code == 0
    assert "must be different folders" in one_sentence(run("prepare", "out/*.tsv", "out", "--force"))
    assert run("prepare", table, "out", "--size", 8, "--force", "--format", "parquet").exit_code == 0
    assert run("prepare", table, "new", "--format", "csv").exit_code == 2


def test_prepare_stopped(table, here, monkeypatch) -> None:
    def interrupt(*arguments) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sources, "open_picture", interrupt)
        result = run("prepare", table, "out")
    assert result.exit_code == 130
    assert result.stderr == "Stopped; nothing was written.\n"
    assert not list(here.glob("*out*"))
    assert run("prepare", table, "out").exit_code == 0


def test_inspect(table, tiny_painter, here) -> None:
    result = run("inspect", table, "--model", tiny_painter)
    assert result.exit_code == 0, result.output
    for fact in (
        *(r"rows +│ 3 ", r"bad rows +│ 1 ", r"1 × The picture is none of .*\(first: rows\.tsv, line 4\)"),
        *(
            r"repeated ids +│ 1 ",
            r"word pieces per caption +│ 1 to \d+, median 3",
            r"truncated at 8 +│ \d ",
            r"formats +│ PNG 3 ",
        ),
        *(r"widths in pixels +│ 20 to 20", r"with a side below 16 pixels +│ 0 "),
    ):
        assert re.search(fact, result.stdout), fact


def test_inspect_a_file_of_bad_rows(here, tiny_painter) -> None:
    (here / "bad.tsv").write_text("1\t[bold]\x1b[31m\n\x1b]0;title\x07\t红\tA\n", encoding="utf-8")
    result = run("inspect", "bad.tsv", "--model", tiny_painter)
    assert result.exit_code == 0
    assert re.search(r"rows +│ 0 ", result.stdout)
    assert "\x1b" not in result.stdout


def test_inspect_errors(table, tiny_painter, here) -> None:
    inspect = ["inspect", table, "--model", tiny_painter]
    assert "max_rows is 0" in one_sentence(run(*inspect, "--max-rows", 0))
    assert "There is no file" in one_sentence(run("inspect", "nowhere.tsv"))


def test_inspect_stopped(table, tiny_painter, here, monkeypatch) -> None:
    def interrupt(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "open_picture", interrupt)
    result = run("inspect", table, "--model", tiny_painter)
    assert (result.exit_code, result.stderr) == (130, "Stopped; nothing was written.\n")
