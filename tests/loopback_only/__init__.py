# SPDX-License-Identifier: Apache-2.0
"""
What every test begins with: the Hub's client knows no other Hub than the stand-in, no token and no cache of this
machine, and no connection leaves the machine. Import it before the libraries that read these variables.
"""

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .loopback_guard import REFUSED, guard

__all__ = ["HUB_PORT", "REFUSED", "loopback_only"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


_HOME = Path(tempfile.mkdtemp(prefix="pai-painter-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
HUB_PORT = _free_port()  # nobody is there but while a test runs its stand-in
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH"):
    os.environ.pop(_name, None)
os.environ |= {
    "HF_ENDPOINT": f"http://127.0.0.1:{HUB_PORT}",
    "HF_HOME": str(_HOME / "huggingface"),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # by which datasets tells a bucket whenever it loads something
    "HF_HUB_DISABLE_XET": "1",  # whose uploads are made by a library that no stand-in can answer
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
}
guard()


@pytest.fixture(autouse=True)
def loopback_only(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """The file of refused addresses, of which a test that has any fails; tests marked `slow` may need a network."""
    if request.node.get_closest_marker("slow"):
        yield None
        return
    refused = tmp_path_factory.mktemp("refused", numbered=True) / "addresses.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(REFUSED, str(refused))
        yield refused
    if refused.exists():
        pytest.fail(f"The test wanted to reach other machines: {', '.join(refused.read_text().split())}.")
