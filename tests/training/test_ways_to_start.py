# SPDX-License-Identifier: Apache-2.0
"""The ways to start a training, as they are typed; and folders and rows that people bring along."""

import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_world import COLOURS, ROOT, SHAPES, draw, launch
from transformers import AutoModel

from pai_painter.training.arguments import DataArguments, PainterModelArguments
from pai_painter.training.train_painter import train_painter

ACCELERATE = (
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--cpu",
    "--num_processes",
    "1",
    "--num_machines",
    "1",
)
WAYS = {
    "train.py": ("train.py",),
    "pai-painter train": (str(Path(sys.executable).with_name("pai-painter")), "train"),
    "accelerate launch train.py": (*ACCELERATE, "--mixed_precision", "bf16", "train.py"),
    "accelerate launch -m pai_painter.training": (*ACCELERATE, "-m", "pai_painter.training"),
}
SAYS = {**dict.fromkeys(WAYS, "train.py"), "pai-painter train": "pai-painter train"}
SAYS["accelerate launch -m pai_painter.training"] = "python -m pai_painter.training"


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if way == "pai-painter train" else pytest.mark.slow) for way in WAYS]
)
def test_ways_to_start(way: str, trained_painter: Path, shapes: Path, tmp_path: Path) -> None:
    words = {"model_name_or_path": trained_painter, "train_file": shapes / "shapes.tsv", "output_dir": tmp_path / "out"}
    words |= {"validation_file": shapes / "shapes.tsv", "cache_dir": shapes / "cache", "max_train_steps": 2}
    result = launch(*WAYS[way], *(f"--{name}={value}" for name, value in words.items()))
    assert result.returncode == 0, result.stderr
    assert AutoModel.from_pretrained(tmp_path / "out").vqgan is not None
    assert ("bf16" in (tmp_path / "out" / "training_summary.json").read_text()) is ("bf16" in WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_errors_name_what_was_called(way: str) -> None:
    result = launch(*WAYS[way], "--lerning_rate", "1")
    assert result.returncode != 0
    sentence = "Unknown setting `lerning_rate`; did you mean `learning_rate`?"
    assert f"{SAYS[way]}: {sentence}" in result.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 1, 2, 4])
def test_ctrl_c_while_the_libraries_are_imported(
    seconds: float, trained_painter: Path, shapes: Path, tmp_path: Path
) -> None:
    words = {"model_name_or_path": trained_painter, "train_file": shapes / "shapes.tsv", "output_dir": tmp_path / "out"}
    run = launch("train.py", *(f"--{name}={value}" for name, value in words.items()), wait=False)
    time.sleep(seconds)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode in (130, -signal.SIGINT)  # the latter before a line of ours has run
    assert "Traceback" not in said or seconds < 1, said
    assert said.count("\n") <= 1 or seconds < 1, said


@pytest.mark.slow
def test_what_one_of_two_processes_has_to_say_is_said(trained_painter: Path, shapes: Path, tmp_path: Path) -> None:
    """In file order, the second process's share of these rows is bad."""
    rows = (shapes / "shapes.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.tsv").write_text("".join(f"{row}bad\t红\t!!!\n" for row in rows), encoding="utf-8")
    words = {"model_name_or_path": trained_painter, "train_file": tmp_path / "rows.tsv", "output_dir": tmp_path / "out"}
    words |= {"max_train_steps": 2, "max_bad_rows": 1, "streaming": True, "shuffle_buffer": 1}
    result = launch("train.py", *(f"--{name}={value}" for name, value in words.items()), processes=2)
    assert result.returncode != 0
    assert f"train.py: process 1: {tmp_path / 'rows.tsv'} has 2 unusable rows, the first" in result.stderr
    assert "[rank" not in result.stderr  # the stack of the process that was left alone
    assert (tmp_path / "out" / "rejected_rows-rank1.jsonl").read_text().count("\n") == 2


def test_a_folder_of_easynlp_whose_vqgan_is_not_known(
    data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    model = PainterModelArguments(model_name_or_path=str(ROOT / "tests" / "golden" / "easynlp_tiny"))
    with pytest.raises(
        ValueError, match=r"This EasyNLP folder has 48 positions and 64 image tokens, which doesn't fit a"
    ):
        train_painter(model, data, painter_arguments(tmp_path / "out"))


def test_rows_made_by_the_blog_posts_snippet(
    trained_painter: Path, painter_arguments: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snippet as docs/data.md has it, for a picture of each format."""
    (snippet,) = re.findall(r"```python\n(import base64\n.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    published = [
        "img_buffer = BytesIO()",
        "img.save(img_buffer, format=img.format)",
        "byte_data = img_buffer.getvalue()",
        "base64_str = base64.b64encode(byte_data)  # bytes",
    ]
    assert "\n".join(published) in snippet
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    rows = [(tmp_path / "rows.tsv").read_text(encoding="utf-8")]
    for number, (name, colour) in enumerate(COLOURS.items()):
        draw(colour, SHAPES[number]).save(tmp_path / "red.png", format=("PNG", "JPEG", "WEBP")[number])
        exec(re.sub(r"Image\.new.*", "", snippet), {})
        row = (tmp_path / "rows.tsv").read_text(encoding="utf-8")
        rows.append(row.replace("1\t红色的方块", f"{number + 2}\t{name}{SHAPES[number]}", 1))
    assert len(set(rows)) == 4
    (tmp_path / "mine.tsv").write_text("".join(rows), encoding="utf-8")
    data = DataArguments(train_file=[str(tmp_path / "mine.tsv")], cache_dir=str(tmp_path / "cache"), max_bad_rows=0)
    model = PainterModelArguments(model_name_or_path=str(trained_painter))
    folder = train_painter(model, data, painter_arguments(tmp_path / "out", max_train_steps=2))
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "rejected_rows.jsonl").exists()
