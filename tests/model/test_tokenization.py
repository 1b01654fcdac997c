# SPDX-License-Identifier: Apache-2.0
"""The tokenizer's ids are the model's, whichever way they are asked for."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer, BertTokenizer

from pai_painter import DEMO_MODEL, PaiPainterConfig, PaiPainterPipeline, PaiPainterTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS = json.loads((GOLDEN / "captions.json").read_text(encoding="utf-8"))
CAPTIONS = [row["text"] for row in ROWS]
IDS = [row["input_ids"] for row in ROWS]
PAD = 16384


@pytest.fixture(scope="module")
def tokenizer() -> PaiPainterTokenizer:
    return PaiPainterTokenizer.from_pretrained(GOLDEN)


def test_golden_captions(tokenizer) -> None:
    assert len(CAPTIONS) == 36
    assert tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=32)["input_ids"] == IDS
    inputs = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    assert list(inputs) == ["input_ids"]  # above all, no attention mask
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs["input_ids"].tolist() == IDS
    assert [tokenizer.encode(caption, padding="max_length", truncation=True) for caption in CAPTIONS] == IDS


def test_ids_of_special_tokens(tokenizer) -> None:
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (PAD, PAD + 100)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id) == (
        PAD + 101,
        PAD + 102,
        PAD + 103,
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, None)
    assert sorted(tokenizer.all_special_ids) == [PAD, *range(PAD + 100, PAD + 104)]
    assert tokenizer.padding_side == "right"
    assert tokenizer("红苹果") == tokenizer("红苹果", add_special_tokens=False)


def test_vocabulary(tokenizer) -> None:
    pieces = (GOLDEN / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert tokenizer.get_vocab() == {piece: PAD + line for line, piece in enumerate(pieces)}
    assert len(tokenizer) == tokenizer.vocab_size == len(pieces) == PaiPainterConfig().text_vocab_size
    ids = tokenizer.convert_tokens_to_ids(["红", "##ing", "没有这个"])
    assert ids == [PAD + pieces.index("红"), PAD + pieces.index("##ing"), tokenizer.unk_token_id]
    assert tokenizer.convert_ids_to_tokens(ids) == ["红", "##ing", "[UNK]"]
    assert tokenizer.convert_ids_to_tokens(5) is None


def test_padding_and_truncation_as_everybody_knows_them(tokenizer) -> None:
    red, apple = tokenizer(["红", "红苹果"])["input_ids"]
    assert (len(red), len(apple)) == (1, 3)
    assert tokenizer(["红", "红苹果"], padding=True)["input_ids"] == [[*red, PAD, PAD], apple]
    assert tokenizer("红苹果", truncation=True, max_length=2)["input_ids"] == apple[:2]
    assert tokenizer("红", padding="max_length", max_length=4, padding_side="left")["input_ids"] == [PAD] * 3 + red
    with_mask = tokenizer("红", padding="max_length", max_length=3, return_attention_mask=True)
    assert with_mask["attention_mask"] == [1, 0, 0]
    assert tokenizer.pad([{"input_ids": red}, {"input_ids": apple}])["input_ids"] == [[*red, PAD, PAD], apple]
    assert tokenizer("红" * 40, truncation=True)["input_ids"] == red * 32


def test_captions_come_back_and_image_tokens_are_no_text(tokenizer) -> None:
    ids = tokenizer(["红苹果", "hello world"], padding="max_length", return_tensors="pt")["input_ids"]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == ["红 苹 果", "hello world"]
    assert tokenizer.decode(ids[0]) == "红 苹 果" + " [PAD]" * 29
    sequences = torch.cat([ids, torch.randint(PAD, (2, 256), generator=torch.manual_seed(0))], dim=1)
    assert tokenizer.batch_decode(sequences, skip_special_tokens=True) == ["红 苹 果", "hello world"]
    assert tokenizer.decode([5, PAD - 1]) == ""


def test_saved_copied_and_pickled(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    others = [copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))]
    others += [auto.from_pretrained(tmp_path) for auto in (PaiPainterTokenizer, AutoTokenizer)]
    for other in others:
        assert type(other) is PaiPainterTokenizer
        assert (other.fingerprint, other.image_vocab_size) == (tokenizer.fingerprint, PAD)
        assert other(CAPTIONS, padding="max_length", truncation=True)["input_ids"] == IDS
    # Without transformers, too (which leaves the last call's padding in the file).
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("宽松T恤").ids == IDS[1]
    # Image tokens are a number, no names.
    assert len(json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]["vocab"]) == 21128


@pytest.mark.parametrize("layout", ["native", "EasyNLP"])
def test_the_same_numbers_everywhere(layout: str, tiny_painter: Path, tmp_path: Path) -> None:
    folder = tiny_painter
    if layout == "EasyNLP":
        config = json.loads((GOLDEN / "easynlp_tiny" / "config.json").read_bytes())
        config |= {"img_vocab_size": PAD, "text_vocab_size": 21128, "vocab_size": PAD + 21128, "block_size": 288}
        (tmp_path / "config.json").write_text(json.dumps(config))
        shutil.copy(GOLDEN / "vocab.txt", tmp_path)
        folder = tmp_path
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    ids = tokenizer(CAPTIONS, padding="max_length", truncation=True)["input_ids"]
    assert processor(text=CAPTIONS)["input_ids"] == ids
    if layout == "native":
        assert ids == [[token - PAD + 64 for token in row[:8]] for row in IDS]
        assert PaiPainterPipeline.from_pretrained(folder).processor(text=CAPTIONS)["input_ids"] == ids
    else:
        assert ids == IDS
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "vocab.txt"]


def test_a_native_folder_with_nothing_but_its_configuration_and_vocabulary(tmp_path) -> None:
    for name in ("config.json", "vocab.txt"):
        shutil.copy(Path(DEMO_MODEL) / name, tmp_path)
    tokenizer, whole = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(DEMO_MODEL)
    assert type(tokenizer) is PaiPainterTokenizer
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (512, 20)
    assert tokenizer.fingerprint == whole.fingerprint
    assert tokenizer("红苹果") == whole("红苹果")


def test_folders_from_before_this_tokenizer(tmp_path) -> None:
    """Their tokenizer.json counts from 0, and the offset stood in processor_config.json."""
    shutil.copytree(DEMO_MODEL, tmp_path, dirs_exist_ok=True)
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_bytes())
    (tmp_path / "processor_config.json").write_text(json.dumps(settings | {"text_length": 20, "image_vocab_size": 512}))
    now, before = (PaiPainterPipeline.from_pretrained(folder).processor for folder in (DEMO_MODEL, tmp_path))
    assert before(text="红苹果") == now(text="红苹果")


def test_fingerprint(tokenizer, tmp_path) -> None:
    pieces = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    assert PaiPainterTokenizer(pieces).fingerprint == tokenizer.fingerprint
    # The offset is the model's, not the vocabulary's.
    assert PaiPainterTokenizer(pieces, image_vocab_size=64, model_max_length=8).fingerprint == tokenizer.fingerprint
    others = [PaiPainterTokenizer([*pieces[:-2], pieces[-1], pieces[-2]]), PaiPainterTokenizer(pieces[:-1])]
    for option in ("do_lower_case", "tokenize_chinese_chars", "strip_accents"):
        others.append(PaiPainterTokenizer(pieces, **{option: False}))
    assert len({other.fingerprint for other in [tokenizer, *others]}) == 6


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (None, "`vocab` is missing or empty"),
        ([], "`vocab` is missing or empty"),
        (["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"], r"must be \[PAD\], .* but it is '\[UNK\]'"),
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "红"], r"lacks \[MASK\], which can't be added"),
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "红", "红"], "'红' twice"),
        ({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 5}, "5 word pieces have ids from 0 to 5"),
    ],
)
def test_what_is_no_vocabulary(vocab, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        PaiPainterTokenizer(vocab)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["image_vocab_size", "model_max_length"])
@pytest.mark.parametrize("value", [0, -1, 1.5, None, True, "8"])
def test_bad_sizes(name, value) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is {value!r}, but must be a positive whole number"):
        PaiPainterTokenizer(str(GOLDEN / "vocab.txt"), **{name: value})


def test_new_tokens_are_refused(tokenizer) -> None:
    for add in (
        lambda: tokenizer.add_tokens(["苹果"]),
        lambda: tokenizer.add_special_tokens({"eos_token": "<end>"}),
        lambda: PaiPainterTokenizer.from_pretrained(GOLDEN, extra_special_tokens=["<end>"]),
    ):
        with pytest.raises(ValueError, match=r"lacks (苹果|<end>), which can't be added"):
            add()
    assert tokenizer.add_special_tokens({"eos_token": "[SEP]"}) == 0
    tokenizer.eos_token = None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "["),
        ("tokenizer.json", '{"added_tokens": [], "model": {"vocab": null}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"pad_token": 5}'),
    ],
)
def test_damaged_files_are_one_sentence(name, content, tmp_path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        PaiPainterTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
