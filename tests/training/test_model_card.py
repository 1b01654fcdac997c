# SPDX-License-Identifier: Apache-2.0
"""README.md of a trained folder: the run's own numbers, no path of the machine, and respect for what a person wrote."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pai_painter.training.metrics import read_metrics
from pai_painter.training.publishing import _losses, _public, write_model_card

FACTS: dict[str, Any] = {
    "name": "me/shop",
    "base_model": "alibaba-pai/pai-painter-base-zh",
    "lora": False,
    "parameters": 202_743_171,
    "trained_parameters": 126_669_312,
    "text_length": 32,
    "data": "shop|衣服.tsv",
    "data_hash": "0123abcd",
    "rows": 12_345,
    "rejected_rows": 6,
    "validation_rows": 789,
    "steps": 1500,
    "epochs": 1.94,
    "loss": 3.25,
    "validation_loss": 3.5,
    "perplexity": 33.1155,
    "best_validation_loss": 3.4,
    "best_step": 1000,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "settings": {"learning_rate": 4e-5, "caption_separator": "|", "train_file": ["a_b.tsv", "c.tsv"], "dropout": None},
}


def card_of(folder: Path, **changes: Any) -> ModelCard:
    folder.mkdir(exist_ok=True)
    write_model_card(folder, {**FACTS, **changes})
    return ModelCard.load(folder / "README.md")


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
        "validation_loss: 3.5",
        "best_step: 1000",
        "data: shop|衣服.tsv",
        "rows: 12345",
        "caption_separator: '|'",
        "- a_b.tsv",
        "python 3.11.7 · torch 2.13.0",
    ]:
        assert line in card.text.splitlines(), line
    assert "fine-tuned from [alibaba-pai/pai-painter-base-zh](https://huggingface.co/" in card.text
    assert "dropout" not in card.text
    assert "{{" not in card.text
    assert "None" not in card.text.replace("None is set yet", "")


def test_a_new_painter_and_one_from_a_folder_name_no_base_in_the_metadata(tmp_path: Path) -> None:
    new, local = card_of(tmp_path / "new", base_model=None), card_of(tmp_path / "local", base_model="my_painter")
    assert "trained from scratch" in new.text
    assert "fine-tuned from `my_painter`" in local.text
    assert new.data.base_model is local.data.base_model is None


def test_the_card_of_an_adapter(tmp_path: Path) -> None:
    card = card_of(tmp_path, lora=True, trained_parameters=589_824)
    assert (card.data.library_name, card.data.to_dict()["base_model_relation"]) == ("peft", "adapter")
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
    nothing = dict.fromkeys(
        ("validation_loss", "best_validation_loss", "best_step", "validation_rows", "rows", "epochs")
    )
    text = card_of(tmp_path, **nothing, perplexity=None).text
    assert "validation" not in text.lower()
    assert "perplexity: " not in text
    assert "epochs" not in text
    assert "especially if there were few of them." in text


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_an_untouched_card_is_written_anew(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "README.md"
    card_of(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", ends.encode()))
    card_of(tmp_path, loss=1.25)
    assert "\nloss: 1.25\n" in path.read_text(encoding="utf-8")


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
        write_model_card(tmp_path, FACTS)
    assert path.read_bytes() == edited
    assert "written or edited by hand and stays as it is" in caplog.text


@pytest.mark.parametrize("name", ['a"; import os', "it's `me`", "名字 | x", "${HOME}"])
def test_a_strange_name_breaks_neither_yaml_nor_code(tmp_path: Path, name: str) -> None:
    card = card_of(tmp_path, name=name, data=name, base_model=name)
    code = card.text.split("```python\n")[1].split("```")[0]
    assert name in compile(code, "card", "exec").co_consts
    (data,) = re.findall(r"## Data\n\n```yaml\n(.*?)```", card.text, re.DOTALL)
    assert yaml.safe_load(data)["data"] == name


def test_settings_hold_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    settings = {
        "output_dir": str(tmp_path / "跑"),
        "train_file": [str(tmp_path / "a.tsv"), "data/*.tsv", "C:\\data\\b.tsv", "~/c.tsv", "owner/model"],
        "tokenizer_name": "owner/words",
        "caption_separator": "/",
        "use_ema": True,
    }
    assert _public(settings) == {
        "output_dir": "跑",
        "train_file": ["a.tsv", "*.tsv", "b.tsv", "c.tsv", "model"],
        "tokenizer_name": "owner/words",
        "caption_separator": "/",
        "use_ema": True,
    }


def test_losses_come_from_the_lines_that_are_whole(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "loss": 4.0},
        {"step": 10, "validation_loss": 2.0},
        {"step": 20, "loss": 3.0, "learning_rate": math.nan},
        {"step": 20, "validation_loss": 2.25, "validation_perplexity": 9.5},
        {"loss": 1.0},
        {"step": "x", "loss": 1.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '[1]\n\n7\n{"step": 50, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_metrics(tmp_path / "metrics.jsonl")[2:] == [
        {"step": 20, "loss": 3.0},
        {"step": 20, "validation_loss": 2.25, "validation_perplexity": 9.5},
    ]
    assert _losses(read_metrics(tmp_path / "metrics.jsonl")) == {
        "loss": 3.0,
        "validation_loss": 2.25,
        "perplexity": 9.5,
        "best_validation_loss": 2.0,
        "best_step": 10,
    }
