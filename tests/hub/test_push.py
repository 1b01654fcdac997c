# SPDX-License-Identifier: Apache-2.0
"""Pushing a folder with the real client of the Hub: what goes, what stays, and where it goes."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import Fault, HubStandIn, Repository
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from pai_painter import DEMO_MODEL
from pai_painter.hub import files_to_push, push_folder
from pai_painter.hub.remote_code import CODE_FILES

pytestmark = pytest.mark.usefixtures("token")


def commits_of(hub: HubStandIn, name: str = "painter/shop", branch: str = "main") -> list:
    return hub.repositories[name].branches[branch][1:]


def test_the_list_of_files(folder: Path, belonging: set[str]) -> None:
    names = files_to_push(folder)
    assert set(names) == belonging
    assert len(names) == len(belonging)


def test_one_commit_with_the_model_and_nothing_else(hub: HubStandIn, folder: Path, belonging: set[str]) -> None:
    address = push_folder(folder, "painter/shop", commit_message="第一次")
    files = hub.repositories["painter/shop"].files()
    assert set(files) == belonging | CODE_FILES
    # The code's files are the package's, whatever the folder holds under their names; three configurations name them.
    same = belonging - {"config.json", "processor_config.json", "tokenizer_config.json"}
    assert {name: files[name] for name in same} == {name: (folder / name).read_bytes() for name in same}
    assert files["modeling_vqgan.py"] != (folder / "modeling_vqgan.py").read_bytes()
    (commit,) = commits_of(hub)
    assert (commit.message, set(commit.changed)) == ("第一次", set(files))
    assert address == f"{hub.endpoint}/painter/shop/tree/{commit.oid}"
    assert not hub.repositories["painter/shop"].private


def test_the_same_again_is_no_commit_and_a_change_is_one_of_that_file(hub: HubStandIn, folder: Path) -> None:
    first = push_folder(folder, "painter/shop", tag="v1")
    hub.requests.clear()
    assert push_folder(folder, "painter/shop", tag="v1") == first
    assert not [request for request in hub.requests if "/commit/" in request or "/lfs" in request]
    (folder / "generation_config.json").write_text("{}")
    push_folder(folder, "painter/shop")
    assert [commit.changed for commit in commits_of(hub)[1:]] == [["generation_config.json"]]


def test_what_loading_would_prefer_goes_in_the_same_commit(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/shop", max_shard_size="1MB")
    hub.repositories["painter/shop"].commit("theirs", {"adapter_config.json": b"{}", "gallery.md": b"theirs"})
    push_folder(folder, "painter/shop")
    files = hub.repositories["painter/shop"].files()
    assert {name for name in files if "safetensors" in name} == {"model.safetensors"}
    assert "adapter_config.json" not in files
    assert files["gallery.md"] == b"theirs"
    assert len(commits_of(hub)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_weights_are_split_and_load(hub: HubStandIn, folder: Path, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    address = push_folder(folder, "painter/shop", max_shard_size="500KB")
    files = hub.repositories["painter/shop"].files()
    shards = [name for name in files if name.endswith(".safetensors")]
    assert "model.safetensors" not in files
    assert len(shards) > 1
    assert push_folder(folder, "painter/shop", max_shard_size="500KB") == address
    painter = AutoModel.from_pretrained("painter/shop", dtype=dtype)
    saved = painter.state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())


def test_private(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/shop", private=True)
    assert hub.repositories["painter/shop"].private
    push_folder(folder, "painter/shop", private=True)


def test_nothing_goes_to_a_public_repository_that_should_be_private(hub: HubStandIn, folder: Path) -> None:
    hub.repositories["painter/shop"] = Repository(private=False)
    with pytest.raises(ValueError, match="painter/shop is public already, so nothing was pushed"):
        push_folder(folder, "painter/shop", private=True)
    assert hub.repositories["painter/shop"].files() == {}
    assert hub.large_files == {}


def test_a_branch_is_made_and_pushed_to_again(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/shop", revision="tests/first")
    push_folder(folder, "painter/shop", revision="tests/first")
    assert len(commits_of(hub)) == 0
    assert len(commits_of(hub, branch="tests/first")) == 1


def test_a_name_without_owner_is_the_tokens_owners(hub: HubStandIn, folder: Path) -> None:
    assert "/painter/shop/tree/" in push_folder(folder, "shop")
    assert len(commits_of(hub)) == 1


def test_a_tag_is_never_moved(hub: HubStandIn, folder: Path) -> None:
    address = push_folder(folder, "painter/shop", tag="v1.0")
    repository = hub.repositories["painter/shop"]
    assert address.endswith(repository.tags["v1.0"])
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"The tag v1\.0 of painter/shop is at another commit .* nothing was pushed"):
        push_folder(folder, "painter/shop", tag="v1.0")
    assert len(commits_of(hub)) == 1
    push_folder(folder, "painter/shop", tag="v1.1")
    assert len(set(repository.tags.values())) == 2
    with pytest.raises(ValueError, match=r"The tag v1\.0 of painter/shop is at another commit"):
        push_folder(folder, "painter/shop", tag="v1.0")


def test_a_pull_request_to_somebody_elses_repository(hub: HubStandIn, folder: Path) -> None:
    theirs = hub.repositories["somebody/shop"] = Repository()
    address = push_folder(folder, "somebody/shop", pull_request=True)
    assert address == f"{hub.endpoint}/somebody/shop/discussions/1"
    assert theirs.files() == {}
    assert theirs.files("refs/pr/1")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert push_folder(folder, "somebody/shop", pull_request=True) == address
    (folder / "LICENSE").write_text("another")
    assert push_folder(folder, "somebody/shop", pull_request=True).endswith("/discussions/2")
    theirs.branches["main"].append(theirs.branches["refs/pr/2"][-1])  # they take it
    assert "/tree/" in push_folder(folder, "somebody/shop", pull_request=True)
    assert set(theirs.branches) == {"main", "refs/pr/1", "refs/pr/2"}


@pytest.mark.parametrize("options", [{"private": True}, {"revision": "x"}, {"tag": "v1"}])
def test_options_that_contradict_each_other(hub: HubStandIn, folder: Path, options: dict) -> None:
    with pytest.raises(ValueError, match="please leave `private`, `revision` and `tag` out"):
        push_folder(folder, "painter/shop", pull_request=True, **options)
    with pytest.raises(ValueError, match="is a whole model and has no base"):
        push_folder(folder, "painter/shop", base="painter/base")
    with pytest.raises(ValueError, match="needs the whole name"):
        push_folder(folder, "shop", pull_request=True)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "", "画家/店", "owner/a--b", "../x"])
def test_names_that_cannot_be(hub: HubStandIn, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a repository on the Hub: please give owner/name"):
        push_folder(folder, name)
    assert hub.requests == []


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model(hub: HubStandIn, folder: Path, missing: str) -> None:
    (folder / "pytorch_model.bin").unlink()
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=r"holds no model to push: .* weights as \.safetensors\.$"):
        push_folder(folder, "painter/shop")
    with pytest.raises(ValueError, match="There is no folder"):
        push_folder(folder / "nowhere", "painter/shop")
    assert hub.requests == []


def test_other_programs_folders_are_to_be_converted(hub: HubStandIn, folder: Path) -> None:
    easynlp = Path(__file__).parents[1] / "golden" / "easynlp_tiny"
    with pytest.raises(ValueError, match=r"is a checkpoint of EasyNLP: .*`pai-painter convert \S+ NEW_FOLDER`"):
        push_folder(easynlp, "painter/shop")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not pytorch_model\.bin \(`pai-painter convert"):
        push_folder(folder, "painter/shop")
    assert hub.requests == []


def test_damaged_weights_go_nowhere(hub: HubStandIn, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors are damaged or cut off"):
        push_folder(folder, "painter/shop")
    weights.rename(folder / "model-00001-of-00002.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"incomplete: model-00002-of-00002\.safetensors is missing"):
        push_folder(folder, "painter/shop")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        push_folder(folder, "painter/shop")
    assert hub.requests == []


def test_a_card_that_the_hub_refuses_goes_nowhere(hub: HubStandIn, folder: Path) -> None:
    hub.faults = [Fault("/validate-yaml", 400, "no such language")]
    with pytest.raises(ValueError, match=r"^Invalid metadata in README\.md"):
        push_folder(folder, "painter/shop")
    assert hub.repositories["painter/shop"].files() == {}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Trained on a folder of this machine."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base"), "revision": "v1"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text("---\nlanguage: zh\n---\n\n# 画家\n", encoding="utf-8")
    (folder / "train.tsv").write_text("private")
    return folder


def test_an_adapter_names_its_base_as_the_hub_does(hub: HubStandIn, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"was trained on a folder of this machine.*`--base OWNER/NAME`"):
        push_folder(adapter, "painter/style")
    with pytest.raises(ValueError, match="must be a repository of the Hub, owner/name"):
        push_folder(adapter, "painter/style", base=str(tmp_path / "base"))
    assert hub.requests == []
    push_folder(adapter, "painter/style", base="alibaba-pai/pai-painter-base-zh")
    files = hub.repositories["painter/style"].files()
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    settings = json.loads(files["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "alibaba-pai/pai-painter-base-zh"
    assert settings["revision"] is None
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    assert card.data.base_model == "alibaba-pai/pai-painter-base-zh"
    assert card.data.base_model_relation == "adapter"
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert str(tmp_path) in (adapter / "adapter_config.json").read_text()  # the folder itself stays as it is


def test_an_adapter_of_a_model_on_the_hub_goes_as_it_is(hub: HubStandIn, adapter: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "painter/base", "revision": "v1"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    push_folder(adapter, "painter/style")
    assert json.loads(hub.repositories["painter/style"].files()["adapter_config.json"]) == settings


def test_the_demo_model_can_be_pushed(hub: HubStandIn, tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "demo")
    push_folder(tmp_path / "demo", "painter/demo")
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repositories["painter/demo"].files())
