# SPDX-License-Identifier: Apache-2.0
"""README.md of a trained folder: the run's own numbers, and respect for what a person wrote."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pai_painter.training.model_card import write_model_card
from pai_painter.training.summary import TrainingFacts

FACTS = TrainingFacts(
    name="me/shop",
    base_model="alibaba-pai/pai-painter-base-zh",
    base_model_on_hub=True,
    lora=False,
    parameters=202_743_171,
    trained_parameters=126_669_312,
    data="shop|衣服.tsv",
    data_hash="0123abcd",
    rows=12_345,
    rejected_rows=6,
    validation_rows=789,
    steps=1500,
    epochs=1.94,
    loss=3.25,
    validation_loss=3.5,
    best_validation_loss=3.4,
    best_step=1000,
    rows_per_second=41.5,
    seconds=3725.0,
    peak_memory={"process": 3 * 2**30},
    versions={"python": "3.11.7", "torch": "2.13.0"},
    settings={"learning_rate": 4e-5, "caption_separator": "|", "train_file": ["a_b.tsv", "c.tsv"], "dropout": None},
)


def card_of(folder: Path, facts: TrainingFacts = FACTS, **options: Any) -> ModelCard:
    folder.mkdir(exist_ok=True)
    path = write_model_card(folder, facts, text_length=32, **options)
    assert path == folder / "README.md"
    return ModelCard.load(path)


def test_metadata_and_numbers(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    assert card.data.to_dict() == {
        "language": "zh",
        "library_name": "transformers",
        "pipeline_tag": "text-to-image",
        "tags": ["pai-painter", "vqgan", "chinese"],
        "base_model": "alibaba-pai/pai-painter-base-zh",
        "base_model_relation": "finetune",
    }
    for line in [
        "# me/shop",
        'image = PaiPainterPipeline.from_pretrained("me/shop")("一只熊猫", seed=0).images[0]',
        "On the command line: `pai-painter paint 一只熊猫 --model me/shop`",
        "| validation loss, in the end | 3.5000 |",
        "| perplexity, in the end | 33.1155 |",
        "| best validation loss, at step 1000 | 3.4000 |",
        "| steps | 1,500 |",
        "| epochs | 1.94 |",
        "| parameters, trained | 202,743,171, 126,669,312 |",
        "| rows per second | 41.5 |",
        "| time since it was (last) started | 1 h 2 min |",
        "| memory at most | 3.00 GiB |",
        "| name | shop\\|衣服.tsv |",
        "| rows | 12,345 |",
        "| rejected rows | 6 |",
        "| hash of its content | `0123abcd` |",
        "| `caption_separator` | \\| |",
        "| `train_file` | a\\_b.tsv, c.tsv |",
        "python 3.11.7 · torch 2.13.0",
    ]:
        assert line in card.text.splitlines()
    assert 'AutoModel.from_pretrained("me/shop")' in card.text
    assert "please choose one that the training pictures" in card.text
    assert "fine-tuned from [alibaba-pai/pai-painter-base-zh](https://huggingface.co/" in card.text
    assert "`dropout`" not in card.text
    assert "{{" not in card.text
    assert "None" not in card.text.replace("None is set yet", "")


def test_a_licence_that_was_given(tmp_path: Path) -> None:
    card = card_of(tmp_path, license="apache-2.0")
    assert card.data.license == "apache-2.0"
    assert "please choose" not in card.text


def test_a_new_painter_and_one_from_a_folder_name_no_base_in_the_metadata(tmp_path: Path) -> None:
    new = card_of(tmp_path / "new", replace(FACTS, base_model=None, base_model_on_hub=False))
    assert "trained from nothing" in new.text
    local = card_of(tmp_path / "local", replace(FACTS, base_model="my_painter", base_model_on_hub=False))
    assert "fine-tuned from `my_painter`" in local.text
    assert new.data.base_model is None
    assert local.data.base_model is None


def test_the_card_of_an_adapter(tmp_path: Path) -> None:
    card = card_of(tmp_path, replace(FACTS, lora=True, trained_parameters=589_824))
    assert card.data.library_name == "peft"
    assert card.data.base_model == "alibaba-pai/pai-painter-base-zh"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "lora" in card.data.tags
    assert 'pipe.load_lora_weights("me/shop")' in card.text
    assert "AutoModel" not in card.text
    assert "It changes 589,824 of 202,743,171 parameters" in card.text


def test_pictures_that_are_there_are_shown_the_newest_grid_by_its_number(tmp_path: Path) -> None:
    assert "![" not in card_of(tmp_path).text
    (tmp_path / "samples").mkdir()
    for name in ("step-000900.png", "step-1000000.png", "contact.png", "step-2000000.txt"):
        (tmp_path / "samples" / name).touch()
    (tmp_path / "loss.png").touch()
    text = card_of(tmp_path).text
    assert "](samples/step-1000000.png)" in text
    assert "](loss.png)" in text
    assert text.count("![") == 2


def test_what_was_not_measured_has_no_line(tmp_path: Path) -> None:
    facts = replace(FACTS, validation_loss=None, best_validation_loss=None, best_step=None, validation_rows=None)
    text = card_of(tmp_path, facts).text
    assert "validation" not in text.lower()
    assert "| perplexity" not in text
    assert "| training loss (the last logged mean) | 3.2500 |" in text


def test_streamed_rows_are_not_counted(tmp_path: Path) -> None:
    text = card_of(tmp_path, replace(FACTS, rows=None, epochs=None)).text
    assert "| rows | a stream, not counted |" in text
    assert "epochs" not in text
    assert "the more so the fewer there were." in text


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_an_untouched_card_is_written_anew(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "README.md"
    card_of(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", ends.encode()))
    card_of(tmp_path, replace(FACTS, loss=1.5))
    assert "| 1.5000 |" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("edit", ["licence", "appended", "own", "empty", "not-utf8"])
def test_a_card_that_somebody_wrote_or_edited_stays(
    tmp_path: Path, edit: str, caplog: pytest.LogCaptureFixture
) -> None:
    card_of(tmp_path)
    path = tmp_path / "README.md"
    text = path.read_text(encoding="utf-8")
    edited = {
        "licence": text.replace("language: zh", "language: zh\nlicense: mit").encode(),
        "appended": (text + "\nThanks to all.\n").encode(),
        "own": "# 我的画家\n".encode(),
        "empty": b"",
        "not-utf8": "# 我的画家".encode("gbk"),
    }[edit]
    path.write_bytes(edited)
    with caplog.at_level(logging.WARNING):
        assert write_model_card(tmp_path, FACTS, text_length=32) is None
    assert path.read_bytes() == edited
    assert "written or edited by hand and stays as it is" in caplog.text


@pytest.mark.parametrize("name", ['a"; import os', "it's `me`", "名字 | x", "${HOME}"])
def test_a_strange_name_breaks_neither_yaml_nor_code_nor_table(tmp_path: Path, name: str) -> None:
    card = card_of(tmp_path, replace(FACTS, name=name, data=name, base_model=name, base_model_on_hub=False))
    code = card.text.split("```python\n")[1].split("```")[0]
    call = compile(code, "card", "exec").co_consts
    assert name in call
    rows = [line for line in card.text.splitlines() if line.startswith("| name |")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 3
