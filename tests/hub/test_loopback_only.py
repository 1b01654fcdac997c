# SPDX-License-Identifier: Apache-2.0
"""The guard of all tests: whoever reaches for another machine fails, whatever it does with the error."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_only import REFUSED

TESTS = Path(__file__).parents[1]
FAR = "192.0.2.1"  # an address of nobody, for documents

_SWALLOWED = f"""
import contextlib
import socket
import subprocess
import sys

def reach(host):
    with contextlib.suppress(OSError):
        socket.create_connection((host, 80), timeout=1)

def test_here():
    reach("127.0.0.1")
    reach("localhost")

def test_there():
    reach("{FAR}")

def test_a_name():
    reach("hub.invalid")

def test_in_a_process():
    subprocess.run([sys.executable, "-c", "import socket; socket.socket().connect(('{FAR}', 80))"], check=False)
"""


def test_it_fails_tests_that_swallow_the_error(tmp_path: Path) -> None:
    (tmp_path / "test_reach.py").write_text(_SWALLOWED)
    (tmp_path / "conftest.py").write_text("from loopback_only import loopback_only\n__all__ = ['loopback_only']\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "4 passed, 3 errors" in done.stdout
    assert done.stdout.count(f"wanted to reach other machines: {FAR}.") == 2
    assert "wanted to reach other machines: hub.invalid." in done.stdout


def test_the_connection_is_not_made(loopback_only: Path) -> None:
    with pytest.raises(ConnectionRefusedError, match=FAR):
        socket.create_connection((FAR, 80), timeout=1)
    assert loopback_only.read_text() == f"{FAR}\n"
    loopback_only.unlink()


def test_neither_in_a_process(loopback_only: Path) -> None:
    assert os.environ[REFUSED] == str(loopback_only)
    reach = f"import urllib.request; urllib.request.urlopen('http://{FAR}')"
    done = subprocess.run([sys.executable, "-c", reach], capture_output=True, text=True, check=False)
    assert f"A test wanted to reach {FAR}" in done.stderr
    assert loopback_only.read_text() == f"{FAR}\n"
    loopback_only.unlink()
