# SPDX-License-Identifier: Apache-2.0
"""
Writes the table of parts and their lines into docs/design.md.

    python tools/count_lines.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DESIGN, PACKAGE = ROOT / "docs" / "design.md", ROOT / "src" / "pai_painter"
PARTS = {
    "cli": "`pai-painter`: parses and calls, nothing more",
    "easynlp": "EasyNLP's Python and command line, as drop-ins",
    "batch": "captions file → images file: resumable, several processes",
    "evaluation": "how good a model is",
    "training": "one visible loop for the painter, one for the VQGAN",
    "convert": "other programs' checkpoints",
    "data": "anything the user has → rows; cached image tokens; `prepare`, `inspect`",
    "hub": "push and pull (`hub.py`, `remote_code.py`)",
    "lora": "fresh adapters, and whole models of trained ones (`lora.py`)",
    "imaging": "PNG files and their metadata, grids, fonts",
    "cpu": "the fast way on CPUs, optional, never pushed",
    "model": "what travels with weights to the Hub, one file per role",
    "the rest": "`__init__.py` and small files that several parts share",
}
_FILES = {"hub.py": "hub", "remote_code.py": "hub", "lora.py": "lora"}


def count() -> dict[str, int]:
    """Lines of each part, comments and docstrings included."""
    lines = dict.fromkeys(PARTS, 0)
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0]
        part = part if part in PARTS else _FILES.get(part, "the rest")
        lines[part] += len(path.read_text(encoding="utf-8").splitlines())
    command = PACKAGE.parent / "pai_painter_command.py"
    lines["the rest"] += len(command.read_text(encoding="utf-8").splitlines())
    return lines


def table() -> str:
    lines = count()
    rows = [
        f"| {part if part == 'the rest' else f'`{part}`'} | {PARTS[part]} | {number:,} |"
        for part, number in lines.items()
    ]
    return "\n".join(
        ["| part | what it does | lines |", "|---|---|--:|", *rows, f"| together | | {sum(lines.values()):,} |"]
    )


def main() -> None:
    text = DESIGN.read_text(encoding="utf-8")
    block = re.compile(r"(?<=<!-- parts: written by tools/count_lines.py -->\n).*(?=<!-- /parts -->)", re.DOTALL)
    DESIGN.write_text(block.sub(lambda _: f"{table()}\n", text), encoding="utf-8")


if __name__ == "__main__":
    main()
