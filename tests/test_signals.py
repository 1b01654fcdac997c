# SPDX-License-Identifier: Apache-2.0
"""Signals end what waits in native code, and the words of a command line know the home folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pai_painter.signals import words_at_home

WAITING = """
import ctypes, sys
from pai_painter.signals import second_signal_ends
with second_signal_ends():
    print("waiting", flush=True)
    # sem_wait on a semaphore that nobody posts goes on after a signal, as the waits of gloo and of sockets do
    libc = ctypes.CDLL(None)
    while True:
        libc.sleep(1000)
"""


def stopped_by(process: "subprocess.Popen[str]", number: int, times: int) -> int:
    for _ in range(times):
        time.sleep(0.5)
        process.send_signal(number)
    return process.wait(30)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_a_native_wait(number: int, status: int) -> None:
    code = f"import signal; signal.signal({int(number)}, lambda *_: None)\n{WAITING}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.send_signal(number)
    assert process.wait(30) == status
    assert process.stderr is not None
    assert process.stderr.read() == "Stopped while it waited; what was saved before is complete.\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_waits_for_its_peer_ends(number: int, status: int, tiny_painter: Path, tmp_path: Path) -> None:
    """One of two processes, of which the other one never comes."""
    rows = tmp_path / "rows.tsv"
    rows.write_text("1\t红\tAAAA\n", encoding="utf-8")
    command = Path(sys.executable).with_name("pai-painter")
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "29617", "ACCELERATE_USE_CPU": "true"}
    words = [f"--model_name_or_path={tiny_painter}", f"--train_file={rows}", f"--output_dir={tmp_path / 'out'}"]
    process = subprocess.Popen(
        [command, "train", *words], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    time.sleep(20)  # loading, and then waiting
    assert process.poll() is None
    assert stopped_by(process, number, 2) == status


def test_words_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["~/a", "--x=~/b", "--y=~/c,~/d", "pretrain_model_name_or_path=~/e size=2", "a~/b", "~", "~you/f"]
    assert words_at_home(words) == [
        "/home/me/a", "--x=/home/me/b", "--y=/home/me/c,/home/me/d", "pretrain_model_name_or_path=/home/me/e size=2",
        "a~/b", "/home/me", "~you/f",
    ]  # fmt: skip
