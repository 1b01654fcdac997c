# SPDX-License-Identifier: Apache-2.0
"""Every command and settings file in docs/training.md is one that the scripts take."""

import re
import shlex

import pytest
from tiny_world import ROOT

from pai_painter.training.arguments import (
    CodecModelArguments,
    CodecTrainingArguments,
    DataArguments,
    PainterModelArguments,
    PainterTrainingArguments,
)
from pai_painter.training.command_line import parse_arguments

TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    script = next(word for word in words if word in ("train.py", "train_codec.py"))
    types = (PainterModelArguments, DataArguments, PainterTrainingArguments)
    if script == "train_codec.py":
        types = (CodecModelArguments, DataArguments, CodecTrainingArguments)
    assert (ROOT / script).is_file()
    parse_arguments(types, words[words.index(script) + 1 :])


def test_settings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    command = re.search(r"`python train\.py (mine\.yaml .*?)`", TEXT)[1]
    *_, training = parse_arguments(
        (PainterModelArguments, DataArguments, PainterTrainingArguments), shlex.split(command)
    )
    assert (training.learning_rate, training.save_steps, training.use_ema) == (1.2e-3, 500, True)


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) == 5
