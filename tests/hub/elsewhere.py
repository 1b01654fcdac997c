# SPDX-License-Identifier: Apache-2.0
"""Runs `another_machine` in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

Job = tuple[str, str, str, dict[str, Any]]  # a way, a repository, where to save it again, options of loading


def elsewhere(scratch: Path, jobs: list[Job], *, installed: bool = False) -> tuple[list[dict[str, Any]], str]:
    """
    What came out of each job, and what was said on the way. A question would be an error, since nobody answers.

    Args:
        scratch: the machine's own folder, for the code that the libraries bring along.
        jobs: see `another_machine`.
        installed: whether this package is.
    """
    program = Path(__file__).parent / "another_machine.py"
    run = subprocess.run(
        [sys.executable, str(program), json.dumps([installed, jobs])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=scratch,
        env={**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert bool(told["ours"]) is installed, told["ours"]
    return told["results"], run.stderr
