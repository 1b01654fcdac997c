# SPDX-License-Identifier: Apache-2.0
"""`pai-painter`: what a person types, sees and finds on the disk."""

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner, Result

import pai_painter
from pai_painter import PaiPainterForImageGeneration, PaiPainterVQModel
from pai_painter.cli import app
from pai_painter.cli.common import home_in_paths

GOLDEN = Path(__file__).parents[1] / "golden"
COMMANDS = ["paint", "encode", "decode", "info", "push", "pull"]


@pytest.fixture(autouse=True)
def quiet_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each command runs in an empty folder; what it does to logging ends with the test."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "200")
    logger, verbosity = logging.getLogger("pai_painter"), transformers_logging.get_verbosity()
    handlers, propagate = logger.handlers, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="pai-painter")


def run_well(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def one_sentence(result: Result, code: int = 2) -> str:
    """What an error is: one line on stderr, no stack trace, nothing on the disk."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"Error: .+[.)]\n", result.stderr), result.stderr
    return result.stderr


def here() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


@pytest.fixture
def folder(tiny_painter: Path, tmp_path: Path) -> Path:
    """The tiny painter, to be changed."""
    return Path(shutil.copytree(tiny_painter, tmp_path / "painter"))


@pytest.fixture
def apple(tiny_painter: Path) -> Path:
    run_well("paint", "红苹果", "--model", tiny_painter, "--seed", 1, "--output", "apple.png")
    return Path("apple.png")


# What every command has


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help(command) -> None:
    text = run_well(*command, "--help")
    assert "Usage" in text
    if command:
        assert f"pai-painter {command[0]}" in text  # an example


def test_version() -> None:
    assert run_well("--version") == f"pai-painter {pai_painter.__version__}\n"


COMMAND = Path(sys.executable).with_name("pai-painter")


def as_typed(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The installed command, in a process of its own."""
    return subprocess.run(
        [COMMAND, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=100
    )


def test_the_command_is_installed() -> None:
    done = as_typed("paint", "--top-k", "many", "红苹果")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"Error: Invalid value for '--top-k': .*; `pai-painter paint --help` shows what is allowed\.\n", done.stderr
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["paint"], "Error: Missing argument 'PROMPTS...'; `pai-painter paint --help` shows"),
        (["paint", "红", "--topk", "3"], "No such option: --topk"),
        (["paint", "红", "--seed"], "Option '--seed' requires an argument; `pai-painter paint --help` shows"),
        (
            ["paint", "红", "--top-k", "many"],
            "parse string as an integer, got 'many'; `pai-painter paint --help` shows",
        ),
        (["paint", "红", "--num-images", "0"], "greater than or equal to 1, got '0';"),
        (["pain", "红"], "No such command 'pain'; did you mean 'paint', 'train'; `pai-painter --help` shows"),
        (["paint", "红", "--speed", "warp"], "--speed"),
        (["draw", "红"], "No such command 'draw'; `pai-painter --help` shows"),
        (["--nothing"], "No such option: --nothing"),
        (["predict"], "Missing argument 'captions'"),
    ],
)
def test_usage_errors_are_one_sentence(words: list[str], sentence: str) -> None:
    assert sentence in one_sentence(run(*words))


