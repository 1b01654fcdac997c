# SPDX-License-Identifier: Apache-2.0
"""Pulling with the real client of the Hub: what comes, what stays there, and what is said when it can't come."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hub_stand_in import Fault, HubStandIn
from transformers import AutoModel

from pai_painter import PaiPainterForImageGeneration
from pai_painter.hub import pull_folder, push_folder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def pushed(hub: HubStandIn, folder: Path, token: str) -> HubStandIn:
    """With `painter/shop`, in two pieces, and beside it files that are no part of the model."""
    model = PaiPainterForImageGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="1MB")
    push_folder(folder, "painter/shop", tag="v1.0")
    hub.repositories["painter/shop"].commit("more", {"train.tsv": b"x", "run.sh": b"x", "data/a.json": b"x"})
    hub.requests.clear()
    return hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def whole(hub: HubStandIn) -> dict[str, bytes]:
    return hub.repositories["painter/shop"].files("v1.0")


def test_the_model_and_nothing_else(pushed: HubStandIn, tmp_path: Path) -> None:
    assert pull_folder("painter/shop", tmp_path / "new" / "shop") == tmp_path / "new" / "shop"
    assert contents(tmp_path / "new") == {f"shop/{name}": content for name, content in whole(pushed).items()}
    AutoModel.from_pretrained(tmp_path / "new" / "shop")


def test_without_a_folder_it_is_in_the_cache_that_loading_reads(
    pushed: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pull_folder("painter/shop")
    assert contents(folder) == whole(pushed)
    pushed.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    AutoModel.from_pretrained("painter/shop")
    assert pushed.requests == []


def test_a_revision(pushed: HubStandIn, folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    push_folder(folder, "painter/shop")
    pull_folder("painter/shop", tmp_path / "new")
    pull_folder("painter/shop", tmp_path / "old", revision="v1.0")
    assert (tmp_path / "new" / "generation_config.json").read_text() == "{}"
    assert contents(tmp_path / "old") == whole(pushed)


def test_a_pulled_folder_can_be_pushed_again(pushed: HubStandIn, tmp_path: Path) -> None:
    pull_folder("painter/shop", tmp_path / "copy")
    push_folder(tmp_path / "copy", "painter/copy")
    assert pushed.repositories["painter/copy"].files() == contents(tmp_path / "copy")


def test_of_an_untouched_easynlp_folder_all_files_that_it_needs(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add("alibaba-pai/pai-painter-base-zh", GOLDEN / "easynlp_tiny")
    pull_folder("alibaba-pai/pai-painter-base-zh", tmp_path / "base")
    assert set(contents(tmp_path / "base")) == {"config.json", "pytorch_model.bin", "vocab.txt"}


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "nobody there"])
def test_offline_from_the_cache(pushed: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    pull_folder("painter/shop")
    pushed.requests.clear()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        pushed.shutdown()
        pushed.server_close()
        pushed.hang_up()
    assert contents(pull_folder("painter/shop", tmp_path / "shop")) == whole(pushed)
    assert pushed.requests == []
    with pytest.raises(OSError, match="painter/other could not be pulled"):
        pull_folder("painter/other")


@pytest.fixture
def stored(pushed: HubStandIn) -> str:
    """The request for a file of weights."""
    return f"GET /storage/{hashlib.sha256(whole(pushed)['model-00001-of-00002.safetensors']).hexdigest()}"


@pytest.mark.usefixtures("no_waiting", "small_pieces")
def test_a_connection_that_is_cut_is_taken_up_where_it_was(pushed: HubStandIn, tmp_path: Path, stored: str) -> None:
    pushed.faults = [Fault(stored, cut=True), Fault(stored, cut=True)]
    pull_folder("painter/shop", tmp_path / "shop")
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in pushed.ranges]
    assert 0 < starts[0] < starts[1]
    assert contents(tmp_path / "shop") == whole(pushed)


@pytest.mark.usefixtures("no_waiting")
def test_a_pull_that_failed_is_no_model_and_the_next_one_fetches_the_rest(
    pushed: HubStandIn, tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed.faults = [Fault(stored, 503, times=100)]
    with pytest.raises(OSError, match=r"painter/shop could not be pulled .*503") as caught:
        pull_folder("painter/shop", tmp_path / "shop")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"painter/shop could not be pulled|has no weights|lacks model"):
        pull_folder("painter/shop", tmp_path / "shop")
    assert not (tmp_path / "shop").exists()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    pushed.faults, pushed.requests = [], []
    pull_folder("painter/shop", tmp_path / "shop")
    assert stored in pushed.requests
    assert contents(tmp_path / "shop") == whole(pushed)
    pushed.requests.clear()
    pull_folder("painter/shop", tmp_path / "again")
    assert not [request for request in pushed.requests if "/storage/" in request]


def test_what_others_have_put_into_the_cache_must_be_complete(
    pushed: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        huggingface_hub.hf_hub_download("painter/shop", name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"lacks model-00002-of-00002\.safetensors"):
        pull_folder("painter/shop", tmp_path / "shop")
    assert not (tmp_path / "shop").exists()


_PULL = "import sys; from pai_painter.hub import pull_folder; pull_folder('painter/shop', sys.argv[1])"
_KILL = "import os, shutil; shutil.copytree = lambda *_, **__: os.kill(os.getpid(), 9);"


@pytest.mark.parametrize("when", ["download", "copy"])
def test_a_killed_pull_leaves_no_half_model(pushed: HubStandIn, tmp_path: Path, when: str) -> None:
    running: list[subprocess.Popen] = []
    if when == "download":  # the process ends in the middle of the answer, before its file is whole
        pushed.faults = [Fault("GET /storage/", cut=True, before=lambda: running[0].kill())]
    program = _PULL if when == "download" else _KILL + _PULL
    running.append(subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "shop")], env=os.environ))
    assert running[0].wait() < 0
    assert not (tmp_path / "shop").exists()
    pull_folder("painter/shop", tmp_path / "shop")
    assert contents(tmp_path / "shop") == whole(pushed)


def test_folders_that_hold_something_are_left_alone(pushed: HubStandIn, tmp_path: Path) -> None:
    pull_folder("painter/shop", tmp_path / "shop")
    (tmp_path / "shop" / "config.json").write_text("mine")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "pictures").symlink_to(tmp_path / "shop")
    for name in ("shop", "links"):
        with pytest.raises(FileExistsError, match="exists already: please name a new folder, or an empty one"):
            pull_folder("painter/shop", tmp_path / name)
    assert (tmp_path / "shop" / "config.json").read_text() == "mine"
    with pytest.raises(FileExistsError, match="exists already"):
        pull_folder("painter/shop", tmp_path / "shop" / "config.json")


def test_an_empty_folder_and_the_current_one(
    pushed: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pull_folder("painter/shop", ".")
    assert contents(tmp_path / "here") == whole(pushed)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("name", "revision", "shown", "sentence"),
    [
        ("painter/none", "main", None, "Repository Not Found"),
        ("painter/shop", "v9", None, "Revision Not Found"),
        ("painter/gated", "main", "hf_reader", "gated"),
        ("painter/private", "main", "hf_reader", "Repository Not Found"),
        ("painter/shop", "main", "hf_wrong", r"401 .*Invalid token \[token\]"),
    ],
)
def test_what_the_hub_refuses(
    pushed: HubStandIn, folder: Path, tmp_path: Path, name: str, revision: str, shown: str | None, sentence: str
) -> None:
    pushed.add("painter/gated", folder, gated=True)
    pushed.add("painter/private", folder, private=True)
    with pytest.raises(OSError, match=f"^{name} could not be pulled .*{sentence}") as caught:
        pull_folder(name, tmp_path / "new", revision=revision, token=shown)
    assert "\n" not in str(caught.value)
    assert "hf_wrong" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    if shown == "hf_reader":
        assert (pull_folder(name, token="hf_writer") / "config.json").is_file()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"adapter_config.json": b"{}"}, r"holds a whole model \(config\.json\) and an adapter"),
        ({"model.safetensors": None, "adapter_model.safetensors": b"x"}, "has no weights"),
        ({"model.safetensors": None, "model-00001-of-00001.safetensors": b"x"}, "has no weights"),
        ({"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": [1]}'}, "is damaged"),
        ({"config.json": None}, "contains no model"),
    ],
)
def test_what_could_not_be_loaded(
    hub: HubStandIn, tiny_painter: Path, tmp_path: Path, change: dict[str, bytes | None], sentence: str
) -> None:
    hub.add("painter/tiny", tiny_painter).commit("theirs", change)
    with pytest.raises((ValueError, OSError), match=sentence):
        pull_folder("painter/tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="Repo id must"):
        pull_folder("a/b/c", tmp_path / "out")


def test_the_token_does_not_go_to_the_storage(pushed: HubStandIn) -> None:
    pushed.authorized.clear()
    pull_folder("painter/shop")
    assert [request for request in pushed.requests if "/storage/" in request]
    assert not [request for request in pushed.authorized if "/storage/" in request]
