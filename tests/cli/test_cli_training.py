# SPDX-License-Identifier: Apache-2.0
"""`pai-painter train`, `python -m pai_painter.training` and `pai-painter merge`."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pai_painter.cli import app
from pai_painter.cli.common import one_sentence_errors


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_help_of_train_is_its_own_parsers() -> None:
    result = run("train", "--help")
    assert result.exit_code == 0, result.output
    for word in ("--model_name_or_path", "--train_file", "--output_dir", "--learning_rate"):
        assert word in result.stdout


@pytest.mark.parametrize("words", [["--learning_rte", "1"], ["nowhere.yaml"], ["--output_dir"]])
def test_an_error_of_train_is_one_sentence(words) -> None:
    result = run("train", *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_words_come_through_unchanged(tmp_path) -> None:
    """A settings file first, flags behind it, also those that typer would take for its own."""
    (tmp_path / "settings.yaml").write_text(f"model_name_or_path: m\ntrain_file: no.tsv\noutput_dir: {tmp_path}/out\n")
    result = run("train", tmp_path / "settings.yaml", "--verbose", "x")
    assert result.exit_code == 2
    assert "Unknown setting `verbose`" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_module_is_the_same_command(monkeypatch, capsys) -> None:
    words = ["--model_name_or_path=m", "--train_file=t", "--output_dir=o", "--learning_rte=1"]
    monkeypatch.setattr(sys, "argv", ["training", *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("pai_painter.training", run_name="__main__")
    assert left.value.code == 2
    assert "did you mean `learning_rate`?" in capsys.readouterr().err


def test_help_is_cheap() -> None:
    """Help, of `train` apart, doesn't wait for the libraries that only work needs."""
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom pai_painter.cli import app\n"
        "for name in ('', 'paint', 'encode', 'decode', 'info', 'prepare', 'inspect', 'merge'):\n"
        "    result = CliRunner().invoke(app, [*([name] if name else []), '--help'])\n"
        "    assert result.exit_code == 0, (name, result.output)\n"
        "print(*sorted({'datasets', 'diffusers', 'peft', 'pyarrow'} & set(sys.modules)))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('pai_painter.data.')))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "\n\n"), done.stderr


def test_merge_errors(tmp_path: Path) -> None:
    result = run("merge", tmp_path / "nowhere", tmp_path / "merged")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "merged").exists()
    assert "pai-painter merge" in run("merge", "--help").stdout


def test_a_missing_extra_is_named(capsys) -> None:
    with pytest.raises(Exception) as left, one_sentence_errors(verbose=False):  # noqa: PT011 - typer.Exit has its code
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets")
    assert left.value.exit_code == 2
    assert (
        capsys.readouterr().err
        == 'Error: This command needs datasets: please run `pip install "pai-painter[train]"`.\n'
    )
