# SPDX-License-Identifier: Apache-2.0
"""Training the painter, from captions and pictures to a folder that loads."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny_world import PAINTER, VQGAN, WORDS
from torch.utils.data import default_collate
from transformers import AutoModel, AutoProcessor

from pai_painter import (
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterPipeline,
    PaiPainterProcessor,
    PaiPainterVQModel,
)
from pai_painter.data.augment import Augmentation
from pai_painter.data.image_tokens import ImageTokenCache
from pai_painter.data.row_cache import load_rows
from pai_painter.data.sources import find_source
from pai_painter.model import modeling_pai_painter
from pai_painter.training.arguments import DataArguments, PainterModelArguments, PainterTrainingArguments
from pai_painter.training.painter_model import build_painter
from pai_painter.training.painter_objective import PainterObjective, validation_loss
from pai_painter.training.painter_rows import CaptionedRows, sequences
from pai_painter.training.train_painter import main, train_painter


@pytest.fixture
def trained(
    painter_model: PainterModelArguments, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> Path:
    return train_painter(
        painter_model, data, painter_arguments(tmp_path / "trained", max_train_steps=2, eval_steps=1, sample_steps=1)
    )


def codes_of(folder: Path, data: DataArguments, variants: int = 1) -> tuple:
    painter, processor = PaiPainterForImageGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    rows = load_rows(find_source(data.train_file, caption_separator=data.caption_separator), cache_dir=data.cache_dir)
    changes = Augmentation(max_shift=1) if variants > 1 else None
    cache = ImageTokenCache(rows, painter.vqgan, processor.image_processor, variants, changes, data.cache_dir)
    return painter, processor, cache.load()


def test_what_is_saved_loads_at_once(trained: Path, vqgan_folder: Path) -> None:
    painter, processor = AutoModel.from_pretrained(trained), AutoProcessor.from_pretrained(trained)
    assert isinstance(painter, PaiPainterForImageGeneration)
    assert isinstance(processor, PaiPainterProcessor)
    assert (processor.text_length, processor.image_vocab_size, processor.image_processor.size) == (
        6,
        16,
        {"shortest_edge": 16},
    )
    # The averaged painter holds the VQGAN, unchanged.
    vqgan = PaiPainterVQModel.from_pretrained(vqgan_folder)
    for name, weight in vqgan.state_dict().items():
        assert torch.equal(painter.vqgan.state_dict()[name], weight), name
    image = PaiPainterPipeline.from_pretrained(trained)("红色的圆", seed=0).images[0]
    assert image.size == (16, 16)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [1, 2]
    assert len(list((trained / "samples").iterdir())) == 2


def test_going_on_with_a_trained_painter(trained: Path, data: DataArguments, tmp_path: Path) -> None:
    training = PainterTrainingArguments(output_dir=str(tmp_path / "out"), max_train_steps=3, mixed_precision="bf16")
    train_painter(PainterModelArguments(model_name_or_path=str(trained)), data, training)
    before, after = (AutoModel.from_pretrained(folder) for folder in (trained, tmp_path / "out"))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    shift = (before.lm_head.weight - after.lm_head.weight).abs().max()
    assert shift < 0.01  # it went on from there
    assert AutoProcessor.from_pretrained(tmp_path / "out").text_length == 6


def test_it_learns_by_heart(shapes: Path, vqgan_folder: Path, data: DataArguments, tmp_path: Path) -> None:
    config(tmp_path, resid_pdrop=0.0)
    painter_model = PainterModelArguments(
        config_name=str(tmp_path), vqgan=str(vqgan_folder), tokenizer_name=str(shapes / "painter")
    )
    training = PainterTrainingArguments(
        output_dir=str(tmp_path / "painter"), max_train_steps=250, per_device_train_batch_size=12, learning_rate=1e-2
    )
    training.save_steps = training.eval_steps = training.sample_steps = training.logging_steps = 999
    data = DataArguments(data.train_file, caption_separator="|", cache_dir=data.cache_dir)
    folder = train_painter(painter_model, data, training)
    painter, processor, codes = codes_of(folder, data)
    captions = [caption for row in codes for caption in row["captions"]]
    wanted = torch.tensor([row["image_tokens"][0] for row in codes for _ in row["captions"]])
    input_ids = processor(text=captions, return_tensors="pt")["input_ids"]
    painted = painter.generate_images(input_ids, top_k=1, seed=0).image_tokens
    right = (painted == wanted).all(1)
    assert right.sum() >= 22, [caption for caption, good in zip(captions, right.tolist(), strict=True) if not good]
    assert len(wanted.unique(dim=0)) >= 10  # there is something to learn
    rows = CaptionedRows(codes, processor)
    assert validation_loss(PainterObjective(painter), rows, Accelerator(cpu=True))["validation_loss"] < 0.1


def test_the_loss_is_the_models(trained: Path, data: DataArguments) -> None:
    painter, processor, codes = codes_of(trained, data)
    rows = CaptionedRows(codes, processor)
    input_ids, labels = sequences(default_collate([rows[0], rows[5]]), torch.device("cpu"))
    assert input_ids.shape == labels.shape == (2, 22)
    assert (labels[:, :6] == -100).all()
    assert torch.equal(labels[:, 6:], input_ids[:, 6:])
    expected = processor(text=[codes[0]["captions"][0], codes[5]["captions"][0]], return_tensors="pt")["input_ids"]
    assert torch.equal(input_ids[:, :6], expected)
    assert torch.equal(input_ids[:, 6:], torch.tensor([codes[0]["image_tokens"][0], codes[5]["image_tokens"][0]]))
    logits = painter.eval()(input_ids).logits[:, 5:-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 6:].flatten())
    objective = PainterObjective(painter)
    torch.testing.assert_close(objective(input_ids, labels), loss)

    # A mean over rows, whatever the last batch's size.
    each = [objective(*sequences(default_collate([rows[row]]), torch.device("cpu"))).item() for row in range(12)]
    for batch_size in (1, 5, 12):
        found = validation_loss(objective, rows, Accelerator(cpu=True), batch_size)
        assert found["validation_loss"] == pytest.approx(sum(each) / 12, abs=1e-5)
        assert found["validation_perplexity"] == pytest.approx(math.exp(sum(each) / 12), rel=1e-4)


def test_pkeep_replaces_codes_by_codes(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = PaiPainterForImageGeneration.from_pretrained(trained)
    seen = []
    embed = painter.model.embed_tokens.forward
    monkeypatch.setattr(painter.model.embed_tokens, "forward", lambda ids: seen.append(ids) or embed(ids))
    objective = PainterObjective(painter, pkeep=0.7).train()
    torch.manual_seed(0)
    input_ids = torch.cat([torch.randint(16, 31, (400, 6)), torch.randint(16, (400, 16))], dim=1)
    objective(input_ids, input_ids)
    assert torch.equal(seen[0][:, :6], input_ids[:, :6])
    assert seen[0].max() < 31
    assert (seen[0][:, 6:] < 16).all()
    replaced = (seen[0] != input_ids)[:, 6:].float().mean()
    assert replaced == pytest.approx(0.3 * 15 / 16, abs=0.02)


def test_captions_variants_and_drops_are_drawn_by_row_and_epoch(trained: Path, data: DataArguments) -> None:
    _, processor, codes = codes_of(trained, data, variants=2)
    rows = CaptionedRows(codes, processor, seed=1, caption_dropout=0.3)
    drawn = {(epoch, row): rows[epoch, row] for epoch in range(40) for row in range(12)}
    for place, item in drawn.items():
        assert all(torch.equal(rows[place][name], value) for name, value in item.items())
    empty = processor(text="", return_tensors="pt")["input_ids"][0]
    captions = [processor(text=text, return_tensors="pt")["input_ids"][0] for text in codes[3]["captions"]]
    of_row = [item for (_, row), item in drawn.items() if row == 3]
    counts = [sum(torch.equal(item["caption_ids"], ids) for item in of_row) for ids in (*captions, empty)]
    assert sum(counts) == 40
    assert min(counts) >= 5
    dropped = sum(torch.equal(item["caption_ids"], empty) for item in drawn.values()) / len(drawn)
    assert dropped == pytest.approx(0.3, abs=0.07)
    variants = codes[3]["image_tokens"]
    assert len(variants) == 2
    assert {tuple(item["image_tokens"].tolist()) for item in of_row} == {tuple(codes) for codes in variants}
    assert torch.equal(rows[3]["caption_ids"], captions[0])
    assert rows[3]["image_tokens"].tolist() == variants[0]


def config(folder: Path, **changes: object) -> None:
    content = {**PAINTER, **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_vocab_size": 32},
            r"`image_vocab_size` \(32\) must be the size of the VQGAN's codebook",
        ),
        ({"image_vocab_size": None}, r"`image_vocab_size` \(16384\) must be the size of the VQGAN's codebook"),
        (
            {"vq_config": {**VQGAN, "resolution": 32}},
            r"The `vq_config` of \S+ isn't that of the VQGAN \S+: please leave it out\.",
        ),
        ({"text_vocab_size": 14}, "the `text_vocab_size` of its vocabulary and settings is 15 instead of 14"),
        ({"model_type": "gpt2"}, r"isn't a painter's configuration: its model_type is 'gpt2'"),
    ],
)
def test_what_does_not_fit(
    changes: dict, message: str, shapes: Path, vqgan_folder: Path, data: DataArguments, tmp_path: Path
) -> None:
    config(tmp_path, **changes)
    shutil.copy(shapes / "painter" / "vocab.txt", tmp_path)
    model = PainterModelArguments(config_name=str(tmp_path), vqgan=str(vqgan_folder))
    training = PainterTrainingArguments(output_dir=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=message):
        train_painter(model, data, training)


def test_sizes_that_do_not_fit_are_one_sentence(
    shapes: Path, vqgan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config(tmp_path, num_attention_heads=3)
    words = {"config_name": tmp_path, "vqgan": vqgan_folder, "train_file": shapes / "shapes.tsv"}
    words["output_dir"] = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main([f"--{name}={value}" for name, value in words.items()])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(": `hidden_size` (32) must be divisible by `num_attention_heads` (3).")
    assert "Error" not in last


def test_no_vocabulary(vqgan_folder: Path, data: DataArguments, tmp_path: Path) -> None:
    config(tmp_path)
    model = PainterModelArguments(config_name=str(tmp_path), vqgan=str(vqgan_folder))
    with pytest.raises(ValueError, match=r"has no vocabulary .*: please set `tokenizer_name`"):
        train_painter(model, data, PainterTrainingArguments(output_dir=str(tmp_path / "out")))


def exchanged(folder: Path, words: list[str]) -> str:
    """A folder with the vocabulary, the last two lines exchanged."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n", encoding="utf-8")
    return str(folder)