ENTRANCE = """
import json, sys
import pai_painter_command
try:
    pai_painter_command.main()
except SystemExit as end:
    heavy = [name for name in ("torch", "transformers", "diffusers", "datasets", "accelerate") if name in sys.modules]
    print(json.dumps({"status": end.code, "heavy": heavy}))
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        *((words, 0) for words in (["--help"], ["--version"], ["train", "--help"], ["easynlp", "--help"])),
        *(([command, "--help"], 0) for command in [*COMMANDS, "predict", "evaluate", "merge", "convert", "prepare"]),
        (["paint", "红", "--topk", "3"], 2),
        (["train", "--lerning_rate", "1"], 2),
        (["train", "nowhere.yaml"], 2),
        (["train", "--output_dir=o", "--train_file=t", "--model_name_or_path=m", "--pkeep=0"], 2),
        (["easynlp", "--mood=train"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_and_usage_errors_come_without_what_takes_seconds(words: list[str], status: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENTRANCE, *words], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout.splitlines()[-1]) == {"status": status, "heavy": []}


def test_the_command_loads_the_package_when_it_has_work(tiny_painter) -> None:
    """Its classes are registered with transformers then, as `import pai_painter` does it."""
    done = as_typed("paint", "红苹果", "--model", str(tiny_painter), "--seed", "1", "--output", "apple.png")
    assert done.returncode == 0, done.stderr
    assert here() == ["apple.png"]


def test_a_tilde_is_the_home_folder(tiny_painter, tmp_path) -> None:
    (tmp_path / "model").symlink_to(tiny_painter)
    home = {"HOME": str(tmp_path)}
    words = ["paint", "红苹果", "--model=~/model", "--output=~/pictures", "--grid", "~/grid.png", "--seed=1"]
    done = as_typed(*words, **home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pictures" / "红苹果-1.png").is_file()
    assert (tmp_path / "grid.png").is_file()
    assert here() == []


def test_a_tilde_that_is_text_stays_one() -> None:
    given = {"prompts": ["~"], "caption_separator": "~", "message": "~/", "model": "~/m", "files": ["~/a", "b~"]}
    home = os.path.expanduser("~")
    assert home_in_paths(given) == {**given, "model": f"{home}/m", "files": [f"{home}/a", "b~"]}


def test_empty_ranks_are_none(tiny_painter) -> None:
    Path("captions.txt").write_text("红苹果\n", encoding="utf-8")
    words = ["predict", "captions.txt", "--output", "out.tsv", "--model", str(tiny_painter)]
    done = as_typed(*words, RANK="", WORLD_SIZE="", LOCAL_RANK="")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize("command", [["evaluate", "--file"], ["easynlp", "--mode=evaluate", "--tables"], ["predict"]])
def test_an_empty_rank_is_no_number_that_is_wrong(empty: str, command: list[str], tiny_painter, monkeypatch) -> None:
    """Called from Python, too; what is complained about is the file."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, empty)
    model = "--checkpoint_dir" if command[0] == "easynlp" else "--model"
    output = ["--output", "out.tsv"] if command[0] == "predict" else []
    result = run(*command, "nowhere.tsv", model, tiny_painter, *output)
    assert result.exit_code == 2
    assert "nowhere.tsv" in result.stderr
    assert "literal" not in result.stderr


# paint


def test_paint_twice(tiny_painter) -> None:
    first = run_well("paint", "红苹果", "--model", tiny_painter)
    run_well("paint", "红苹果", "--model", tiny_painter)
    assert len(here()) == 2
    seed = re.match(r"红苹果-(\d+)\.png: seed (\d+), score -\d\.\d+\n", first)
    assert seed is not None
    assert seed[1] == seed[2]
    assert re.search(r"Painted 1 picture in \d+\.\d s", first)


def test_paint_several(tiny_painter) -> None:
    text = run_well(
        *("paint", "红苹果", "../熊猫", "--num-images", 2, "--seed", 5, "--best-of", 3, "--model", tiny_painter),
        *("--output", "new/folder", "--grid", "grids/grid.png", "--size", 64),
    )
    names = ["new/folder/熊猫-11.png", "new/folder/熊猫-14.png", "new/folder/红苹果-5.png", "new/folder/红苹果-8.png"]
    assert here() == ["grids/grid.png", *names]
    assert {Image.open(name).size for name in names} == {(64, 64)}
    assert "16×16 pixels; they were enlarged to 64×64 (Lanczos)" in text
    assert "Painted 4 pictures" in text
    with Image.open("grids/grid.png") as grid:
        assert min(grid.size) > 200


