# SPDX-License-Identifier: Apache-2.0
"""What the scripts do with their figures and their errors."""

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import typer
from measuring import GB, MeasuringFailed

__all__ = ["describe_machine", "run_script", "write_json"]


def describe_machine() -> dict[str, Any]:
    """What figures depend on beside the code."""
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / GB, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Figures and the machine they are from, if a file is asked for."""
    if path is not None:
        whole = {"machine": describe_machine(), **figures}
        path.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def run_script(main: Callable[..., None]) -> None:
    """Runs a script's `main` with the words of the command line; what can't be measured is said without a traceback."""
    try:
        typer.run(main)
    except MeasuringFailed as error:
        sys.exit(str(error))