def test_a_new_painter_takes_no_vocabulary_but_that_of_its_configuration(
    trained: Path, shapes: Path, vqgan_folder: Path, tmp_path: Path
) -> None:
    fingerprint = PaiPainterConfig.from_pretrained(trained).vocabulary_fingerprint
    assert fingerprint == AutoProcessor.from_pretrained(trained).tokenizer.fingerprint
    config(tmp_path, vocabulary_fingerprint=fingerprint)
    parts = {"config_name": str(tmp_path), "vqgan": str(vqgan_folder)}
    build_painter(PainterModelArguments(**parts, tokenizer_name=str(shapes / "painter")))
    other = exchanged(tmp_path / "other", WORDS)
    with pytest.raises(ValueError, match=r"processor of \S+/other isn't the model's"):
        build_painter(PainterModelArguments(**parts, tokenizer_name=other))
    config(tmp_path)  # of no vocabulary yet
    build_painter(PainterModelArguments(**parts, tokenizer_name=other))
    (tmp_path / "other" / "vocab.txt").write_text("\n".join(word for word in WORDS if word != "[MASK]"))
    with pytest.raises(ValueError, match=r"vocabulary of \S+/other lacks \[MASK\]"):
        build_painter(PainterModelArguments(**parts, tokenizer_name=other))