def test_metadata_paints_the_picture_again(tiny_painter) -> None:
    run_well(
        *("paint", "红苹果", "--seed", 11, "--num-images", 2, "--best-of", 3, "--top-k", 50, "--top-p", 0.9),
        *("--temperature", 0.8, "--model", tiny_painter),
    )
    for name in here():
        with Image.open(name) as picture:
            text, pixels = dict(picture.text), np.asarray(picture)
        options = json.loads(text["options"])
        assert options == {"best_of": 3, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "size": None, "speed": "exact"}
        assert text["model"] == "tiny-painter"  # not the folder that it is in
        assert text["Software"] == f"pai-painter {pai_painter.__version__}"
        assert float(text["score"]) < 0
        settings = [f"--{name.replace('_', '-')}={options[name]}" for name in ("temperature", "top_k", "top_p")]
        again = ["paint", text["caption"], "--model", tiny_painter, "--force", "--output", "again.png", *settings]
        for seed in (["--seed", text["seed"], "--best-of", 3], ["--seed", text["candidate_seed"], "--best-of", 1]):
            run_well(*again, *seed)
            np.testing.assert_array_equal(np.asarray(Image.open("again.png")), pixels)


def test_the_printed_seeds_paint_the_picture_again(tiny_painter) -> None:
    text = run_well("paint", "红苹果", "--model", tiny_painter, "--best-of", 4, "--output", "a.png")
    seed = re.search(r"seed (\d+),", text)
    alone = re.search(r"best of 4 \(this candidate alone: (--seed \d+ --best-of 1)\)", text)
    assert seed is not None
    assert alone is not None
    run_well("paint", "红苹果", "--model", tiny_painter, "--best-of", 4, "--seed", seed[1], "--output", "b.png")
    run_well("paint", "红苹果", "--model", tiny_painter, *alone[1].split(), "--output", "c.png")
    pictures = [Image.open(name).tobytes() for name in ("a.png", "b.png", "c.png")]
    assert pictures[0] == pictures[1] == pictures[2]


def test_nothing_is_overwritten_without_force(tiny_painter, monkeypatch) -> None:
    paint = ["paint", "红苹果", "--model", tiny_painter, "--seed", 1]
    run_well(*paint)
    monkeypatch.setattr(PaiPainterForImageGeneration, "generate", None)  # it is found out before the painting
    assert "红苹果-1.png exists already" in one_sentence(run(*paint))
    Path("grid.png").touch()
    assert "grid.png exists already" in one_sentence(run(*paint, "--output", "x", "--grid", "grid.png"))
    assert here() == ["grid.png", "红苹果-1.png"]


def test_force_overwrites(tiny_painter) -> None:
    Path("x.png").touch()
    run_well("paint", "红苹果", "--model", tiny_painter, "--output", "x.png", "--force")
    assert Image.open("x.png").size == (16, 16)


