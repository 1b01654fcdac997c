# SPDX-License-Identifier: Apache-2.0
"""`push_to_hub` of models, processors and pipelines is transformers' own."""

import pytest
import torch
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor

from pai_painter import PaiPainterForImageGeneration, PaiPainterPipeline
from pai_painter.lora import add_lora

pytestmark = pytest.mark.usefixtures("token")

NAME = "painter/shop"


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_pipeline(hub: HubStandIn, pipe: PaiPainterPipeline) -> None:
    pipe.push_to_hub(NAME, commit_message="第一次", commit_description="墨", tags=["ink"], private=True)
    repository = hub.repositories[NAME]
    assert "ink" in ModelCard(repository.files()["README.md"].decode()).data.tags
    assert len(repository.branches["main"]) == 2  # the empty first one, and all files in one
    assert repository.branches["main"][-1].message == "第一次\n\n墨"
    loaded = PaiPainterPipeline.from_pretrained(NAME)
    assert same_weights(loaded.model, pipe.model)
    assert loaded.processor(text="山水") == pipe.processor(text="山水")


def test_model_and_processor_one_after_the_other(hub: HubStandIn, pipe: PaiPainterPipeline) -> None:
    pipe.model.push_to_hub(NAME, commit_message="第一次", tags=["ink"])
    pipe.processor.push_to_hub(NAME)
    assert same_weights(AutoModel.from_pretrained(NAME), pipe.model)
    assert AutoProcessor.from_pretrained(NAME)(text="山水") == pipe.processor(text="山水")
    assert not [name for name in hub.repositories[NAME].files() if name.endswith(".py")]


def test_with_the_code(
    hub: HubStandIn, pipe: PaiPainterPipeline, code: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PaiPainterForImageGeneration, "_auto_class", None)
    PaiPainterForImageGeneration.register_for_auto_class("AutoModel")
    pipe.model.push_to_hub(NAME)
    files = {name for name in hub.repositories[NAME].files() if name.endswith(".py")}
    assert {"modeling_pai_painter.py", "modeling_vqgan.py"} <= files <= code


def test_an_adapter_alone(hub: HubStandIn, pipe: PaiPainterPipeline) -> None:
    add_lora(pipe.model, rank=2)
    pipe.push_to_hub(NAME)
    files = hub.repositories[NAME].files()
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files


def test_a_fused_adapter_goes_with_the_model(hub: HubStandIn, pipe: PaiPainterPipeline) -> None:
    before = pipe.model.model.layers[0].attn.q_proj.weight.clone()
    add_lora(pipe.model, rank=2)
    for name, weight in pipe.model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.1)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.push_to_hub(NAME)
    loaded = AutoModel.from_pretrained(NAME)
    assert same_weights(loaded, pipe.model)
    assert not torch.equal(loaded.model.layers[0].attn.q_proj.weight, before)
