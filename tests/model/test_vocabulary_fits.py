# SPDX-License-Identifier: Apache-2.0
"""Vocabulary and model must fit each other: a line lost or exchanged would paint something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_fixtures import GOLDEN, vqgan_config
from typer.testing import CliRunner

from pai_painter import DEMO_MODEL, PaiPainterConfig, PaiPainterPipeline, PaiPainterTokenizer
from pai_painter.cli import app
from pai_painter.convert import convert

Change = Callable[[list[str]], list[str]]
OTHER = "一丁七万丈三上下不与丑专且世丘丙业丛东丝"

# What happens to the lines of a vocabulary.
CHANGES: dict[str, Change] = {
    "a line lost": lambda pieces: [*pieces[:50], *pieces[51:]],
    "the last line lost": lambda pieces: pieces[:-1],
    "two lines exchanged": lambda pieces: [*pieces[:50], pieces[51], pieces[50], *pieces[52:]],
    "another line": lambda pieces: [*pieces[:50], "🜨", *pieces[51:]],
    "a line twice": lambda pieces: [*pieces[:50], pieces[40], *pieces[51:]],
    "a line more": lambda pieces: [*pieces, "🜨"],
    "an empty line": lambda pieces: [*pieces[:50], "", *pieces[50:]],
    "a special token lost": lambda pieces: [piece for piece in pieces if piece != "[MASK]"],
    "the unknown token lost": lambda pieces: [piece for piece in pieces if piece != "[UNK]"],
    "the pad lost": lambda pieces: [piece for piece in pieces if piece != "[PAD]"],
    "the pad elsewhere": lambda pieces: [pieces[1], pieces[0], *pieces[2:]],
    "another model's": lambda pieces: [*pieces[:5], *OTHER],
}
# Without a fingerprint nobody can know these.
UNKNOWABLE = {"two lines exchanged", "another line"}


def write_vocabulary(folder: Path, name: str, change: Change) -> None:
    """Leaves one vocabulary in a folder, under the name, changed."""
    tokenizer = PaiPainterTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    first = tokenizer.image_vocab_size
    pieces = change(sorted(vocabulary, key=vocabulary.__getitem__))
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink(missing_ok=True)
        (folder / name).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
        return
    (folder / "vocab.txt").unlink(missing_ok=True)
    content = json.loads((folder / name).read_bytes())
    content["model"]["vocab"] = {piece: first + line for line, piece in enumerate(pieces)}
    (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "demo"))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_vocabulary_is_refused(demo: Path, name: str, change: str) -> None:
    write_vocabulary(demo, name, CHANGES[change])
    with pytest.raises(ValueError, match="ocabulary") as error:
        PaiPainterPipeline.from_pretrained(demo)
    assert str(demo) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_an_unchanged_vocabulary_is_not(demo: Path, name: str) -> None:
    write_vocabulary(demo, name, list)
    assert PaiPainterPipeline.from_pretrained(demo).processor(text="红苹果")["input_ids"][0][0] > 512


def test_an_id_missing_in_tokenizer_json(demo: Path) -> None:
    (demo / "vocab.txt").unlink()
    content = json.loads((demo / "tokenizer.json").read_bytes())
    content["model"]["vocab"].pop("一")
    (demo / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="must follow each other without a gap"):
        PaiPainterPipeline.from_pretrained(demo)


def test_two_vocabularies_in_one_folder(demo: Path) -> None:
    pieces = (demo / "vocab.txt").read_text(encoding="utf-8").splitlines()
    pieces[50], pieces[51] = pieces[51], pieces[50]
    (demo / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json and the vocab\.txt of \S+ hold different vocabularies"):
        PaiPainterPipeline.from_pretrained(demo)


@pytest.mark.parametrize("setting", ["do_lower_case", "tokenize_chinese_chars", "strip_accents"])
def test_settings_that_change_the_ids(demo: Path, setting: str) -> None:
    settings = json.loads((demo / "tokenizer_config.json").read_bytes())
    (demo / "tokenizer_config.json").write_text(json.dumps({**settings, setting: False}))
    with pytest.raises(ValueError, match=r"`vocabulary_fingerprint` .*use the model.s own tokenizer"):
        PaiPainterPipeline.from_pretrained(demo)


@pytest.mark.parametrize("setting", ["image_vocab_size", "model_max_length"])
def test_sizes_that_are_not_the_models(demo: Path, setting: str) -> None:
    settings = json.loads((demo / "tokenizer_config.json").read_bytes())
    (demo / "tokenizer_config.json").write_text(json.dumps({**settings, setting: 10}))
    with pytest.raises(ValueError, match="is 10 instead of"):
        PaiPainterPipeline.from_pretrained(demo)


def test_the_command(demo: Path, tmp_path: Path) -> None:
    write_vocabulary(demo, "vocab.txt", CHANGES["two lines exchanged"])
    words = ["paint", "红苹果", "--model", str(demo), "--output", str(tmp_path / "apple.png")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "`vocabulary_fingerprint` of its vocabulary" in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "apple.png").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_an_easynlp_folder_gets_what_can_be_checked(change: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "easynlp_tiny", tmp_path / "easynlp"))
    write_vocabulary(folder, "vocab.txt", CHANGES[change])
    if change in UNKNOWABLE:
        PaiPainterPipeline.from_pretrained(folder, vq_config=vqgan_config())
        return
    with pytest.raises(ValueError, match="ocabulary"):
        PaiPainterPipeline.from_pretrained(folder, vq_config=vqgan_config())


def test_what_is_saved_says_which_vocabulary_is_its_own(demo: Path, tmp_path: Path) -> None:
    wanted = PaiPainterTokenizer.from_pretrained(GOLDEN / "easynlp_tiny").fingerprint
    PaiPainterPipeline.from_pretrained(GOLDEN / "easynlp_tiny", vq_config=vqgan_config()).save_pretrained(
        tmp_path / "a"
    )
    convert(GOLDEN / "easynlp_tiny", tmp_path / "b", vq_config=GOLDEN / "easynlp_tiny" / "dims.json")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert PaiPainterConfig.from_pretrained(folder).vocabulary_fingerprint == wanted
        write_vocabulary(folder, "tokenizer.json", CHANGES["two lines exchanged"])
        with pytest.raises(ValueError, match="`vocabulary_fingerprint` of its vocabulary"):
            PaiPainterPipeline.from_pretrained(folder)
    # A folder that was made before there were fingerprints.
    config = json.loads((demo / "config.json").read_bytes())
    wanted = config.pop("vocabulary_fingerprint")
    (demo / "config.json").write_text(json.dumps(config))
    PaiPainterPipeline.from_pretrained(demo).save_pretrained(tmp_path / "c")
    assert PaiPainterConfig.from_pretrained(tmp_path / "c").vocabulary_fingerprint == wanted


def test_conversion_of_a_native_folder(demo: Path, tmp_path: Path) -> None:
    write_vocabulary(demo, "vocab.txt", CHANGES["two lines exchanged"])
    with pytest.raises(ValueError, match="`vocabulary_fingerprint` of its vocabulary"):
        convert(demo, tmp_path / "out", dtype="bfloat16")


def test_another_processor_by_hand(pipe: PaiPainterPipeline) -> None:
    other = PaiPainterPipeline.from_pretrained(DEMO_MODEL)
    with pytest.raises(ValueError, match="please use the model's own"):
        PaiPainterPipeline(model=pipe.model, processor=other.processor)
