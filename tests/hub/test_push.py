# SPDX-License-Identifier: Apache-2.0
"""Pushing a folder with the real client of the Hub: what goes, what stays, and where it goes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import Fault, HubStandIn, Repository
from safetensors.torch import save_file
from transformers import AutoModel

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration
from pai_painter.hub import pull_folder, push_folder
from pai_painter.model.model_files_pai_painter import DEMO_NAME

pytestmark = pytest.mark.usefixtures("token")


def commits_of(hub: HubStandIn, name: str = "painter/shop", branch: str = "main") -> list:
    return hub.repositories[name].branches[branch][1:]


def test_one_commit_with_the_model_and_nothing_else(
    hub: HubStandIn, folder: Path, belonging: set[str], code: set[str]
) -> None:
    address = push_folder(folder, "painter/shop", commit_message="第一次")
    files = hub.repositories["painter/shop"].files()
    assert set(files) == belonging | code
    # The code is the package's, whatever the folder holds under its names; three configurations name it.
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
    assert not [request for request in hub.requests if "/commit/" in request or "PUT /lfs" in request]
    (folder / "generation_config.json").write_text("{}")
    push_folder(folder, "painter/shop")
    assert [commit.changed for commit in commits_of(hub)[1:]] == [["generation_config.json"]]


def test_what_loading_would_prefer_goes_in_the_same_commit(hub: HubStandIn, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    model = PaiPainterForImageGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    push_folder(tmp_path / "shards", "painter/shop")
    weights = AutoModel.from_pretrained("painter/shop").state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    hub.repositories["painter/shop"].commit("theirs", {"adapter_config.json": b"{}", "gallery.md": b"theirs"})
    push_folder(folder, "painter/shop")
    files = hub.repositories["painter/shop"].files()
    assert {name for name in files if "safetensors" in name} == {"model.safetensors"}
    assert "adapter_config.json" not in files
    assert files["gallery.md"] == b"theirs"
    assert len(commits_of(hub)) == 3


def test_private(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/shop", private=True)
    assert hub.repositories["painter/shop"].private
    push_folder(folder, "painter/shop", private=True)
    hub.repositories["painter/public"] = Repository(private=False)
    with pytest.raises(ValueError, match="painter/public is public, so nothing was pushed"):
        push_folder(folder, "painter/public", private=True)
    assert hub.repositories["painter/public"].files() == {}


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
    tagged = dict(repository.tags)
    (folder / "generation_config.json").write_text("{}")
    push_folder(folder, "painter/shop", tag="v1.1")
    assert len(set(repository.tags.values())) == 2
    (folder / "generation_config.json").write_text('{"top_k": 1}')
    with pytest.raises(ValueError, match=r"The tag v1\.0 names another commit, so nothing was pushed"):
        push_folder(folder, "painter/shop", tag="v1.0")
    assert len(commits_of(hub)) == 2
    with pytest.raises(OSError, match="Tag reference exists already"):  # at the commit that ours follows
        push_folder(folder, "painter/shop", tag="v1.1")
    assert repository.tags["v1.0"] == tagged["v1.0"]
    assert len(repository.tags) == 2


def test_a_pull_request_to_somebody_elses_repository(hub: HubStandIn, folder: Path) -> None:
    theirs = hub.repositories["somebody/shop"] = Repository()
    address = push_folder(folder, "somebody/shop", pull_request=True)
    assert address == f"{hub.endpoint}/somebody/shop/discussions/1"
    assert theirs.files() == {}
    assert theirs.files("refs/pr/1")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    theirs.branches["main"].append(theirs.branches["refs/pr/1"][-1])  # they take it
    assert "/tree/" in push_folder(folder, "somebody/shop", pull_request=True)
    assert set(theirs.branches) == {"main", "refs/pr/1"}


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("painter/shop", {"pull_request": True, "private": True}, "please leave `private`, `revision` and `tag` out"),
        ("painter/shop", {"pull_request": True, "revision": "x"}, "please leave `private`, `revision` and `tag` out"),
        ("painter/shop", {"pull_request": True, "tag": "v1"}, "please leave `private`, `revision` and `tag` out"),
        ("painter/shop", {"base": "painter/base"}, "is a whole model and has no base"),
        ("a/b/c", {}, "Repo id must be in the form"),
        ("画家/店", {}, "Repo id must"),
        ("../x", {}, "Repo id must"),
    ],
)
def test_options_that_cannot_be(hub: HubStandIn, folder: Path, name: str, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        push_folder(folder, name, **options)
    assert hub.requests == []


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _with(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _index(weight_map: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def _cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "There is no folder"),
        (_without("config.json"), "contains no model: it has neither config.json nor adapter_config.json"),
        (_without("model.safetensors"), "has no weights"),
        (_with("adapter_config.json", b"{}"), "holds a whole model .* and an adapter"),
        (_with("config.json", b'{"model_type": "artist"}'), "got 'artist' .*`pai-painter convert`"),
        (_with("config.json", b"{"), r"config\.json .* is damaged"),
        (_with("processor_config.json", b"\xff"), r"processor_config\.json .* is damaged"),
        (_cut_off, r"model\.safetensors are damaged or truncated"),
        (_index({"b": "model-00002-of-00002.safetensors"}), "lacks model-00002-of-00002.safetensors"),
        (_index(["a"]), r"index\.json .* is damaged"),
        (_with("README.md", "---\nlanguage: zh\n---\n画家".encode("gbk")), r"README\.md is damaged \(.*utf-8"),
        (_with("README.md", b"---\nlanguage: [\x1b[31mzh\n---\n\n# a\n"), r"README\.md is damaged \("),
        (_with("README.md", b"---\n- zh\n---\n\n# a\n"), r"README\.md is damaged \(.*should be a dict"),
    ],
)
def test_folders_that_could_not_be_loaded(
    hub: HubStandIn, folder: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        push_folder(folder, "painter/shop")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["LICENSE", "samples/step-000020.png", "samples"])
def test_links_that_leave_the_folder(hub: HubStandIn, folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name}.* is a link to a file outside the folder"):
        push_folder(folder, "painter/shop")
    assert hub.requests == []


def test_links_within_the_folder_and_of_the_hubs_cache(hub: HubStandIn, folder: Path) -> None:
    (folder / "LICENSE").rename(folder / "LICENSE.txt")
    (folder / "LICENSE").symlink_to("LICENSE.txt")
    push_folder(folder, "painter/shop")
    snapshot = pull_folder("painter/shop")
    assert (snapshot / "LICENSE").is_symlink()
    push_folder(snapshot, "painter/copy")
    assert hub.repositories["painter/copy"].files() == hub.repositories["painter/shop"].files()


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
    for base in (None, "base", str(tmp_path / "base")):
        with pytest.raises(ValueError, match=r"must be a repository on the Hub, got .*`--base OWNER/NAME`"):
            push_folder(adapter, "painter/style", base=base)
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


@pytest.mark.parametrize(("recorded", "goes"), [("painter/base", True), (DEMO_NAME, True), ("models/base/x", False)])
def test_an_adapters_recorded_base(hub: HubStandIn, adapter: Path, recorded: str, goes: bool) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": recorded, "revision": "v1"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    if not goes:
        with pytest.raises(ValueError, match="must be a repository on the Hub"):
            push_folder(adapter, "painter/style")
        return
    push_folder(adapter, "painter/style")
    assert json.loads(hub.repositories["painter/style"].files()["adapter_config.json"]) == settings
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match="has no weights"):
        push_folder(adapter, "painter/style")


def test_the_demo_model_can_be_pushed(hub: HubStandIn, tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "demo")
    push_folder(tmp_path / "demo", "painter/demo")
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repositories["painter/demo"].files())
