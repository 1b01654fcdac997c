# SPDX-License-Identifier: Apache-2.0
"""`pai-painter predict`: what a person types, sees and finds on the disk."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pai_painter.cli import app

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from pai_painter.cli import main; main()"  # for processes of their own


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "captions.tsv").write_text("1\t红苹果\n2\t熊猫\n3\t大海\n", encoding="utf-8")
    return tmp_path


def run(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, words)], input=stdin)


def started(*words: object, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    own = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src"), **environment}
    Path("program.py").write_text(PROGRAM)
    line = [sys.executable, *launcher, "program.py", "predict", *map(str, words)]
    return subprocess.Popen(line, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def one_sentence(result: Result, code: int = 2) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"Error: .+[.)]\n", result.stderr), result.stderr
    return result.stderr


def test_help() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "--num-images-per-prompt" in result.stdout


def test_a_file_and_both_spellings_of_options(tiny_painter, here) -> None:
    words = ("captions.tsv", "--model", tiny_painter, "--output", "a.tsv", "--num-images-per-prompt", 2)
    result = run(*words, "--batch_size", 2, "--output_schema", "idx,seed,gen_imgbase64")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "a.tsv: 6 pictures of 3 captions\n"
    rows = [line.split("\t") for line in (here / "a.tsv").read_text().splitlines()]
    assert [(row[0], len(json.loads(row[2]))) for row in rows] == [("1", 2), ("2", 2), ("3", 2)]
    assert {path.name for path in here.iterdir()} == {"captions.tsv", "a.tsv", "a.tsv.manifest.json"}


def test_bad_rows_have_an_exit_status_of_their_own(tiny_painter, here) -> None:
    (here / "captions.tsv").write_text("1\t红苹果\n1\t熊猫\n2\t\n", encoding="utf-8")
    for _ in range(2):  # a finished run says the same again
        result = run("captions.tsv", "--model", tiny_painter, "--output", "a")
        assert result.exit_code == 3
        assert result.stdout == (
            "a: 1 picture of 1 caption\n2 rows can't be painted: a.rejected_rows.jsonl says why.\n"
        )
    assert [json.loads(line)["line"] for line in (here / "a.rejected_rows.jsonl").read_text().splitlines()] == [2, 3]


def test_standard_input(tiny_painter, here) -> None:
    result = run("-", "--model", tiny_painter, "--output", "a", stdin="红苹果\n熊猫\n")
    assert (result.exit_code, result.stdout) == (0, "a: 2 pictures of 2 captions\n")
    words = ("-", "--model", tiny_painter, "--output", "b", "--processes", 2)
    assert "can't share standard input" in one_sentence(run(*words, stdin="红苹果\n"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("none.tsv", "--output", "a.tsv"), "There is no file none.tsv"),
        (("captions.tsv", "--output", "a.doc"), "is not known by its name"),
        (("captions.tsv", "--output", "a.tsv", "--batch-size", "0"), "`batch_size` must be at least 1"),
        (("captions.tsv", "--output", "a.tsv", "--rank", "1"), "With 1 processes `rank` goes from 0 to 0"),
        (("captions.tsv", "--output", "-"), "has no name of its own"),
        (("captions.tsv", "--output", "a.tsv", "--top-k", "0"), "`top_k` must be a whole number of at least 1"),
        (("captions.tsv", "--output", "captions.tsv", "--force"), "is in a place that this run writes to"),
        (("captions.tsv", "--output", "a.tsv", "--seed", "-1"), "`seed` must be at least 0"),
    ],
)
def test_wrong_words(tiny_painter, here, words, reason) -> None:
    assert reason in one_sentence(run(*words, "--model", tiny_painter))
    assert [path.name for path in here.iterdir()] == ["captions.tsv"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.tsv", "a"])
def test_two_processes_under_torchrun(tiny_painter, here, name) -> None:
    (here / "captions.tsv").write_text("".join(f"{n}\t红苹果{n}\n" for n in range(20)), encoding="utf-8")
    words = ("captions.tsv", "--model", tiny_painter, "--shard_size", 3, "--batch_size", 2, "--output")
    alone = started(*words, here / "one" / name)
    assert alone.communicate(timeout=300)[0].endswith("20 pictures of 20 captions\n")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    both = started(*words, here / "two" / name, launcher=launcher)
    printed = both.communicate(timeout=300)
    assert both.returncode == 0, printed
    assert "20 pictures of 20 captions" in printed[0]
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (here / "one", here / "two")
    )
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_gone_on(tiny_painter, here, number) -> None:
    (here / "captions.tsv").write_text("".join(f"{n}\t红苹果{n}\n" for n in range(300)), encoding="utf-8")
    words = ("captions.tsv", "--model", tiny_painter, "--shard-size", 4, "--output", "a.tsv")
    process = started(*words)
    deadline = time.monotonic() + 120
    while len(list(here.glob("a.tsv.parts/00*.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed == ("", "Stopped; rerun the command to resume after the last complete shard.\n")
    assert not list(here.glob("a.tsv.parts/*.writing"))
    kept = len(list(here.glob("a.tsv.parts/00*.jsonl")))
    assert kept >= 2
    assert run(*words).stdout.startswith("a.tsv: 300 pictures of 300 captions")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("a.tsv", 4_000), ("a.tsv", 25_000), ("a.parquet", 25_000)])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(tiny_painter, here, name, limit) -> None:
    """While a shard is written, and while all are joined."""
    (here / "captions.tsv").write_text("".join(f"{n}\t红苹果{n}\n" for n in range(40)), encoding="utf-8")
    words = ("captions.tsv", "--model", tiny_painter, "--shard-size", 8, "--output", name)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))\n"
    (here / "full.py").write_text(limited + PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    line = [sys.executable, "full.py", "predict", *map(str, words)]
    full = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert full.returncode == 1
    assert full.stderr == f"Error: {name} can't be written (File too large): fix this and rerun to resume.\n"
    assert not list(here.glob("**/*.writing"))
    done = run(*words)
    assert (done.exit_code, done.stdout) == (0, f"{name}: 40 pictures of 40 captions\n")
