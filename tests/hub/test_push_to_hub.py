# SPDX-License-Identifier: Apache-2.0
"""`push_to_hub` of models, processors and pipelines: transformers' and diffusers' options, this package's way."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import HubStandIn, Repository
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from pai_painter import PaiPainterImageProcessor, PaiPainterModel, PaiPainterPipeline, PaiPainterVQModel
from pai_painter.lora import add_lora

pytestmark = pytest.mark.usefixtures("token")

NAME = "painter/shop"
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(params=["model", "processor", "pipeline"])
def thing(request: pytest.FixtureRequest, pipe: PaiPainterPipeline) -> Any:
    return pipe if request.param == "pipeline" else getattr(pipe, request.param)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def commits_of(hub: HubStandIn, branch: str = "main") -> list:
    return hub.repositories[NAME].branches[branch][1:]


def test_a_pipeline_goes_whole_in_one_commit(hub: HubStandIn, pipe: PaiPainterPipeline, code: set[str]) -> None:
    address = pipe.push_to_hub(NAME)
    (commit,) = commits_of(hub)
    assert set(commit.changed) == MODEL | PROCESSOR | code
    assert address == f"{hub.endpoint}/{NAME}/tree/{commit.oid}"
    assert pipe.push_to_hub(NAME) == address
    assert commits_of(hub) == [commit]
    loaded = PaiPainterPipeline.from_pretrained(NAME)
    assert same_weights(loaded.model, pipe.model)
    assert loaded.processor(text="山水") == pipe.processor(text="山水")


@pytest.mark.parametrize("first", ["model", "processor"])
def test_model_and_processor_one_after_the_other(
    hub: HubStandIn, pipe: PaiPainterPipeline, code: set[str], first: str
) -> None:
    parts = {"model": MODEL, "processor": PROCESSOR}
    order = sorted(parts, key=lambda part: part != first)
    for part in order:
        getattr(pipe, part).push_to_hub(NAME)
    one, other = commits_of(hub)
    assert set(one.changed) == parts[order[0]] | code
    assert set(other.changed) == parts[order[1]]
    apart = hub.repositories[NAME].files()
    hub.repositories.clear()
    pipe.push_to_hub(NAME)
    assert hub.repositories[NAME].files() == apart


def test_a_part_leaves_the_rest_of_the_repository_as_it_is(hub: HubStandIn, pipe: PaiPainterPipeline) -> None:
    pipe.push_to_hub(NAME, max_shard_size="300KB")
    theirs = {"README.md": b"card", "samples/a.png": b"picture", "gallery.md": b"theirs"}
    hub.repositories[NAME].commit("theirs", theirs)
    before = hub.repositories[NAME].files()
    pipe.processor.image_processor.resample = 2
    pipe.processor.push_to_hub(NAME)
    after = hub.repositories[NAME].files()
    assert {name for name in after if after[name] != before.get(name)} == {"processor_config.json"}
    assert set(after) == set(before)

    pipe.model.lm_head.weight.data.neg_()
    pipe.model.push_to_hub(NAME)
    files = hub.repositories[NAME].files()
    kept = {name for name in after if files.get(name) == after[name]}
    assert kept == set(after) - {name for name in after if name.startswith("model") and "safetensors" in name}
    assert "model.safetensors" in files
    assert same_weights(AutoModel.from_pretrained(NAME), pipe.model)
    assert AutoProcessor.from_pretrained(NAME).image_processor.resample == 2


def test_options(hub: HubStandIn, thing: Any) -> None:
    thing.push_to_hub(NAME, commit_message="第一次", private=True, token="hf_writer", revision="next")
    repository = hub.repositories[NAME]
    assert repository.private
    assert [commit.message for commit in commits_of(hub, "next")] == ["第一次"]
    assert not commits_of(hub)


def tags_of(hub: HubStandIn, branch: str = "main") -> list[str]:
    return ModelCard(commits_of(hub, branch)[-1].files["README.md"].decode()).data.tags


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_description_and_tags(hub: HubStandIn, thing: Any, create_pr: bool) -> None:
    hub.repositories[NAME] = Repository()
    branch = "refs/pr/1" if create_pr else "main"
    options = {
        "commit_message": "第一次",
        "commit_description": "从头训练",
        "tags": ["水墨", "ink"],
        "create_pr": create_pr,
    }
    thing.push_to_hub(NAME, **options)
    assert commits_of(hub, branch)[-1].message == "第一次\n\n从头训练"
    assert tags_of(hub, branch) == ["水墨", "ink"]


def test_tags_join_those_of_the_card(hub: HubStandIn, thing: Any) -> None:
    hub.repositories[NAME] = Repository()
    card = "---\nlicense: mit\ntags:\n- ink\n---\n# 山水\n"
    hub.repositories[NAME].commit("theirs", {"README.md": card.encode()})
    thing.push_to_hub(NAME, tags=["ink", "shanshui"])
    pushed = ModelCard(hub.repositories[NAME].files()["README.md"].decode())
    assert pushed.data.tags == ["ink", "shanshui"]
    assert pushed.data.license == "mit"
    assert pushed.text.strip() == "# 山水"
    thing.push_to_hub(NAME, tags=["shanshui"])
    assert len(commits_of(hub)) == 2


def test_a_login_and_a_pull_request(hub: HubStandIn, thing: Any) -> None:
    hub.repositories[NAME] = Repository()
    address = thing.push_to_hub(NAME, token=True, create_pr=True)
    assert not commits_of(hub)
    (branch,) = hub.repositories[NAME].branches.keys() - {"main"}
    assert branch == "refs/pr/1"
    assert address.endswith("/discussions/1")


def test_large_weights_are_split(hub: HubStandIn, pipe: PaiPainterPipeline) -> None:
    pipe.model.push_to_hub(NAME, max_shard_size="300KB")
    files = hub.repositories[NAME].files()
    index = json.loads(files["model.safetensors.index.json"])
    shards = {name for name in files if name.endswith(".safetensors")}
    assert set(index["weight_map"].values()) == shards
    assert len(shards) > 1
    assert same_weights(AutoModel.from_pretrained(NAME), pipe.model)


def test_a_vqgan_and_its_image_processor(hub: HubStandIn, pipe: PaiPainterPipeline) -> None:
    pipe.model.vqgan.push_to_hub(NAME)
    pipe.processor.image_processor.push_to_hub(NAME)
    assert same_weights(PaiPainterVQModel.from_pretrained(NAME), pipe.model.vqgan)
    assert isinstance(AutoModel.from_pretrained(NAME), PaiPainterVQModel)
    assert PaiPainterImageProcessor.from_pretrained(NAME).size == pipe.processor.image_processor.size
    assert "modeling_pai_painter.py" not in hub.repositories[NAME].files()


@pytest.mark.parametrize(("ours", "theirs"), [("model", PreTrainedModel), ("processor", ProcessorMixin)])
def test_the_options_are_those_of_the_libraries(pipe: PaiPainterPipeline, ours: str, theirs: type) -> None:
    mine = inspect.signature(type(getattr(pipe, ours)).push_to_hub).parameters
    original = inspect.signature(inspect.unwrap(theirs.push_to_hub)).parameters
    assert set(mine) == set(original)
    assert {name for name in original if mine[name].kind != original[name].kind} == set()
    assert {name for name in original if mine[name].default != original[name].default} <= {"max_shard_size"}


def with_adapter(pipe: PaiPainterPipeline) -> PaiPainterPipeline:
    add_lora(pipe.model, rank=2)
    return pipe


@pytest.mark.parametrize(
    ("push", "message"),
    [
        (lambda pipe: pipe.push_to_hub(NAME, variant="fp16"), "unexpected keyword argument 'variant'"),
        (lambda pipe: pipe.push_to_hub(NAME, token=False), "needs a token, got False: please leave `token` out"),
        (lambda pipe: pipe.push_to_hub("a//b"), "Repo id must"),
        (lambda pipe: pipe.push_to_hub(NAME, create_pr=True, private=True), "please leave `private`"),
        (lambda pipe: pipe.save_pretrained("out", push_to_hub=True), "call the pipeline's `push_to_hub`"),
        (lambda pipe: pipe.model.push_to_hub(NAME, tags="a"), "`tags` must be a list of words for the card, got 'a'"),
        (lambda pipe: pipe.processor.push_to_hub(NAME, tags=[""]), "`tags` must be a list of words"),
        (lambda pipe: with_adapter(pipe).push_to_hub(NAME), "The model has an adapter: .*`pai-painter merge`"),
        (
            lambda pipe: with_adapter(pipe).model.push_to_hub(NAME),
            "The model has an adapter: .*`pai-painter push",
        ),
        (lambda pipe: PaiPainterModel(pipe.model.config).push_to_hub(NAME), "part of a painter: please push the whole"),
    ],
)
def test_what_is_not_supported_is_refused_before_anything_is_sent(
    hub: HubStandIn, pipe: PaiPainterPipeline, push: Callable[[PaiPainterPipeline], Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as error:
        push(pipe)
    assert not hub.requests
    assert "\n" not in str(error.value)


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


def test_a_failure_is_one_sentence_that_names_no_folder_of_ours(
    hub: HubStandIn, thing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match="You don't have the rights to write to painter/shop") as error:
        thing.push_to_hub(NAME, token="hf_reader")
    assert str(tmp_path) not in str(error.value)
    assert "hf_reader" not in str(error.value)
    assert not list(tmp_path.glob("pai-painter-push-*"))