def test_captions_are_no_paths(tiny_painter, tmp_path) -> None:
    captions = ["/红", "../../红", "红\x00\n", "C:\\红", "红" * 500, "红🍎", "红"]
    run_well("paint", *captions, "--model", tiny_painter, "--seed", 1)
    assert len(here()) == len(captions)
    assert all(re.fullmatch(r"[C_红]+-[1-7]\.png", name) for name in here())
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_unknown_words_are_named(tiny_painter) -> None:
    result = run("paint", "红🫨苹果", "--model", tiny_painter)
    assert result.exit_code == 0
    assert result.stderr.startswith("Note: The model doesn't know 🫨 in the caption")
    assert "Loading" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([""], "is empty"),
        ([" "], "is empty"),
        (["红苹果", ""], "is empty"),
        (["🫨🫨"], "knows no word"),
        (["红", "--top-k", 0], "`top_k` must be a whole number of at least 1"),
        (["红", "--top-k", -5], "`top_k` must be a whole number of at least 1"),
        (["红", "--temperature", 0], "use `top_k=1`"),
        (["红", "--temperature", "nan"], "`temperature` must be"),
        (["红", "--top-p", 1.5], "`top_p` must lie"),
        (["红", "--best-of", 0], "`best_of` must be"),
        (["红", "--seed", -1], "`seed` must be"),
        (["红", "--seed", 2**63], "`seed` must be"),
        (["红", "--size", 8], "from 16 to 8192"),
        (["红", "--output", "x.jpg"], "end in .png"),
        (["红", "--num-images", 2, "--output", "x.png"], "one file for 2 pictures"),
        (["红", "--grid", "grid.jpg"], "end in .png"),
        (["红", "--output", "x.png", "--grid", "x.png"], "can't be both"),
        (["红", "--device", "abacus"], "can't paint on --device abacus"),
        (["红", "--output", "/proc/nowhere"], "Nothing can be written to the folder"),
        (["红", "--output", f"{__file__}/folder"], "Nothing can be written to the folder"),
    ],
)
def test_paint_errors(tiny_painter, arguments, sentence) -> None:
    assert sentence in one_sentence(run("paint", "--model", tiny_painter, *arguments))
    assert here() == []


def test_usage_errors() -> None:
    for arguments in (["paint"], ["paint", "红", "--num-images", 0], ["paint", "红", "--top-k", "x"], ["draw", "红"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_no_disk_space(tiny_painter, monkeypatch) -> None:
    def full(self, file, **options) -> None:
        file.write(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("paint", "红", "--model", tiny_painter, "--seed", 1)
    assert one_sentence(result, code=1) == "Error: 红-1.png can't be written (No space left on device)\n"
    assert list(Path().iterdir()) == []


def test_control_c(tiny_painter, monkeypatch) -> None:
    def interrupt(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PaiPainterVQModel, "decode", interrupt)
    result = run("paint", "红", "--model", tiny_painter)
    assert result.exit_code == 130
    assert result.stderr == "Stopped; the files listed above are complete.\n"
    assert here() == []


def test_the_unexpected(tiny_painter, monkeypatch) -> None:
    monkeypatch.setattr(PaiPainterVQModel, "decode", None)
    paint = ["paint", "红", "--model", tiny_painter]
    assert "Unexpected error (TypeError" in one_sentence(run(*paint), code=1)
    assert "Traceback" in run(*paint, "--verbose").stderr


# Models


@pytest.mark.parametrize("command", [["paint", "红", "--model"], ["info"], ["encode", "apple.png", "--model"]])
def test_model_errors(apple, command, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nowhere", "./nowhere", tmp_path / "nowhere", "nobody/nothing"):
        assert "is neither a local folder nor" in one_sentence(run(*command, name))
    assert "contains no painter" in one_sentence(run(*command, tmp_path))
    (folder / "config.json").write_text("{")
    assert "is damaged" in one_sentence(run(*command, folder))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "contains no painter" in one_sentence(run(*command, folder))
    assert here() == ["apple.png"]


@pytest.mark.parametrize("command", [["paint", "红", "--model"], ["encode", "apple.png", "--model"]])
def test_truncated_weights(apple, command, folder) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert "are damaged or truncated" in one_sentence(run(*command, folder))
    weights.unlink()
    one_sentence(run(*command, folder))


def test_info(folder) -> None:
    (folder / "model.safetensors").unlink()  # it does without
    text = run_well("info", folder)
    model = PaiPainterForImageGeneration(pai_painter.PaiPainterConfig.from_pretrained(folder))
    for fact in (f"{model.num_parameters():,}", "16×16 pixels", "top_k 100", "native", "float32", "8 word pieces"):
        assert fact in text
    assert "nothing is known about its training" in text


def test_info_completes_the_settings(folder) -> None:
    (folder / "generation_config.json").write_text('{"top_k": 7}')
    assert "temperature 1.0, top_k 7, best_of 1" in run_well("info", folder)


def test_info_of_easynlp(tmp_path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "easynlp_tiny", tmp_path / "easynlp"))
    config = json.loads((folder / "config.json").read_text())
    sizes = {"img_vocab_size": 16384, "text_vocab_size": 21128, "block_size": 288}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, "n_layer": 12, "n_head": 12, "n_embd": 768}))
    text = run_well("info", folder)
    for fact in ("EasyNLP", "126,669,312 transformer + 76,073,859 VQGAN = 202,743,171", "811 MB", "256×256 pixels"):
        assert fact in text


