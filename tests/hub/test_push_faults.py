# SPDX-License-Identifier: Apache-2.0
"""What goes wrong during a push: mended where that is possible, and said in one sentence where it isn't."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
from hub_stand_in import Fault, HubStandIn, Repository

from pai_painter.hub import push_folder

pytestmark = pytest.mark.usefixtures("token", "no_waiting")


def check_sentence(error: BaseException, token: str = "hf_writer") -> None:
    assert "\n" not in str(error)
    assert token not in repr(error)
    assert error.__cause__ is None
    assert error.__suppress_context__  # a traceback doesn't print the client's request either


def check_one_whole_commit(hub: HubStandIn, folder: Path, name: str = "painter/shop") -> None:
    (commit,) = hub.repositories[name].branches["main"][1:]
    assert commit.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "part",
    [
        *("POST /api/repos/create", "GET /api/models/painter/shop", "/tree/", "/branch/", "/preupload/"),
        *("/objects/batch", "PUT /lfs/", "POST /lfs/verify", "/commit/", "/refs", "/tag/"),
    ],
)
@pytest.mark.parametrize("way", [{"status": 503}, {"status": 503, "late": True}, {"cut": True}])
def test_what_fails_for_a_moment_is_tried_again(hub: HubStandIn, folder: Path, part: str, way: dict) -> None:
    branch = "next" if part == "/branch/" else None
    hub.faults = [Fault(part, **way)]
    push_folder(folder, "painter/shop", revision=branch, tag="v1")
    assert hub.faults == []
    commits = hub.repositories["painter/shop"].branches[branch or "main"]
    assert len(commits) == 2
    assert commits[1].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.repositories["painter/shop"].tags == {"v1": commits[1].oid}


@pytest.mark.parametrize("way", [{"status": 503}, {"status": 503, "late": True}, {"cut": True}])
def test_a_pull_request_is_opened_once(hub: HubStandIn, folder: Path, way: dict) -> None:
    hub.repositories["somebody/shop"] = Repository()
    hub.faults = [Fault("/commit/", **way)]
    assert push_folder(folder, "somebody/shop", pull_request=True).endswith("/discussions/1")
    assert set(hub.repositories["somebody/shop"].branches) == {"main", "refs/pr/1"}


def test_an_upload_that_broke_off_goes_on_the_next_time(hub: HubStandIn, folder: Path) -> None:
    hub.faults = [Fault("PUT /lfs/", 503, times=100)]
    with pytest.raises(
        OSError, match=r"the Hub answered 503 \(out of order\); \S+ is complete and can be pushed again"
    ):
        push_folder(folder, "painter/shop")
    assert hub.repositories["painter/shop"].files() == {}
    hub.faults = [Fault("/commit/", 500, times=100)]
    with pytest.raises(OSError, match="the Hub answered 500"):
        push_folder(folder, "painter/shop")
    hub.faults, hub.requests = [], []
    push_folder(folder, "painter/shop")
    assert not [request for request in hub.requests if request.startswith("PUT /lfs/")]
    check_one_whole_commit(hub, folder)


@pytest.mark.parametrize(
    ("part", "status", "sentence"),
    [
        ("/commit/", 412, "Somebody else changed painter/shop meanwhile"),
        ("/commit/", 500, r"could not be pushed: the Hub answered 500 \(out of order"),
        ("PUT /lfs/", 400, r"could not be pushed: the Hub answered 400 \(out of order"),
        ("/repos/create", 503, r"could not be pushed: the Hub answered 503 \(out of order"),
        ("/preupload/", 404, r"could not be pushed: the Hub answered 404 \(out of order"),
    ],
)
def test_what_stays_broken(hub: HubStandIn, folder: Path, part: str, status: int, sentence: str) -> None:
    hub.faults = [Fault(part, status, "out of order: hf_writer", times=100)]
    with pytest.raises(OSError, match=sentence) as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    hub.faults = []
    push_folder(folder, "painter/shop")
    check_one_whole_commit(hub, folder)


def test_somebody_elses_commit_to_other_files_stays_below_ours(hub: HubStandIn, folder: Path) -> None:
    repository = hub.repositories["painter/shop"] = Repository()
    hub.faults = [Fault("/commit/", before=lambda: repository.commit("theirs", {"gallery.md": b"theirs"}))]
    push_folder(folder, "painter/shop")
    (_, theirs, ours) = repository.branches["main"]
    assert theirs.message == "theirs"
    assert ours.files["gallery.md"] == b"theirs"
    assert ours.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["README.md", "model-00001-of-00002.safetensors"])
def test_somebody_elses_commit_to_our_files_is_not_overwritten(hub: HubStandIn, folder: Path, name: str) -> None:
    repository = hub.repositories["painter/shop"] = Repository()
    hub.faults = [Fault("/commit/", before=lambda: repository.commit("theirs", {name: b"theirs"}))]
    with pytest.raises(ValueError, match=f"Somebody else changed {name} in painter/shop during the push") as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    assert repository.files() == {name: b"theirs"}


def test_somebody_elses_same_commit_is_enough(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/first")
    files = hub.repositories["painter/first"].files()
    repository = hub.repositories["painter/shop"] = Repository()
    hub.faults = [Fault("/commit/", before=lambda: repository.commit("theirs", dict(files)))]
    assert push_folder(folder, "painter/shop").endswith(repository.branches["main"][-1].oid)
    assert [commit.message for commit in repository.branches["main"]] == ["initial", "theirs"]


@pytest.mark.parametrize("token", ["hf_wrong", " hf_wrong\n"])
def test_a_wrong_token(hub: HubStandIn, folder: Path, token: str) -> None:
    with pytest.raises(OSError, match=r"^The Hub refuses the token \(401, .*Invalid token \[token\]") as caught:
        push_folder(folder, "painter/shop", token=token)
    check_sentence(caught.value, "hf_wrong")
    assert hub.repositories == {}


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


def test_a_pull_request_to_what_is_not_there(hub: HubStandIn, folder: Path) -> None:
    with pytest.raises(OSError, match=r"^The repository somebody/shop is not there, or the token may not see it"):
        push_folder(folder, "somebody/shop", pull_request=True)
    assert hub.repositories == {}


def test_no_network(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.MonkeyPatch.context() as patch:
            address = f"http://127.0.0.1:{free.getsockname()[1]}"
            patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
            with pytest.raises(OSError, match="can't be reached or broke off") as caught:
                push_folder(folder, "painter/shop")
    check_sentence(caught.value)


def test_offline_mode(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="painter/shop can't be pushed while HF_HUB_OFFLINE is set") as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    assert hub.requests == []