def test_a_trained_painter_is_not_trained_on_with_another_vocabulary(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "tokenizer.json").unlink()
    shutil.move(Path(exchanged(tmp_path / "other", WORDS)) / "vocab.txt", folder)
    with pytest.raises(ValueError, match="isn't the model's"):
        build_painter(PainterModelArguments(model_name_or_path=str(folder)))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"a": ', b"\xff\x00", b'{"model_type": "pai_painter", "vq_config": 3}']
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"])
def test_a_damaged_folder_is_one_sentence(
    name: str, content: bytes, trained_painter: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(trained_painter, tmp_path / "damaged")
    (tmp_path / "damaged" / name).write_bytes(content)
    words = {"model_name_or_path": tmp_path / "damaged", "train_file": shapes / "shapes.tsv"}
    with pytest.raises(SystemExit) as stop:
        main(
            [*(f"--{name}={value}" for name, value in words.items()), "--output_dir", str(tmp_path / "out")], "train.py"
        )
    assert stop.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert "Traceback" not in sentence


@pytest.mark.parametrize("missing", ["config_name", "vqgan"])
def test_a_part_that_is_not_there(missing: str, shapes: Path, vqgan_folder: Path, tmp_path: Path) -> None:
    parts = {"config_name": str(shapes / "painter"), "vqgan": str(vqgan_folder)}
    with pytest.raises(OSError, match=r"\S+/nothing is neither a local folder nor"):
        build_painter(PainterModelArguments(**{**parts, missing: str(tmp_path / "nothing")}))
    with pytest.raises(OSError, match=r"has no config\.json\."):
        build_painter(PainterModelArguments(**{**parts, missing: str(tmp_path)}))


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_processes_share_the_rows_to_validate_on(batch_size: int, trained: Path, data: DataArguments) -> None:
    """Each row once, in the same number of forwards on all of them: also if there are more processes than batches."""
    _, processor, codes = codes_of(trained, data)
    rows, forwards, sums = CaptionedRows(codes, processor), [], []

    def objective(input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        forwards[-1] += 1
        return (input_ids.double() ** 2).mean()

    def share(rank: int, processes: int) -> float:
        forwards.append(0)
        cpu = torch.device("cpu")
        found = SimpleNamespace(num_processes=processes, process_index=rank, device=cpu, reduce=lambda total, _: total)
        return validation_loss(objective, rows, found, batch_size)["validation_loss"]

    sums = [share(rank, 3) for rank in range(3)]
    assert len(set(forwards)) == 1
    assert sum(sums) == pytest.approx(share(0, 1), rel=1e-5)


def test_a_loss_beyond_all_bounds_is_a_figure(trained: Path, data: DataArguments) -> None:
    _, processor, codes = codes_of(trained, data)
    found = validation_loss(lambda *_: torch.tensor(1000.0), CaptionedRows(codes, processor), Accelerator(cpu=True))
    assert found == {"validation_loss": pytest.approx(1000), "validation_perplexity": math.inf}


def test_the_attention_asked_for_is_used(
    painter_model: PainterModelArguments,
    data: DataArguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []
    eager = modeling_pai_painter.eager_attention_forward
    monkeypatch.setattr(
        modeling_pai_painter,
        "eager_attention_forward",
        lambda *args, **options: used.append(1) or eager(*args, **options),
    )
    data = DataArguments(data.train_file, cache_dir=data.cache_dir)
    training = PainterTrainingArguments(str(tmp_path / "out"), overwrite_output_dir=True, max_train_steps=1)
    painter_model.attn_implementation = "eager"
    train_painter(painter_model, data, training)
    assert used
    for attention in ("eager", "sdpa"):
        used.clear()
        model = PainterModelArguments(model_name_or_path=str(tmp_path / "out"), attn_implementation=attention)
        train_painter(model, data, training)
        assert bool(used) is (attention == "eager")


def test_the_configuration_may_name_the_vqgan(shapes: Path, vqgan_folder: Path, data: DataArguments, tmp_path: Path):
    config(tmp_path, vq_config=VQGAN)
    model = PainterModelArguments(
        config_name=str(tmp_path), vqgan=str(vqgan_folder), tokenizer_name=str(shapes / "painter")
    )
    training = PainterTrainingArguments(output_dir=str(tmp_path / "out"), max_train_steps=1)
    train_painter(model, data, training)
    assert PaiPainterConfig.from_pretrained(tmp_path / "out").vq_config.resolution == 16


def test_dropout_can_be_set_for_a_trained_painter(trained: Path) -> None:
    painter, _ = build_painter(PainterModelArguments(model_name_or_path=str(trained), dropout=0.25))
    assert (painter.config.embd_pdrop, painter.config.resid_pdrop) == (0.25, 0.25)
    assert painter.model.embd_dropout.p == painter.model.layers[0].resid_dropout.p == 0.25
    with pytest.raises(ValueError, match="dropout"):
        PainterModelArguments(model_name_or_path=str(trained), dropout=1.0)
