# SPDX-License-Identifier: Apache-2.0
"""Running the scripts of benchmarks/, for their tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def forget_precision() -> None:
    """Accelerate keeps one state for each process."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def run(script: str, folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{script}.py"), *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def figures_of(script: str, folder: Path, *words: str) -> dict:
    done = run(script, folder, "--tiny", "--json", "figures.json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in folder.iterdir()] == ["figures.json"]  # nothing else is left behind
    return json.loads((folder / "figures.json").read_text(encoding="utf-8"))
