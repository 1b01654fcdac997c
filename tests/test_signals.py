# SPDX-License-Identifier: Apache-2.0
"""Signals end what waits in native code, and the words of a command line know the home folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import pai_painter.signals
from pai_painter.signals import ended_by_signals, words_at_home

# The module alone, for processes of their own: it needs nothing of the package.
ALONE = {**os.environ, "PYTHONPATH": str(Path(pai_painter.signals.__file__).parent)}
WAITING = """
import ctypes, sys
from signals import ended_by_signals
with ended_by_signals():
    print("waiting", flush=True)
    # like the waits of gloo and of sockets, it begins again after a signal
    libc = ctypes.CDLL(None)
    while True:
        libc.sleep(1000)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_a_native_wait(number: int, status: int) -> None:
    code = f"import signal; signal.signal({int(number)}, lambda *_: None)\n{WAITING}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
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


def test_a_signal_that_python_has_answered_ends_nothing() -> None:
    """Who leaves the context in time goes on, and later signals find the handlers of before."""
    asked = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        for _ in range(2):
            with ended_by_signals(after=1):
                os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2.5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [signal.SIGTERM, signal.SIGTERM]
    assert signal.set_wakeup_fd(-1) == -1


def test_signals_of_forked_processes_are_their_own() -> None:
    """Ctrl-C in a terminal reaches the workers, too: it is one, not one for each of them."""
    code = """
import os, signal, time
from signals import ended_by_signals
signal.signal(signal.SIGINT, lambda *_: None)
with ended_by_signals():
    workers = [os.fork() for _ in range(2) if os.getpid() == PARENT]
    if os.getpid() != PARENT:
        time.sleep(1)
        os._exit(0)
    time.sleep(0.3)
    for process in (*workers, PARENT):
        os.kill(process, signal.SIGINT)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        time.sleep(0.1)
print("alive")
"""
    code = code.replace("import os, signal, time\n", "import os, signal, time\nPARENT = os.getpid()\n")
    done = subprocess.run(
        [sys.executable, "-c", code], env=ALONE, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize(
    ("command", "number", "times", "status"),
    [
        ("train", signal.SIGTERM, 1, 143),
        ("train", signal.SIGINT, 1, 130),
        ("evaluate", signal.SIGINT, 2, 130),  # SIGTERM has no handler there: the system ends it
    ],
)
def test_what_waits_for_its_peer_ends(
    command: str, number: int, times: int, status: int, tiny_painter: Path, tmp_path: Path
) -> None:
    """One of two processes, of which the other one never comes: before the training there is nothing to be saved."""
    rows = tmp_path / "rows.tsv"
    rows.write_text("1\t红\tAAAA\n", encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = {
        "train": [f"--model_name_or_path={tiny_painter}", f"--train_file={rows}", f"--output_dir={tmp_path / 'out'}"],
        "evaluate": [f"--model={tiny_painter}", f"--file={rows}"],
    }[command]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("pai-painter"), command, *words],
        env={**os.environ, **environment, "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 100
        while not psutil.Process(process.pid).net_connections() and time.monotonic() < deadline:
            time.sleep(0.1)  # the first of the processes is where the others are to meet
        time.sleep(1)
        assert process.poll() is None
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.5)
        assert process.wait(20) == status
    finally:
        process.kill()
        process.communicate()


def test_words_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/me")
    words = ["~/a", "--x=~/b", "--y=~/c,~/d", "pretrain_model_name_or_path=~/e size=2", "a~/b", "~", "~you/f"]
    assert words_at_home(words) == [
        "/me/a", "--x=/me/b", "--y=/me/c,/me/d", "pretrain_model_name_or_path=/me/e size=2", "a~/b", "/me", "~you/f",
    ]  # fmt: skip
