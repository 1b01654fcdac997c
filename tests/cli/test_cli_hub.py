# SPDX-License-Identifier: Apache-2.0
"""`pai-painter push` and `pai-painter pull`."""

import contextlib
import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import Result
from hub_stand_in import HubStandIn, Repository
from typer.main import get_command
from typer.testing import CliRunner

from pai_painter.cli import app


@pytest.fixture
def folder(tiny_painter: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_painter, tmp_path / "out")


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def test_there_and_back(hub: HubStandIn, folder: Path, tmp_path: Path, token: None) -> None:
    words = ["push", str(folder), "painter/shop", "--private", "--tag", "v1.0", "--message", "first"]
    pushed = run(*words)
    commit = hub.repositories["painter/shop"].branches["main"][-1]
    assert pushed.stdout == f"{hub.endpoint}/painter/shop/tree/{commit.oid}\n"
    assert (commit.message, hub.repositories["painter/shop"].private) == ("first", True)
    assert run(*words).stdout == pushed.stdout
    run("push", str(folder), "painter/shop", "--revision", "next")
    assert set(hub.repositories["painter/shop"].branches) == {"main", "next"}
    pulled = run("pull", "painter/shop", "--output", str(tmp_path / "shop"), "--revision", "v1.0")
    assert pulled.stdout == f"{tmp_path / 'shop'}\n"
    painted = run("paint", "红苹果", "--model", str(tmp_path / "shop"), "--output", str(tmp_path / "a.png"))
    assert painted.exit_code == 0


def test_a_pull_request(hub: HubStandIn, folder: Path, token: None) -> None:
    hub.repositories["somebody/shop"] = Repository()
    asked = run("push", str(folder), "somebody/shop", "--pull-request")
    assert asked.stdout == f"{hub.endpoint}/somebody/shop/discussions/1\n"


def test_downloads_show_their_progress_to_a_person(hub: HubStandIn, tiny_painter: Path) -> None:
    hub.add("painter/tiny", tiny_painter)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))  # a bar needs columns
    command = [str(Path(sys.executable).with_name("pai-painter")), "pull", "painter/tiny"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what reading gives when the other end is closed
            while piece := os.read(ours, 10_000):
                shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert "Fetching" in shown.decode(errors="replace")
    assert "100%" in shown.decode(errors="replace")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["push", "nowhere", "painter/shop"], "Error: There is no folder nowhere."),
        (["push", "FOLDER", "a/b/c"], "Error: Repo id must be in the form"),
        (["push", "FOLDER", "other/shop"], "You don't have the rights to write to other/shop"),
        (["push", "FOLDER", "painter/shop", "--base", "painter/base"], "is a whole model and has no base"),
        (["pull", "painter/none"], "Error: painter/none could not be pulled"),
        (["pull", "none"], "Error: none could not be pulled"),
    ],
)
def test_errors_are_one_sentence(hub: HubStandIn, folder: Path, token: None, words: list[str], sentence: str) -> None:
    refused = run(*(str(folder) if word == "FOLDER" else word for word in words))
    assert refused.exit_code == 2
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""


def test_every_command_with_a_model_takes_a_revision() -> None:
    without = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in parameter.opts}
        if "--model" in options and "--revision" not in options:
            without.append(name)
    assert without == []
