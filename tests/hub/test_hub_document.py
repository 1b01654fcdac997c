# SPDX-License-Identifier: Apache-2.0
"""docs/hub.md, command by command and block by block, with the stand-in for the Hub and tiny models."""

import base64
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from accelerate_state import fresh_accelerate
from hub_stand_in import HubStandIn
from hub_stand_in_requests import TOKENS
from PIL import Image
from test_documents import BLOCK, ROOT
from typer.testing import CliRunner

from pai_painter.cli import app
from pai_painter.hub import push_folder

__all__ = ["fresh_accelerate"]  # a fixture of each test here

DOCUMENT = ROOT / "docs" / "hub.md"
GOLDEN = ROOT / "tests" / "golden" / "easynlp_tiny"
# What makes a command short, or takes the place of the published VQGAN.
BESIDES = {
    "train": "--max_train_steps 2 --num_samples 1 --per_device_train_batch_size 2",
    "convert": f"--vq-config {GOLDEN / 'dims.json'}",
}


def steps() -> Iterator[tuple[str, str]]:
    """Each command, and each block of Python, in the document's order."""
    for block in BLOCK.finditer(DOCUMENT.read_text(encoding="utf-8")):
        if block["note"]:
            continue
        if block["language"] == "python":
            yield "python", block["body"]
            continue
        assert block["language"] == "console"
        for line in block["body"].splitlines():
            assert line.startswith("$ ")
            yield "command", line.removeprefix("$ ")


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Gives what the command says."""
    words = shlex.split(command)
    with monkeypatch.context() as patch:
        if words[0] == "HF_HUB_OFFLINE=1":
            patch.setattr(huggingface_hub.constants, words.pop(0).partition("=")[0], True)
        assert words[0] == "pai-painter"
        result = CliRunner().invoke(app, [*words[1:], *BESIDES.get(words[1], "").split()])
    assert result.exit_code == 0, f"{command}\n{result.output}{result.exception!r}"
    return result.output


def table_of_pictures(path: Path) -> None:
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white")):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(file, format="PNG")
        rows.append(f"{path.stem}-{number}\t宽松T恤\t{base64.b64encode(file.getvalue()).decode()}\n")
    path.write_text("".join(rows), encoding="utf-8")


@pytest.fixture
def shop(hub: HubStandIn, tiny_painter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    """What the document's reader finds: two published models, a colleague's old one, pictures, and the login."""
    huggingface_hub.close_session()  # a connection that is kept open would lead to the Hub of the test before
    for owner in ("acme", "your-name"):
        monkeypatch.setitem(TOKENS, f"hf_{owner}", owner)
    push_folder(tiny_painter, "alibaba-pai/pai-painter-base-zh", token="hf_alibaba")
    published = hub.repositories["alibaba-pai/pai-painter-base-zh"]
    hub.repositories["alibaba-pai/pai-painter-commercial-base-zh"] = published
    push_folder(tiny_painter, "your-name/your-painter", token="hf_your-name", tag="COMMIT")
    shutil.copytree(GOLDEN, tmp_path / "old", ignore=shutil.ignore_patterns("dims.json", "expected.safetensors"))
    hub.add("acme/old-painter", tmp_path / "old", private=True)
    for name in ("shop", "shop-valid", "autumn"):
        table_of_pictures(tmp_path / f"{name}.tsv")
    monkeypatch.setenv("HF_TOKEN", "hf_acme")
    monkeypatch.chdir(tmp_path)
    return hub


def test_the_document_runs(shop: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ""
    for kind, text in steps():
        if kind == "python":
            exec(text, {})
        else:
            said += run(text, monkeypatch)
    assert "hf_acme" not in said

    model = shop.repositories["acme/shop-painter"]
    assert model.private
    assert set(model.tags) == {"v1", "v2"}
    first, second = model.files("v1"), model.files("v2")
    assert first["model.safetensors"] != second["model.safetensors"]
    assert {"README.md", "loss.png", "training_summary.json", "modeling_pai_painter.py"} <= set(first)
    leftovers = re.compile(r"checkpoint|metrics|\.tsv|optimizer|\.bin")
    assert not [name for name in first | second if leftovers.search(name)]
    assert model.files("refs/pr/1")["model.safetensors"] == second["model.safetensors"]
    assert (tmp_path / "shop-painter-v2" / "model.safetensors").read_bytes() == second["model.safetensors"]
    with Image.open("before.png") as before, Image.open("after.png") as after:
        assert before.tobytes() == after.tobytes()

    adapter = shop.repositories["acme/shop-style"].files()
    assert b'"alibaba-pai/pai-painter-commercial-base-zh"' in adapter["adapter_config.json"]
    assert "model.safetensors" not in adapter
    assert "model.safetensors" in shop.repositories["acme/new-painter"].files()
