# SPDX-License-Identifier: Apache-2.0
"""The token is read from the environment or the login, and is shown nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import Fault, HubStandIn

from pai_painter.hub import push_folder

TOKEN = "hf_writer"
# Everything that the clients can be made to say.
DEBUG = {"HF_HUB_VERBOSITY": "debug", "TRANSFORMERS_VERBOSITY": "debug", "HF_DEBUG": "1", "OMP_NUM_THREADS": "1"}
_COMMAND = "import logging; logging.basicConfig(level=logging.DEBUG); from pai_painter.cli import main; main()"


@pytest.mark.parametrize("status", [None, 403])
def test_it_is_in_no_log_error_or_pushed_file(
    hub: HubStandIn, folder: Path, tmp_path: Path, status: int | None
) -> None:
    if status is not None:  # the stand-in, unlike the Hub, quotes it
        hub.faults = [Fault("/commit/", status, f"not with {TOKEN}", times=9)]
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, "push", str(folder), "painter/shop", "--verbose", "--tag", "v1"],
        env={**os.environ, **DEBUG, "HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if status is None else 2), done.stderr
    assert "DEBUG" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    if status is None:
        files = hub.repositories["painter/shop"].files()
        assert files
        assert not [name for name, content in files.items() if TOKEN.encode() in content]
    else:
        assert "not with [token]" in done.stderr


def test_a_file_that_holds_it_stays_at_home(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (folder / "README.md").write_text(f"---\nlanguage: zh\n---\nHF_TOKEN={TOKEN} python train.py …")
    with pytest.raises(ValueError, match=r"README\.md holds your token for the Hub, so nothing was pushed"):
        push_folder(folder, "painter/shop")
    assert hub.requests == []
