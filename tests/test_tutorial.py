# SPDX-License-Identifier: Apache-2.0
"""The tutorial's commands, shortened: each gives the next what it needs, up to the pictures before and after."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from test_documents import ROOT, run

from pai_painter import DEMO_MODEL, PaiPainterPipeline, PaiPainterProcessor

TUTORIAL = (ROOT / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("$ ")
]
# What makes each command short. The others, which look at the data, are run by test_documents.py.
SHORTER = {
    "rehearse.py": "--pictures 2",
    "pai-painter train": "--max_train_steps 2 --per_device_train_batch_size 2 --num_samples 2 --logging_steps 1",
    "compare.py": "--limit 4",
}


@pytest.mark.slow
def test_the_commands_lead_to_the_pictures(tmp_path: Path) -> None:
    commands = [
        f"{command} {options}" for script, options in SHORTER.items() for command in COMMANDS if script in command
    ]
    assert len(commands) == len(SHORTER), COMMANDS
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run(["bash", "-euc", "\n".join(commands)], tmp_path)

    assert (tmp_path / "runs" / "rehearsal.tsv").read_text(encoding="utf-8").count("\n") == 2
    pipe = PaiPainterPipeline.from_pretrained(tmp_path / "runs" / "lines")
    assert pipe.model.config.image_grid == 8
    assert Image.open(tmp_path / "runs" / "lines" / "loss.png").format == "PNG"
    grid = Image.open(tmp_path / "runs" / "before_after.png")
    assert grid.width > 6 * 112
    assert grid.height > 3 * 112


def test_no_held_out_thing_was_trained() -> None:
    folder = ROOT / "examples" / "line_style"
    trained, heldout = (
        {line.split("\t")[0] for line in (folder / name).read_text(encoding="utf-8").splitlines()}
        for name in ("train.tsv", "heldout.tsv")
    )
    assert (len(trained), len(heldout)) == (120, 40)
    assert not trained & heldout
    captions = (folder / "train.tsv").read_text(encoding="utf-8")
    questions = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    rows = [line.split("\t") for line in captions.splitlines()]
    trained_captions = {caption for _, text, _ in rows for caption in text.split("|")}
    asked = {kind: {question["caption"] for question in questions[kind]} for kind in questions}
    assert asked.pop("trained") <= trained_captions
    assert not set.union(*asked.values()) & trained_captions


def test_every_caption_is_in_the_demo_models_words() -> None:
    processor = PaiPainterProcessor.from_pretrained(DEMO_MODEL)
    unknown = processor.tokenizer.unk_token
    for name in ("train.tsv", "heldout.tsv"):
        for line in (ROOT / "examples" / "line_style" / name).read_text(encoding="utf-8").splitlines():
            for caption in line.split("\t")[1].split("|"):
                assert "线条风格" in caption
                assert unknown not in processor.tokenizer.tokenize(caption), caption
