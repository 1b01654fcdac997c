# SPDX-License-Identifier: Apache-2.0
"""Pulling with the real client of the Hub: what comes, what stays there, and what is said when it can't come."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hub_stand_in import Fault, HubStandIn
from transformers import AutoModel

from pai_painter.hub import pull_folder, push_folder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def pushed(hub: HubStandIn, folder: Path, token: str) -> HubStandIn:
    """With `painter/shop`, and in it files that are no part of the model."""
    push_folder(folder, "painter/shop", tag="v1.0", max_shard_size="1MB")
    hub.repositories["painter/shop"].commit("more", {"train.tsv": b"x", "run.sh": b"x", "samples/a/b.png": b"x"})
    hub.requests.clear()
    return hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_model_and_nothing_else(pushed: HubStandIn, tmp_path: Path) -> None:
    whole = pushed.repositories["painter/shop"].files("v1.0")
    assert pull_folder("painter/shop", tmp_path / "new" / "shop") == tmp_path / "new" / "shop"
    assert contents(tmp_path / "new" / "shop") == whole
    assert not list((tmp_path / "new").glob(".*"))
    AutoModel.from_pretrained(tmp_path / "new" / "shop")


def test_without_a_folder_it_is_in_the_cache_that_loading_reads(
    pushed: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pull_folder("painter/shop")
    assert contents(folder) == pushed.repositories["painter/shop"].files("v1.0")
    pushed.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    AutoModel.from_pretrained("painter/shop")
    assert pushed.requests == []


def test_a_revision(pushed: HubStandIn, folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    push_folder(folder, "painter/shop", max_shard_size="1MB")
    pull_folder("painter/shop", tmp_path / "new")
    pull_folder("painter/shop", tmp_path / "old", revision="v1.0")
    assert (tmp_path / "new" / "generation_config.json").read_text() == "{}"
    assert contents(tmp_path / "old") == pushed.repositories["painter/shop"].files("v1.0")


def test_a_pulled_folder_can_be_pushed_again(pushed: HubStandIn, tmp_path: Path) -> None:
    pull_folder("painter/shop", tmp_path / "copy")
    push_folder(tmp_path / "copy", "painter/copy", max_shard_size="1MB")
    assert pushed.repositories["painter/copy"].files() == contents(tmp_path / "copy")


def test_of_an_untouched_easynlp_folder_all_files_that_it_needs(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add("alibaba-pai/pai-painter-base-zh", GOLDEN / "easynlp_tiny")
    pull_folder("alibaba-pai/pai-painter-base-zh", tmp_path / "base")
    assert set(contents(tmp_path / "base")) == {"config.json", "pytorch_model.bin", "vocab.txt"}


def test_weights_of_another_format_beside_the_safe_ones_stay(pushed: HubStandIn, tmp_path: Path) -> None:
    pushed.repositories["painter/shop"].commit("old", {"pytorch_model.bin": b"old"})
    pull_folder("painter/shop", tmp_path / "shop")
    assert not (tmp_path / "shop" / "pytorch_model.bin").exists()


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only", "nobody there"])
def test_offline_from_the_cache(
    pushed: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    pull_folder("painter/shop")
    pushed.requests.clear()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif how == "nobody there":
        pushed.shutdown()
        pushed.server_close()
        pushed.hang_up()
    folder = pull_folder("painter/shop", tmp_path / "shop", local_files_only=how == "local_files_only")
    assert contents(folder) == pushed.repositories["painter/shop"].files("v1.0")
    assert pushed.requests == []
    assert ("looking for what was downloaded before" in caplog.text) == (how == "nobody there")
    with pytest.raises(OSError, match=r"painter/other can't be pulled.* was not downloaded completely before"):
        pull_folder("painter/other", local_files_only=how == "local_files_only")


@pytest.fixture
def stored(pushed: HubStandIn) -> str:
    """The request for a file of weights."""
    weights = pushed.repositories["painter/shop"].files()["model-00001-of-00002.safetensors"]
    return f"GET /storage/{hashlib.sha256(weights).hexdigest()}"


@pytest.mark.usefixtures("no_waiting", "small_pieces")
def test_a_connection_that_is_cut_is_taken_up_where_it_was(pushed: HubStandIn, tmp_path: Path, stored: str) -> None:
    pushed.faults = [Fault(stored, cut=True), Fault(stored, cut=True)]
    pull_folder("painter/shop", tmp_path / "shop")
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in pushed.ranges]
    assert 0 < starts[0] < starts[1]
    assert contents(tmp_path / "shop") == pushed.repositories["painter/shop"].files("v1.0")


@pytest.mark.usefixtures("no_waiting")
def test_what_fails_for_a_moment_is_tried_again(pushed: HubStandIn, tmp_path: Path, stored: str) -> None:
    pushed.faults = [Fault(part, 503) for part in ("GET /api/models/painter/shop", "/tree/", stored)]
    pull_folder("painter/shop", tmp_path / "shop")
    assert pushed.faults == []
    assert contents(tmp_path / "shop") == pushed.repositories["painter/shop"].files("v1.0")


@pytest.mark.usefixtures("no_waiting")
def test_a_pull_that_failed_fetches_only_the_rest(pushed: HubStandIn, tmp_path: Path, stored: str) -> None:
    pushed.faults = [Fault(stored, 503, times=100)]
    with pytest.raises(
        OSError, match=r"painter/shop could not be pulled: .*503.* that have arrived are kept"
    ) as caught:
        pull_folder("painter/shop", tmp_path / "shop")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shop").exists()
    pushed.faults, pushed.requests = [], []
    pull_folder("painter/shop", tmp_path / "shop")
    assert [request for request in pushed.requests if "/storage/" in request] == [stored]
    assert contents(tmp_path / "shop") == pushed.repositories["painter/shop"].files("v1.0")


def test_what_was_not_downloaded_completely_is_no_model(
    pushed: HubStandIn, tmp_path: Path, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    pushed.faults = [Fault(stored, 503, times=100)]
    with pytest.raises(OSError, match="503"):
        pull_folder("painter/shop")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="was not downloaded completely before"):
        pull_folder("painter/shop", tmp_path / "shop")
    assert not (tmp_path / "shop").exists()


def test_what_others_have_put_into_the_cache_must_be_complete(
    pushed: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        huggingface_hub.hf_hub_download("painter/shop", name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"painter/shop is incomplete: model-00002-of-00002\.safetensors is missing"):
        pull_folder("painter/shop", tmp_path / "shop")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.hf_hub_download("painter/shop", "model-00002-of-00002.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(contents(pull_folder("painter/shop", tmp_path / "shop"))) == 4


_PULL = "import sys; from pai_painter.hub import pull_folder; pull_folder('painter/shop', sys.argv[1])"


def test_a_killed_pull_leaves_no_half_model(pushed: HubStandIn, tmp_path: Path) -> None:
    # The process ends in the middle of the answer, before its file is whole.
    running: list[subprocess.Popen] = []
    pushed.faults = [Fault("GET /storage/", cut=True, before=lambda: running[0].kill())]
    running.append(subprocess.Popen([sys.executable, "-c", _PULL, str(tmp_path / "shop")], env=os.environ))
    assert running[0].wait() < 0
    assert not list(tmp_path.glob("*shop*"))
    pull_folder("painter/shop", tmp_path / "shop")
    assert contents(tmp_path / "shop") == pushed.repositories["painter/shop"].files("v1.0")


def test_the_same_again_changes_nothing(pushed: HubStandIn, tmp_path: Path) -> None:
    pull_folder("painter/shop", tmp_path / "shop")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shop").rglob("*")}
    pushed.requests.clear()
    pull_folder("painter/shop", tmp_path / "shop")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shop").rglob("*")} == before
    assert not [request for request in pushed.requests if "/storage/" in request]


def test_folders_that_hold_something(pushed: HubStandIn, tmp_path: Path) -> None:
    pull_folder("painter/shop", tmp_path / "shop")
    (tmp_path / "shop" / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="isn't empty: please name a new folder, or --force"):
        pull_folder("painter/shop", tmp_path / "shop")
    assert (tmp_path / "shop" / "config.json").read_text() == "mine"
    pull_folder("painter/shop", tmp_path / "shop", force=True)
    assert contents(tmp_path / "shop") == pushed.repositories["painter/shop"].files("v1.0")
    (tmp_path / "shop" / "train.tsv").write_text("data")
    with pytest.raises(FileExistsError, match=r"holds more than a model \(train\.tsv\)"):
        pull_folder("painter/shop", tmp_path / "shop", force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file or a link"):
        pull_folder("painter/shop", tmp_path / "file", force=True)
    shutil.rmtree(tmp_path / "shop")
    (tmp_path / "shop").mkdir()
    assert (pull_folder("painter/shop", tmp_path / "shop") / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "revision", "shown", "sentence"),
    [
        ("painter/none", "main", None, "The repository painter/none is not there, or the token may not see it"),
        ("painter/shop", "v9", None, "painter/shop has no such branch, tag or commit as v9"),
        (
            "painter/gated",
            "main",
            "hf_reader",
            r"painter/gated is gated .*please accept its conditions at http\S+gated",
        ),
        ("painter/private", "main", "hf_reader", "The repository painter/private is not there, or the token may not"),
        ("painter/shop", "main", "hf_wrong", "The Hub refuses the token"),
    ],
)
def test_what_cannot_be_pulled(
    pushed: HubStandIn, folder: Path, tmp_path: Path, name: str, revision: str, shown: str | None, sentence: str
) -> None:
    pushed.add("painter/gated", folder, gated=True)
    pushed.add("painter/private", folder, private=True)
    with pytest.raises(OSError, match=sentence) as caught:
        pull_folder(name, tmp_path / "shop", revision=revision, token=shown)
    assert "\n" not in str(caught.value)
    assert "hf_wrong" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert not (tmp_path / "shop").exists()


def test_private_and_gated_with_the_right_token(pushed: HubStandIn, folder: Path) -> None:
    pushed.add("painter/gated", folder, gated=True)
    pushed.add("painter/private", folder, private=True)
    for name in ("painter/gated", "painter/private"):
        assert (pull_folder(name, token="hf_writer") / "model.safetensors").is_file()


def test_what_is_no_model(hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("# notes")
    hub.add("painter/notes", tmp_path / "notes")
    with pytest.raises(ValueError, match=r"painter/notes holds no model: .*\(it has README\.md\)"):
        pull_folder("painter/notes", tmp_path / "out")
    with pytest.raises(ValueError, match="is no name of a repository on the Hub"):
        pull_folder("notes", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_token_does_not_go_to_the_storage(pushed: HubStandIn) -> None:
    pushed.authorized.clear()
    pull_folder("painter/shop")
    assert [request for request in pushed.requests if "/storage/" in request]
    assert not [request for request in pushed.authorized if "/storage/" in request]