def test_info_reads_the_card(folder) -> None:
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\ndatasets: [noto, twemoji]\n---\n# Title\n\n![x](y.png)\n\n"
        "Painted from [bold]emoji\x1b[31m[/nonsense].\n",
        encoding="utf-8",
    )
    text = run_well("info", folder)
    assert "noto, twemoji" in text
    assert "Painted from [bold]emoji\\x1b[31m[/nonsense]." in text
    assert "\x1b" not in text


# encode, decode


def test_encode_and_decode(apple, tiny_painter) -> None:
    text = run_well("encode", apple, apple, "--model", tiny_painter)
    assert re.match(r"apple\.png: PSNR \d+\.\d dB\n", text)
    rows = json.loads(Path("image_tokens.json").read_text())
    assert [row["file"] for row in rows] == ["apple.png", "apple.png"]
    assert len(rows[0]["image_tokens"]) == 16
    assert run_well("decode", "image_tokens.json", "--model", tiny_painter, "--output", "out") == (
        "out/apple-decoded.png\nout/apple-decoded-2.png\n"
    )
    assert Image.open("out/apple-decoded.png").size == (16, 16)
    assert "image_tokens.json exists already" in one_sentence(run("encode", apple, "--model", tiny_painter))
    decode = ["decode", "image_tokens.json", "--model", tiny_painter, "--output", "out"]
    assert "apple-decoded.png exists already" in one_sentence(run(*decode))
    run_well(*decode, "--force")


def test_encode_errors(apple, tiny_painter) -> None:
    assert "No such file" in one_sentence(run("encode", "nowhere.png", "--model", tiny_painter))
    Path("bad.png").write_bytes(b"\x89PNG\r\n")
    assert "bad.png: The picture" in one_sentence(run("encode", "bad.png", "--model", tiny_painter))
    one_sentence(run("encode", ".", "--model", tiny_painter))
    assert here() == ["apple.png", "bad.png"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "must hold a list"),
        ("[]", "must hold a list"),
        ("[7]", "picture 1 must be {"),
        ('[{"file": "a"}]', "picture 1 must be {"),
        ('[{"file": 1, "image_tokens": []}]', "picture 1 must be {"),
        ('[{"file": "a", "image_tokens": [1, 2]}]', "picture 1 must be {"),
        (json.dumps([{"file": "a", "image_tokens": [*range(15), 64]}]), "picture 1 must be {"),
        (json.dumps([{"file": "a", "image_tokens": [*range(15), -1]}]), "picture 1 must be {"),
        (json.dumps([{"file": "a", "image_tokens": [*range(15), True]}]), "picture 1 must be {"),
        (json.dumps([{"file": "a", "image_tokens": [*range(15), "1"]}]), "picture 1 must be {"),
    ],
)
def test_decode_errors(tiny_painter, tmp_path, text, sentence) -> None:
    (tmp_path / "image_tokens.json").write_text(text)
    assert sentence in one_sentence(run("decode", tmp_path / "image_tokens.json", "--model", tiny_painter))
    assert here() == []


def test_decoded_files_stay_in_their_folder(tiny_painter, tmp_path) -> None:
    rows = [{"file": "../../../etc/passwd", "image_tokens": [0] * 16}]
    (tmp_path / "image_tokens.json").write_text(json.dumps(rows))
    run_well("decode", tmp_path / "image_tokens.json", "--model", tiny_painter)
    assert here() == ["passwd-decoded.png"]
