# SPDX-License-Identifier: Apache-2.0
"""Captions to ids: the caption rule, its warnings, and the folders a processor is read from."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BertTokenizer

from pai_painter.model.image_processing_pai_painter import PaiPainterImageProcessor
from pai_painter.model.processing_pai_painter import PaiPainterProcessor
from pai_painter.model.tokenization_pai_painter import PaiPainterTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CAPTIONS = json.loads((GOLDEN / "captions.json").read_text(encoding="utf-8"))
PAD = 16384


@pytest.fixture(scope="module")
def processor() -> PaiPainterProcessor:
    return PaiPainterProcessor(PaiPainterImageProcessor(size=8), PaiPainterTokenizer.from_pretrained(GOLDEN))


@pytest.fixture
def easynlp_folder(tmp_path) -> Path:
    """What `alibaba-pai/pai-painter-base-zh` holds, without the weights, which no processor needs."""
    folder = tmp_path / "easynlp"
    folder.mkdir()
    shutil.copy(GOLDEN / "vocab.txt", folder)
    config = json.loads((GOLDEN / "easynlp_tiny" / "config.json").read_text())
    config |= {"img_vocab_size": 16384, "text_vocab_size": 21128, "vocab_size": 37512, "block_size": 288}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (12, 8), "red")


def test_there_are_golden_captions() -> None:
    assert len(CAPTIONS) == 36


@pytest.mark.parametrize("row", CAPTIONS, ids=range(len(CAPTIONS)))
def test_golden_captions(processor, row) -> None:
    assert processor(text=row["text"])["input_ids"] == [row["input_ids"]]


def test_golden_captions_as_a_batch(processor) -> None:
    inputs = processor(text=[row["text"] for row in CAPTIONS], return_tensors="pt")
    assert list(inputs) == ["input_ids"]  # above all, no attention mask
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs["input_ids"].tolist() == [row["input_ids"] for row in CAPTIONS]


def test_empty_captions_are_pads(processor) -> None:
    assert processor(text=["", " \t\n"])["input_ids"] == [[PAD] * 32] * 2


def test_long_captions_are_cut_with_a_warning(processor, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        processor(text=["红" * 32])
        assert not caplog.records
        inputs = processor(text=["红苹果", "红" * 33 + "果" * 7])
    assert inputs["input_ids"][1] == processor(text="红" * 32)["input_ids"][0]
    (record,) = caplog.records
    message = record.getMessage()
    assert "40 word pieces" in message
    assert "the last 8 are truncated" in message
    assert "红红" in message


def test_the_rule_follows_the_sizes(processor) -> None:
    small = PaiPainterProcessor(
        processor.image_processor,
        PaiPainterTokenizer.from_pretrained(GOLDEN, image_vocab_size=64, model_max_length=4),
    )
    assert (small.text_length, small.image_vocab_size) == (4, 64)
    plain = BertTokenizer.from_pretrained(GOLDEN)("红苹果", add_special_tokens=False)["input_ids"]
    assert small(text="红苹果")["input_ids"] == [[64 + token for token in [*plain, 0]]]


def test_pictures_alone_and_with_captions(processor, picture) -> None:
    alone = processor(images=picture, return_tensors="pt")
    assert list(alone) == ["pixel_values"]
    assert alone["pixel_values"].shape == (1, 3, 8, 8)
    assert alone["pixel_values"].dtype == torch.float32
    both = processor(images=[picture, picture], text=["红", "果"], return_tensors="np")
    assert both["pixel_values"].shape == (2, 3, 8, 8)
    assert both["input_ids"].shape == (2, 32)
    assert set(both) == set(processor.model_input_names)


def test_random_crop_reaches_the_pictures(processor) -> None:
    wide = Image.fromarray(np.arange(8 * 90 * 3, dtype=np.uint16).astype(np.uint8).reshape(8, 90, 3))
    crops = [processor(images=wide, random_crop=True, generator=seed, return_tensors="pt") for seed in (1, 1, 2)]
    assert torch.equal(crops[0]["pixel_values"], crops[1]["pixel_values"])
    assert not torch.equal(crops[0]["pixel_values"], crops[2]["pixel_values"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "text=, images= or both"),
        ({"text": 5}, "a list of captions, got 5"),
        ({"text": b"abc"}, "a list of captions, got b"),
        ({"text": {"a": 1}}, "a list of captions, got {"),
        ({"text": []}, "a list of captions, got \\[\\]"),
        ({"text": ["红", None]}, "None is of type NoneType"),
        ({"text": ["红", 5]}, "5 is of type int"),
        ({"text": [b"abc"]}, "of type bytes"),
        ({"text": [["红"]]}, "of type list"),
        ({"text": "\ud83d"}, "surrogate"),
        ({"images": []}, "`images` is empty"),
        ({"images": "红苹果"}, "Captions are `text`"),
    ],
)
def test_what_is_refused(processor, inputs, message) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_keywords_that_are_unknown(processor, easynlp_folder) -> None:
    for call in (processor, PaiPainterProcessor.from_pretrained):
        with pytest.raises(TypeError, match="text_lenght"):
            call(**({} if call is processor else {"pretrained_model_name_or_path": easynlp_folder}), text_lenght=3)
    with pytest.raises(TypeError, match="text_lenght"):
        AutoProcessor.from_pretrained(easynlp_folder, text_lenght=3)
    with pytest.raises(TypeError, match="text_lenght"):
        PaiPainterProcessor(processor.image_processor, processor.tokenizer, text_lenght=3)


def test_another_tokenizer_is_refused(processor) -> None:
    with pytest.raises(TypeError, match="whose ids are the model's, got a BertTokenizer"):
        PaiPainterProcessor(processor.image_processor, BertTokenizer.from_pretrained(GOLDEN))


def test_unknown_pieces(processor) -> None:
    assert processor.unknown_pieces("一只红苹果") == []
    assert processor.unknown_pieces("一😀個emoji，龘") == ["😀", "龘"]
    assert processor.unknown_pieces("红" * 32 + "龘") == []  # not read, so not missed
    assert processor.word_pieces("宽松T恤") == ["宽", "松", "t", "恤"]
    assert processor.word_pieces(" \u200b") == []
    with pytest.raises(ValueError, match="None"):
        processor.unknown_pieces(None)


def test_decode(processor) -> None:
    ids = processor(text=["红苹果", "hello world", "", "龘"], return_tensors="pt")["input_ids"]
    assert processor.batch_decode(ids) == ["红 苹 果", "hello world", "", "[UNK]"]
    with_codes = torch.cat([ids, torch.arange(4 * 8).view(4, 8)], dim=1)
    assert processor.batch_decode(with_codes) == processor.batch_decode(ids.tolist())
    assert processor.decode(ids[3], skip_special_tokens=True) == ""
    with pytest.raises(ValueError, match="image token 5"):
        processor.decode([PAD + 1, 5])


def test_saved_equals_loaded(processor, tmp_path, picture) -> None:
    tokenizer = PaiPainterTokenizer.from_pretrained(GOLDEN, image_vocab_size=512, model_max_length=20)
    saved = PaiPainterProcessor(processor.image_processor, tokenizer)
    saved.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    loaded = PaiPainterProcessor.from_pretrained(tmp_path)
    assert (loaded.text_length, loaded.image_vocab_size) == (20, 512)
    assert type(loaded.tokenizer) is PaiPainterTokenizer
    assert loaded.to_dict() == saved.to_dict()
    captions = [row["text"] for row in CAPTIONS]
    before, after = saved(images=picture, text=captions), loaded(images=picture, text=captions)
    assert before["input_ids"] == after["input_ids"]
    assert np.array_equal(before["pixel_values"], after["pixel_values"])
    other = PaiPainterProcessor.from_pretrained(tmp_path, text_length=7, size=4)
    assert (other.text_length, other.image_vocab_size) == (7, 512)
    assert other.image_processor.size == {"shortest_edge": 4}


def test_easynlp_folder(easynlp_folder, tmp_path) -> None:
    loaded = PaiPainterProcessor.from_pretrained(easynlp_folder)
    assert (loaded.text_length, loaded.image_vocab_size) == (32, 16384)
    assert loaded.image_processor.size == {"shortest_edge": 256}
    assert loaded(text=[row["text"] for row in CAPTIONS])["input_ids"] == [row["input_ids"] for row in CAPTIONS]
    loaded.save_pretrained(tmp_path / "native")
    again = PaiPainterProcessor.from_pretrained(str(tmp_path / "native"))
    assert again.to_dict() == loaded.to_dict()
    assert again(text="红苹果") == loaded(text="红苹果")


def test_golden_easynlp_folder() -> None:
    loaded = PaiPainterProcessor.from_pretrained(GOLDEN / "easynlp_tiny", size=8)
    assert loaded.image_vocab_size == 64
    assert len(loaded.tokenizer) == 256
    assert loaded.image_processor.size == {"shortest_edge": 8}
    assert loaded(text="")["input_ids"] == [[64] * 32]


def test_folders_that_are_neither(easynlp_folder, tmp_path) -> None:
    with pytest.raises(OSError, match="is neither a local folder nor"):
        PaiPainterProcessor.from_pretrained(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(OSError, match=r"no processor_config\.json with an image_processor and no config\.json"):
        PaiPainterProcessor.from_pretrained(empty)
    (empty / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OSError, match="of an EasyNLP model"):
        PaiPainterProcessor.from_pretrained(empty)
    (empty / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json of .* is damaged"):
        PaiPainterProcessor.from_pretrained(empty)
    (empty / "processor_config.json").write_text('{"processor_class": "OtherProcessor"}')
    with pytest.raises(ValueError, match=r"config\.json of .* is damaged"):
        PaiPainterProcessor.from_pretrained(empty)
    (empty / "config.json").unlink()
    with pytest.raises(OSError, match="contains no processor of a painter"):
        PaiPainterProcessor.from_pretrained(empty)
    (easynlp_folder / "vocab.txt").unlink()
    with pytest.raises(OSError, match="no vocabulary"):
        PaiPainterProcessor.from_pretrained(easynlp_folder)
