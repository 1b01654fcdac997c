# SPDX-License-Identifier: Apache-2.0
"""The notebook, from its first cell to the last, with fewer steps of training."""

import json
import sys
from pathlib import Path

from PIL import Image
from test_documents import ROOT, run

NOTEBOOK = json.loads((ROOT / "examples" / "fine_tune.ipynb").read_text(encoding="utf-8"))
STEPS, FEWER = "--max_train_steps 500", "--max_train_steps 2"


def as_python(source: str) -> str:
    """A cell as a program has it: what begins with ! is for the shell."""
    return f"subprocess.run({source[1:]!r}, shell=True, check=True)" if source.startswith("!") else source


def test_the_cells_run_in_order(tmp_path: Path) -> None:
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    script = "\n".join(["import subprocess", *map(as_python, cells)])
    assert script.count(STEPS) == 1
    (tmp_path / "line_style").symlink_to(ROOT / "examples" / "line_style")
    (tmp_path / "notebook.py").write_text(script.replace(STEPS, FEWER), encoding="utf-8")
    run([sys.executable, "notebook.py"], tmp_path)
    assert (tmp_path / "runs" / "line_adapter" / "adapter_model.safetensors").exists()
    assert Image.open(tmp_path / "runs" / "line_adapter" / "loss.png").format == "PNG"


def test_its_pictures_were_kept() -> None:
    """Who looks at it on the Hub or on GitHub sees them without running it."""
    outputs = [output for cell in NOTEBOOK["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
