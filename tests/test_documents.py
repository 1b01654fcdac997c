# SPDX-License-Identifier: Apache-2.0
"""Every command and block of code in the documents runs, as its reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL_DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# docs/hub.md needs a Hub: tests/hub/test_hub_document.py runs it. docs/api.md holds signatures.
DOCUMENTS = [path for path in ALL_DOCUMENTS if path.name not in ("hub.md", "api.md")]
BLOCK = re.compile(r"(?P<note><!-- not run: [^\n]+ -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL)
# These set up environments or train for hours; other tests and CI itself run them.
ELSEWHERE = ("make ",)


def blocks(document: Path, *languages: str) -> list[str]:
    """The document's blocks in some languages, without those marked as not to be run."""
    found = BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [match["body"] for match in found if match["language"] in languages and not match["note"]]


def run(command: list[str], folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


def test_the_api_reference_is_current_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    run([sys.executable, str(ROOT / "tools" / "make_api_reference.py"), "--check"], tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run_in_order(document: Path, tmp_path: Path) -> None:
    script = "\n".join(blocks(document, "python"))
    if not script:
        pytest.skip("no Python in this document")
    (tmp_path / "document.py").write_text(script, encoding="utf-8")
    run([sys.executable, "document.py"], tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_run_in_order(document: Path, tmp_path: Path) -> None:
    typed = [line for block in blocks(document, "console") for line in block.splitlines() if line.startswith("$ ")]
    written = [line for block in blocks(document, "bash") for line in block.splitlines()]
    commands = [line.removeprefix("$ ") for line in typed + written]
    commands = [command for command in commands if not command.startswith(ELSEWHERE)]
    if not commands:
        pytest.skip("no command in this document")
    for name in ("train.py", "train_vqgan.py", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    run(["bash", "-euc", "\n".join(commands)], tmp_path)


def test_every_link_to_a_file_leads_somewhere() -> None:
    for document in [*ALL_DOCUMENTS, ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_foreign_code_is_trusted_only_where_it_is_ones_own_and_pinned() -> None:
    for path in [*ROOT.rglob("*.md")]:
        if {".venv", ".git"} & set(path.parts) or any(part.startswith(".venv") for part in path.parts):
            continue
        for block in blocks(path, "python"):
            for line in block.splitlines():
                if "trust_remote_code=True" in line:
                    assert '"your-name/' in line, path
                    assert 'revision="' in line, path
