# SPDX-License-Identifier: Apache-2.0
"""Pushing a folder with the real client of the Hub: what goes, what stays, and what is said when it can't."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_stand_in import HubStandIn, Repository, running_hub

from pai_painter.hub import files_to_push, push_folder

MODEL = {
    *("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.txt", "README.md", "loss.png", "training_summary.json", "LICENSE"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    *("samples/step-000010.png", "samples/step-000020.png"),
}
PRIVATE = {
    *("checkpoint-10/model.safetensors", "checkpoint-10/optimizer.bin", ".checkpoint-20.partial/model.safetensors"),
    *("rejected_rows.jsonl", "metrics.jsonl", "train.tsv", "cache/codes.arrow", "samples/notes.txt", "samples/a/b.png"),
    *("optimizer.safetensors", "model.safetensors.tmp", ".model-x/model.safetensors", "pytorch_model.bin", ".env"),
    *("config.json.bak", "settings.yaml", "token", "pai-painter/events.out.tfevents"),
}


@pytest.fixture(autouse=True)
def only_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"a test wanted to reach {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with running_hub() as hub:
        # What HF_ENDPOINT and HF_HUB_DISABLE_XET, read when the client is imported, would set.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in MODEL | PRIVATE:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content of {name}".encode())
    (tmp_path / "out" / "README.md").write_text("---\nlanguage: zh\n---\n\n# 画家\n", encoding="utf-8")
    return tmp_path / "out"


def test_the_list_of_files(folder: Path) -> None:
    names = files_to_push(folder)
    assert set(names) == MODEL
    assert len(names) == len(MODEL)


def test_one_commit_with_the_model_and_nothing_else(hub: HubStandIn, folder: Path) -> None:
    address = push_folder(folder, "painter/shop", commit_message="第一次")
    repository = hub.repositories["painter/shop"]
    assert repository.files() == {name: (folder / name).read_bytes() for name in MODEL}
    (_, commit) = repository.branches["main"]
    assert (commit.message, set(commit.changed)) == ("第一次", MODEL)
    assert address == f"{hub.endpoint}/painter/shop/tree/{commit.oid}"
    assert not repository.private


def test_an_adapter_goes_as_an_adapter(hub: HubStandIn, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md", "train.tsv"):
        (tmp_path / name).write_text("---\nlanguage: zh\n---\n")
    push_folder(tmp_path, "painter/adapter")
    assert set(hub.repositories["painter/adapter"].files()) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }


def test_the_same_again_is_no_commit_and_a_change_is_one_of_that_file(hub: HubStandIn, folder: Path) -> None:
    first = push_folder(folder, "painter/shop")
    assert push_folder(folder, "painter/shop") == first
    commits = hub.repositories["painter/shop"].branches["main"]
    assert len(commits) == 2
    (folder / "config.json").write_text("{}")
    push_folder(folder, "painter/shop")
    assert [commit.changed for commit in commits[2:]] == [["config.json"]]


def test_weights_that_loading_would_prefer_go_in_the_same_commit(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/shop")
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "model.safetensors").write_text("whole")
    push_folder(folder, "painter/shop")
    files = hub.repositories["painter/shop"].files()
    assert {name for name in files if "safetensors" in name} == {"model.safetensors"}
    assert len(hub.repositories["painter/shop"].branches["main"]) == 3


def test_files_that_others_put_there_stay(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/shop")
    hub.repositories["painter/shop"].files()["gallery.md"] = b"theirs"
    push_folder(folder, "painter/shop")
    assert hub.repositories["painter/shop"].files()["gallery.md"] == b"theirs"


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
    branches = hub.repositories["painter/shop"].branches
    assert set(branches["tests/first"][-1].files) == MODEL
    assert [len(commits) for commits in branches.values()] == [1, 2]


def test_a_name_without_owner_is_the_tokens_owners(hub: HubStandIn, folder: Path) -> None:
    assert "/painter/shop/tree/" in push_folder(folder, "shop")
    assert set(hub.repositories["painter/shop"].files()) == MODEL


@pytest.mark.parametrize("token", ["hf_wrong", " hf_wrong\n"])
def test_a_wrong_token(hub: HubStandIn, folder: Path, token: str) -> None:
    with pytest.raises(OSError, match=r"^The Hub refuses the token \(401, .*Invalid token \[token\]") as caught:
        push_folder(folder, "painter/shop", token=token)
    check_sentence(caught.value, "hf_wrong")
    assert hub.repositories == {}


def check_sentence(error: BaseException, token: str = "hf_writer") -> None:
    assert "\n" not in str(error)
    assert token not in repr(error)
    assert error.__cause__ is None
    assert error.__suppress_context__  # a traceback doesn't print the client's request either


def test_a_token_that_may_not_write(hub: HubStandIn, folder: Path) -> None:
    with pytest.raises(OSError, match=r"^The token may not write to painter/shop \(403, .*is complete and can be"):
        push_folder(folder, "painter/shop", token="hf_reader")


def test_no_token(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="needs a token: please log in with `hf auth login`"):
        push_folder(folder, "painter/shop")
    assert hub.requests == []


@pytest.mark.parametrize("token", ["hf_wri ter", "hf_wri\nter", "hf_画"])
def test_a_token_that_can_be_none(hub: HubStandIn, folder: Path, token: str) -> None:
    with pytest.raises(ValueError, match="holds a blank or a letter that no token has") as caught:
        push_folder(folder, "painter/shop", token=token)
    assert token not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "", "画家/店", "owner/a--b", "../x"])
def test_names_that_cannot_be(hub: HubStandIn, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a repository on the Hub: please give owner/name"):
        push_folder(folder, name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/commit/", 412, "Somebody else changed painter/shop meanwhile"),
        ("/commit/", 500, r"could not be pushed: the Hub answered 500 \(out of order"),
        ("/lfs/", 400, r"could not be pushed: the Hub answered 400 \(out of order"),
        ("/repos/create", 503, r"could not be pushed: the Hub answered 503 \(out of order"),
        ("/preupload/", 404, r"could not be pushed: the Hub answered 404 \(out of order"),
    ],
)
def test_faults_of_the_hub(hub: HubStandIn, folder: Path, path: str, status: int, sentence: str) -> None:
    hub.faults = [(path, status, "out of order: hf_writer")]
    with pytest.raises(OSError, match=sentence) as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    hub.faults = []
    push_folder(folder, "painter/shop")
    assert len(hub.repositories["painter/shop"].branches["main"]) == 2


def test_no_network(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(OSError, match="can't be reached or broke off") as caught:
            push_folder(folder, "painter/shop")
    check_sentence(caught.value)


def test_offline_mode(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="painter/shop can't be pushed while HF_HUB_OFFLINE is set") as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    assert hub.requests == []


def test_a_card_that_the_hub_refuses_goes_nowhere(hub: HubStandIn, folder: Path) -> None:
    hub.faults = [("/validate-yaml", 400, "no such language")]
    with pytest.raises(ValueError, match=r"^Invalid metadata in README\.md") as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    assert hub.repositories["painter/shop"].files() == {}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model(hub: HubStandIn, tmp_path: Path, missing: str) -> None:
    for name in {"config.json", "model.safetensors", "README.md"} - {missing}:
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match="holds no model to push"):
        push_folder(tmp_path, "painter/shop")
    with pytest.raises(ValueError, match="There is no folder"):
        push_folder(tmp_path / "nowhere", "painter/shop")
    assert hub.requests == []
