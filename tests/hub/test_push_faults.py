# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between this machine and the Hub: one sentence, nothing overwritten, and the same again goes on."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from hub_stand_in import Fault, HubStandIn, Repository

from pai_painter.hub import pull_folder, push_folder
from pai_painter.training.arguments import PainterModelArguments, PainterTrainingArguments
from pai_painter.training.publishing import check_push

pytestmark = pytest.mark.usefixtures("token", "no_waiting")

TOKEN = "hf_writer"


def check_sentence(error: BaseException, token: str = TOKEN) -> None:
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert token not in repr(error)
    assert error.__cause__ is None
    assert error.__suppress_context__  # a traceback doesn't print the client's request either


@pytest.mark.parametrize(
    ("part", "fault", "sentence"),
    [
        ("PUT /lfs/", {"status": 503}, "503"),
        ("PUT /lfs/", {"status": 400}, "Bad request"),
        ("PUT /lfs/", {"cut": True}, "closed connection"),
        ("/commit/", {"status": 412}, "412 .*out of order"),
        ("/commit/", {"status": 500}, "500 .*out of order"),
        ("/commit/", {"cut": True}, "closed connection"),
        ("/repos/create", {"status": 503}, "503 .*out of order"),
        ("/preupload/", {"status": 404}, "404"),
    ],
)
def test_what_breaks_off_goes_on_the_next_time(
    hub: HubStandIn, folder: Path, part: str, fault: dict, sentence: str
) -> None:
    hub.faults = [Fault(part, message=f"out of order: {TOKEN}\n\x1b[31m", times=100, **fault)]
    with pytest.raises(OSError, match=f"^painter/shop could not be pushed .*{sentence}") as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    sent = bool(hub.large_files)
    hub.faults, hub.requests = [], []
    push_folder(folder, "painter/shop")
    assert sent != bool([request for request in hub.requests if request.startswith("PUT /lfs/")])
    (commit,) = hub.repositories["painter/shop"].branches["main"][1:]
    assert commit.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["README.md", "gallery.md"])
def test_somebody_elses_commit_meanwhile_is_not_overwritten(hub: HubStandIn, folder: Path, name: str) -> None:
    repository = hub.repositories["painter/shop"] = Repository()
    hub.faults = [Fault("/commit/", before=lambda: repository.commit("theirs", {name: b"theirs"}))]
    with pytest.raises(OSError, match=r"412 .*A commit has happened since\. Please refresh and try again") as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    assert repository.files() == {name: b"theirs"}


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ("hf_wrong", r"^painter/shop could not be pushed .*401 .*Invalid token \[token\]"),
        (" hf_wrong\n", r"401 .*Invalid token \[token\]"),
        ("hf_reader", "403 .*You don't have the rights to write to painter/shop"),
    ],
)
def test_a_wrong_token(hub: HubStandIn, folder: Path, token: str, sentence: str) -> None:
    with pytest.raises(OSError, match=sentence) as caught:
        push_folder(folder, "painter/shop", token=token)
    check_sentence(caught.value, token.strip())
    assert hub.repositories == {}


@pytest.mark.parametrize("token", ["hf_wri ter", "hf_wri\nter", "hf_画"])
def test_a_token_that_can_be_none(hub: HubStandIn, folder: Path, token: str) -> None:
    with pytest.raises(ValueError, match="contains a space or an invalid character") as caught:
        push_folder(folder, "painter/shop", token=token)
    assert token not in str(caught.value)
    assert hub.requests == []


def test_no_token(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="needs a token: please log in with `hf auth login`"):
        push_folder(folder, "painter/shop")
    assert hub.requests == []


def test_a_pull_request_to_what_is_not_there(hub: HubStandIn, folder: Path) -> None:
    with pytest.raises(OSError, match=r"somebody/shop could not be pushed .*Repository Not Found"):
        push_folder(folder, "somebody/shop", pull_request=True)
    assert hub.repositories == {}


def test_offline_mode(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"could not be pushed .*HF_HUB_OFFLINE") as caught:
        push_folder(folder, "painter/shop")
    check_sentence(caught.value)
    assert hub.requests == []


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
def page() -> Iterator[str]:
    """A server that shows a page to everybody."""
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        huggingface_hub.close_session()  # it keeps its connection, which the server waits for
        server.shutdown()


def test_addresses_that_are_no_hub(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, sentence in (
        (page, "Expecting value"),
        ("hf-mirror.com", "'http://' or 'https://' protocol"),
        ("http://127.0.0.1:9", "refused"),
    ):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        with pytest.raises(OSError, match=rf"^painter/shop could not be pushed \({address}\): .*{sentence}") as caught:
            push_folder(folder, "painter/shop")
        check_sentence(caught.value)
        with pytest.raises(OSError, match=rf"^painter/shop could not be pulled \({address}\): .*{sentence}") as caught:
            pull_folder("painter/shop")
        check_sentence(caught.value)


@pytest.mark.parametrize(
    ("base", "name", "sentence"),
    [
        ("base", "painter/style", "`hub_base_model` .* must be owner/name, got 'base'"),
        ("painter/base", "a/b/c", "Repo id must be in the form"),
    ],
)
def test_what_training_would_find_out_too_late(tmp_path: Path, base: str, name: str, sentence: str) -> None:
    training = PainterTrainingArguments(
        output_dir=str(tmp_path), push_to_hub=True, hub_model_id=name, hub_base_model=base
    )
    with pytest.raises(ValueError, match=sentence):
        check_push(PainterModelArguments(model_name_or_path=str(tmp_path), lora_rank=2), training)


# Everything that the clients can be made to say.
DEBUG = {"HF_HUB_VERBOSITY": "debug", "TRANSFORMERS_VERBOSITY": "debug", "HF_DEBUG": "1", "OMP_NUM_THREADS": "1"}
_COMMAND = "import logging; logging.basicConfig(level=logging.DEBUG); from pai_painter.cli import main; main()"


@pytest.mark.parametrize("status", [None, 403])
def test_the_token_is_in_no_log_error_or_pushed_file(hub: HubStandIn, folder: Path, status: int | None) -> None:
    if status is not None:  # the stand-in, unlike the Hub, quotes it
        hub.faults = [Fault("/commit/", status, f"not with {TOKEN}", times=9)]
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, "push", str(folder), "painter/shop", "--verbose", "--tag", "v1"],
        env={**os.environ, **DEBUG, "HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if status is None else 2), done.stderr
    assert "DEBUG" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    files = hub.repositories["painter/shop"].files()
    assert bool(files) == (status is None)
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
