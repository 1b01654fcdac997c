# SPDX-License-Identifier: Apache-2.0
"""The command, the scripts, and what happens to the output."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from checkpoints import DIMS, EASYNLP, GOLDEN, PADDLE, TAMING, changed_easynlp, files_of
from typer.testing import CliRunner, Result

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration
from pai_painter.cli.convert import convert as command
from pai_painter.convert import convert

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_sentence(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.endswith(" …")]
    assert re.fullmatch(r"Error: .+[.)]", line)
    return line


# The command


def test_the_report(tmp_path: Path) -> None:
    result = run(EASYNLP, tmp_path / "out", "--vq-config", DIMS)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{tmp_path}/out: a painter, from a checkpoint of EasyNLP",
        "Read: config.json, pytorch_model.bin, vocab.txt",
        "Ignored: transformer.blocks.N.attn.mask (2)",
        "Parameters: 39,296 transformer + 742,723 VQGAN = 782,019, in float32",
    ]
    assert f"Converting {EASYNLP} …" in result.stderr


def test_all_options(tmp_path: Path) -> None:
    run(EASYNLP, tmp_path / "whole", "--vq-config", DIMS)
    options = ["--config", PADDLE / "dims.json", "--vq-config", DIMS, "--vqgan", tmp_path / "whole"]
    options += ["--dtype", "bfloat16", "--to", "easynlp"]
    result = run(PADDLE, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "a painter, from a checkpoint of PaddleNLP" in result.stdout
    assert "in bfloat16" in result.stdout
    assert files_of(tmp_path / "out") == ["config.json", "pytorch_model.bin", "vocab.txt"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing"], "no file or folder missing"),
        ([GOLDEN], "is no known checkpoint"),
        ([GOLDEN / "captions.json"], "no known checkpoint"),
        ([EASYNLP], "--vq-config|vq_config"),
        ([EASYNLP, "--vq-config", "missing"], "missing: No such file"),
        ([EASYNLP, "--vq-config", GOLDEN / "captions.json"], "captions.json"),
        ([EASYNLP, "--vq-config", DEMO_MODEL], "doesn't fit a VQGAN"),
        ([EASYNLP, "--vq-config", DIMS, "--config", DIMS], "needs no --config"),
        ([TAMING / "last.ckpt", "--vq-config", DIMS], "needs no --vq-config"),
        ([TAMING / "last.ckpt", "--to", "easynlp"], "a VQGAN alone"),
        ([TAMING / "last.ckpt", "--vqgan", DEMO_MODEL], "has a whole VQGAN already"),
        ([TAMING], "has 2 files of weights"),
        ([DEMO_MODEL], "native layout already"),
        ([DEMO_MODEL, "--to", "easynlp"], "intermediate_size|encoder_attention"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, arguments: list[Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(reason, one_sentence(run(arguments[0], "out", *arguments[1:])))
    assert list(tmp_path.iterdir()) == []


# The output


def test_an_output_that_holds_something_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(TAMING / "last.ckpt", tmp_path / "out")  # empty
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_of(tmp_path / "out")}
    assert "isn't empty" in one_sentence(run(EASYNLP, tmp_path / "out", "--vq-config", DIMS))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files_of(tmp_path / "out")} == before
    assert run(EASYNLP, tmp_path / "out", "--vq-config", DIMS, "--force").exit_code == 0
    assert "preprocessor_config.json" not in files_of(tmp_path / "out")  # nothing of the old model is left
    PaiPainterForImageGeneration.from_pretrained(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("name", ["thesis.docx", "model.safetensors.bak", ".git/config", "samples/1.png"])
def test_force_deletes_nothing_but_models(tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).touch()
    message = one_sentence(run(EASYNLP, tmp_path / "out", "--vq-config", DIMS, "--force"))
    assert name.partition("/")[0] in message
    assert files_of(tmp_path) == [f"out/{name}"]


def test_force_keeps_the_old_model_if_something_goes_wrong(tmp_path: Path) -> None:
    convert(EASYNLP, tmp_path / "out", vq_config=DIMS)
    before = (tmp_path / "out/model.safetensors").read_bytes()
    bad = changed_easynlp(tmp_path / "bad", lambda weights: weights.popitem())
    with pytest.raises(ValueError, match="missing"):
        convert(bad, tmp_path / "out", vq_config=DIMS, force=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "out"]


def test_the_source_is_not_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed_easynlp(tmp_path / "model", lambda weights: None)
    before = files_of(folder)
    monkeypatch.chdir(folder)
    for output in (folder, folder / "inside", tmp_path, Path(), Path("../model"), Path("inside/../../model")):
        with pytest.raises(ValueError, match="must be different folders"):
            convert(folder, output, vq_config=DIMS, force=True)
    assert files_of(folder) == before


def test_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert(TAMING / "last.ckpt", ".")
    assert "model.safetensors" in files_of(tmp_path)


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    assert "is a file" in one_sentence(run(EASYNLP, tmp_path / "out", "--vq-config", DIMS, "--force"))


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PaiPainterForImageGeneration, "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(EASYNLP, tmp_path / "new" / "out", vq_config=DIMS)
    assert files_of(tmp_path) == []


def test_what_cannot_be_replaced_is_found_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for output in (tmp_path / "link", "/"):
        with pytest.raises(OSError, match="a link or a mount point"):
            convert(tmp_path, output, force=True)


def test_no_input_lies_in_what_is_replaced(tmp_path: Path) -> None:
    """Neither the source nor a file that an option names."""
    convert(EASYNLP, tmp_path / "out", vq_config=DIMS)
    before = (tmp_path / "out/model.safetensors").read_bytes()
    options: list[dict[str, Any]] = [
        {"vqgan": tmp_path / "out", "vq_config": DIMS, "config": PADDLE / "dims.json"},
        {"vq_config": DIMS, "config": tmp_path / "out/config.json"},
        {"vq_config": tmp_path / "out/config.json"},
    ]
    for each in options:
        with pytest.raises(ValueError, match="must be different folders"):
            convert(PADDLE, tmp_path / "out", force=True, **each)
    assert (tmp_path / "out/model.safetensors").read_bytes() == before


def test_wrong_choices() -> None:
    with pytest.raises(ValueError, match="`to` must be one of native, easynlp"):
        convert(EASYNLP, "out", to="onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        convert(EASYNLP, "out", dtype="int8")  # type: ignore[arg-type]


# Native folders


def test_a_native_model_in_another_precision(tiny_painter: Path, tmp_path: Path) -> None:
    convert(tiny_painter, tmp_path / "out", dtype="bfloat16")
    before = PaiPainterForImageGeneration.from_pretrained(tiny_painter).bfloat16().state_dict()
    after = PaiPainterForImageGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    assert files_of(tmp_path / "out") == files_of(tiny_painter)


def test_a_damaged_native_model(tiny_painter: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_painter, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or truncated" in one_sentence(run(tmp_path / "model", tmp_path / "out", "--to", "easynlp"))


def test_a_native_folder_is_never_unpickled(tiny_painter: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_painter, tmp_path / "model")
    torch.save({}, tmp_path / "model/pytorch_model.bin")
    (tmp_path / "model/model.safetensors").unlink()
    message = one_sentence(run(tmp_path / "model", tmp_path / "out", "--to", "easynlp"))
    assert "model.safetensors" in message


def test_an_adapter_beside_a_model(tiny_painter: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_painter, tmp_path / "model")
    (tmp_path / "model/adapter_config.json").write_text("{}")
    assert "a whole model (config.json) and an adapter" in one_sentence(
        run(tmp_path / "model", tmp_path / "out", "--to", "easynlp")
    )


# The scripts


def script(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "conversion" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_script(tmp_path: Path) -> None:
    assert "Parameters" in script("from_easynlp.py", EASYNLP, tmp_path / "a", "--vq-config", DIMS)
    assert "Parameters" in script("from_taming.py", TAMING / "last.ckpt", tmp_path / "b")
    options = ["--config", PADDLE / "dims.json", "--vq-config", DIMS, "--vqgan", tmp_path / "a"]
    assert "Parameters" in script("from_paddlenlp.py", PADDLE, tmp_path / "c", *options)
    assert "Parameters" in script("to_easynlp.py", tmp_path / "c", tmp_path / "d")
    tested = {"from_easynlp.py", "from_taming.py", "from_paddlenlp.py", "to_easynlp.py"}
    assert {path.name for path in (ROOT / "conversion").glob("*.py")} == tested
