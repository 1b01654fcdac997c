# SPDX-License-Identifier: Apache-2.0
"""What a push refuses before anything is made on the Hub, and what it doesn't take for a reason to refuse."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_stand_in import HubStandIn
from safetensors.torch import save_file

from pai_painter.hub import pull_folder, push_folder
from pai_painter.hub.folder import DEMO_NAME
from pai_painter.painter_folder import find_file
from pai_painter.training.arguments import PainterModelArguments, PainterTrainingArguments
from pai_painter.training.publishing import check_push

pytestmark = pytest.mark.usefixtures("token")


def test_a_tag_stays_good_when_somebody_adds_another_file(hub: HubStandIn, folder: Path) -> None:
    push_folder(folder, "painter/shop", tag="v1")
    repository = hub.repositories["painter/shop"]
    tagged = repository.tags["v1"]
    theirs = repository.commit("theirs", {"gallery.md": b"theirs"})
    assert push_folder(folder, "painter/shop", tag="v1").endswith(theirs.oid)
    assert repository.tags == {"v1": tagged}


def _two_configs(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _no_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")


def _adapters_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def _index(weight_map: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def _card(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "README.md").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_two_configs, r"holds a whole model \(config\.json\) and an adapter"),
        (_no_index, "holds no model to push"),
        (_adapters_weights, "holds no model to push"),
        (_index({"a": "part.safetensors"}), r"incomplete: part\.safetensors isn't called as weights are"),
        (_index(["a"]), r"model\.safetensors\.index\.json is damaged: its weight_map"),
        (_index({"a": 1}), r"model\.safetensors\.index\.json is damaged: its weight_map"),
        (_index({}), r"model\.safetensors\.index\.json is damaged: its weight_map"),
        (_card("---\nlanguage: zh\n---\n画家".encode("gbk")), r"The card \S+README\.md is damaged \(.*utf-8"),
        (_card(b"---\nlanguage: [zh\n---\n\n# a\n"), r"The card \S+README\.md is damaged \("),
        (_card(b"---\n- zh\n---\n\n# a\n"), r"The card \S+README\.md is damaged \(.*should be a dict"),
    ],
)
def test_folders_that_could_not_be_loaded(
    hub: HubStandIn, folder: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        push_folder(folder, "painter/shop")
    assert "\n" not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "v 1", "a..b", "v1\n", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", "a\\b"])
@pytest.mark.parametrize("option", ["tag", "revision"])
def test_names_that_git_does_not_take(hub: HubStandIn, folder: Path, option: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"^The {option} can't be called"):
        push_folder(folder, "painter/shop", **{option: name})  # type: ignore[arg-type]
    assert hub.requests == []


@pytest.mark.parametrize(("recorded", "goes"), [("base", False), ("models/base/x", False), (DEMO_NAME, True)])
def test_an_adapters_recorded_base(hub: HubStandIn, tmp_path: Path, recorded: str, goes: bool) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": recorded}))
    save_file({"a": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    if goes:
        push_folder(adapter, "painter/style")
        return
    with pytest.raises(ValueError, match="was trained on a folder of this machine"):
        push_folder(adapter, "painter/style")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hub_base_model": "base"}, "`hub_base_model` is for adapters .*, and must be owner/name, got 'base'"),
        ({"hub_base_model": "painter/base", "hub_tag": "v 1"}, "`hub_tag` can't be 'v 1'"),
        ({"hub_base_model": "painter/base", "hub_tag": ""}, "`hub_tag` can't be ''"),
    ],
)
def test_what_training_would_find_out_too_late(tmp_path: Path, options: dict, sentence: str) -> None:
    training = PainterTrainingArguments(
        output_dir=str(tmp_path), push_to_hub=True, hub_model_id="painter/style", **options
    )
    with pytest.raises(ValueError, match=sentence):
        check_push(PainterModelArguments(model_name_or_path=str(tmp_path), lora_rank=2), training)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html>Welcome</html>"
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that shows a page to everybody."""
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        yield address
        huggingface_hub.close_session()  # it keeps its connection, which the server waits for
        server.shutdown()


def test_an_address_that_is_no_hub(page: str, folder: Path) -> None:
    sentence = f"{page} doesn't answer as the Hub does \\(HF_ENDPOINT\\)"
    with pytest.raises(OSError, match=f"^painter/shop could not be pushed: {sentence}"):
        push_folder(folder, "painter/shop")
    with pytest.raises(OSError, match=f"^painter/shop could not be pulled: {sentence}"):
        pull_folder("painter/shop")


def test_an_address_without_a_protocol(folder: Path, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "hf-mirror.com")
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "hf-mirror.com/{repo_id}/resolve/{revision}/{filename}",
    )
    with pytest.raises(OSError, match="can't be pushed: HF_ENDPOINT must begin with https://, got hf-mirror"):
        push_folder(folder, "painter/shop")
    with pytest.raises(OSError, match="can't be pulled: HF_ENDPOINT must begin with https://, got hf-mirror"):
        pull_folder("painter/shop")
    assert no_waiting == []
    with pytest.raises(OSError, match=r"and the Hub does not give it either: the Hub \(hf-mirror"):
        find_file("painter/shop", "config.json")
