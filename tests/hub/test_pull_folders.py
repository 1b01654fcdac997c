# SPDX-License-Identifier: Apache-2.0
"""What a pull does with the folder that it is to fill, and which weights it takes."""

from pathlib import Path

import pytest
from hub_stand_in import HubStandIn

from pai_painter.hub import pull_folder


@pytest.fixture
def shop(hub: HubStandIn, tiny_painter: Path) -> HubStandIn:
    hub.add("painter/shop", tiny_painter)
    return hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt_rename(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    rename = Path.rename

    def stopped(path: Path, to: Path) -> Path:
        if path.name == which and path.is_relative_to(to.parent):
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", stopped)


def test_ctrl_c_leaves_the_old_model(shop: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "config.json").write_text("mine")
    interrupt_rename(monkeypatch, "whole")
    with pytest.raises(KeyboardInterrupt):
        pull_folder("painter/shop", tmp_path / "shop", force=True)
    assert contents(tmp_path) == {"shop/config.json": b"mine"}


def test_an_empty_folder_stays_the_same_one(shop: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    interrupt_rename(monkeypatch, "config.json")
    with pytest.raises(KeyboardInterrupt):
        pull_folder("painter/shop", ".")
    assert list(here.iterdir()) == []
    inode = here.stat().st_ino
    pull_folder("painter/shop", ".")
    assert here.stat().st_ino == inode
    assert contents(Path()) == shop.repositories["painter/shop"].files()
    Path("config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="is the current folder, which can't be replaced"):
        pull_folder("painter/shop", ".", force=True)
    assert Path("config.json").read_text() == "mine"


def test_a_link_that_leads_nowhere_is_not_the_same(shop: HubStandIn, tmp_path: Path) -> None:
    pull_folder("painter/shop", tmp_path / "shop")
    (tmp_path / "shop" / "config.json").unlink()
    (tmp_path / "shop" / "config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="isn't empty"):
        pull_folder("painter/shop", tmp_path / "shop")


def test_a_link_to_a_folder_is_not_deleted(shop: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "pictures").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match=r"holds more than a model \(pictures\)"):
        pull_folder("painter/shop", tmp_path / "shop", force=True)
    assert (tmp_path / "shop" / "pictures").is_symlink()


def test_an_adapters_weights_do_not_stand_for_the_models(shop: HubStandIn, tmp_path: Path) -> None:
    weights = {"pytorch_model.bin": b"old", "model.safetensors": None, "adapter_model.safetensors": b"x"}
    shop.repositories["painter/shop"].commit("old", weights)
    pull_folder("painter/shop", tmp_path / "shop")
    assert (tmp_path / "shop" / "pytorch_model.bin").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"adapter_config.json": b"{}"}, r"holds a whole model \(config\.json\) and an adapter"),
        ({"model.safetensors": None, "adapter_model.safetensors": b"x"}, "holds no model"),
        ({"model.safetensors": None, "model-00001-of-00001.safetensors": b"x"}, "holds no model"),
        ({"model.safetensors.index.json": b'{"weight_map": [1]}'}, "weight_map must name the file of each weight"),
    ],
)
def test_what_could_not_be_loaded(
    shop: HubStandIn, tmp_path: Path, change: dict[str, bytes | None], sentence: str
) -> None:
    shop.repositories["painter/shop"].commit("theirs", change)
    with pytest.raises(ValueError, match=sentence):
        pull_folder("painter/shop", tmp_path / "shop")
    assert not (tmp_path / "shop").exists()
