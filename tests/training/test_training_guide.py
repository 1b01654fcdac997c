# SPDX-License-Identifier: Apache-2.0
"""Every command and settings file in docs/training.md is one that the scripts take."""

import re
import shlex

import pytest
from tiny_world import ROOT

from pai_painter.training.arguments import (
    DataArguments,
    PainterModelArguments,
    PainterTrainingArguments,
    VQGANModelArguments,
    VQGANTrainingArguments,
)
from pai_painter.training.command_line import parse_arguments

TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
TRAINER = re.compile(r"train\.py |train_vqgan\.py |-m pai_painter\.training |pai-painter train ")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if TRAINER.search(line)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    trainer = TRAINER.search(command)
    types = (PainterModelArguments, DataArguments, PainterTrainingArguments)
    if trainer[0] == "train_vqgan.py ":
        types = (VQGANModelArguments, DataArguments, VQGANTrainingArguments)
    parse_arguments(types, shlex.split(command[trainer.end() :]))
    launcher = shlex.split(command[: trainer.start()])
    if "--config_file" in launcher:
        assert (ROOT / launcher[launcher.index("--config_file") + 1]).is_file()


def test_settings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    monkeypatch.chdir(tmp_path)
    command = re.search(r"`python train\.py (mine\.yaml .*?)`", TEXT)[1]
    *_, training = parse_arguments(
        (PainterModelArguments, DataArguments, PainterTrainingArguments), shlex.split(command)
    )
    assert (training.learning_rate, training.save_steps, training.use_ema) == (2e-5, 500, True)


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) == 10
