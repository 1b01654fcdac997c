# SPDX-License-Identifier: Apache-2.0
"""transformers' own `Trainer`: it aligns configurations with the tokenizer, and no token may change by that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from pai_painter import PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor

CAPTIONS = ["红苹果", "一只熊猫", "绿色的汽车", "猫"]


@pytest.mark.parametrize("whole", [True, False], ids=["processor", "tokenizer"])
def test_train_evaluate_save_load_and_generate(tiny_painter: Path, tmp_path: Path, whole: bool) -> None:
    painter = PaiPainterForImageGeneration.from_pretrained(tiny_painter)
    processor = PaiPainterProcessor.from_pretrained(tiny_painter)
    captions = processor(text=CAPTIONS, return_tensors="pt")["input_ids"]
    codes = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = [{"input_ids": ids, "labels": ids} for ids in torch.cat([captions, codes], 1)]
    trainer = Trainer(
        painter,
        TrainingArguments(
            str(tmp_path / "runs"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            gradient_accumulation_steps=2, learning_rate=1e-3, disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor if whole else processor.tokenizer,
    )  # fmt: skip
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        inputs = torch.cat([captions, codes], 1)
        assert loss == pytest.approx(painter.eval()(inputs, labels=inputs).loss.item(), abs=1e-4)
    trainer.save_model(str(tmp_path / "trained"))
    processor.save_pretrained(tmp_path / "trained")
    assert painter.config.pad_token_id == processor.tokenizer.pad_token_id == 64  # what `Trainer` has done

    pipe = PaiPainterPipeline.from_pretrained(tmp_path / "trained")
    again = pipe.model
    assert again.generation_config.max_length == painter.config.max_position_embeddings
    without = PaiPainterForImageGeneration.from_pretrained(tmp_path / "trained")
    for holder in (without.config, without.generation_config):
        holder.pad_token_id = holder.bos_token_id = holder.eos_token_id = None
    begun = torch.cat([captions, torch.zeros(4, 3, dtype=torch.long)], 1)  # image token 0
    for ids in (captions, begun):
        for cache in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            wanted = without.generate(ids, do_sample=False, **cache)
            assert torch.equal(painter.generate(ids, do_sample=False, **cache), wanted)
            assert torch.equal(again.generate(ids, do_sample=False, **cache), wanted)
    assert torch.equal(
        again.generate_images(captions, seed=1).image_tokens, without.generate_images(captions, seed=1).image_tokens
    )
