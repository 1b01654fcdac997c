# SPDX-License-Identifier: Apache-2.0
"""A trained model's folder, with what belongs on the Hub and what doesn't."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from pai_painter.remote_code import with_remote_code

PRIVATE = {
    *("checkpoint-10/model.safetensors", "checkpoint-10/optimizer.bin", ".checkpoint-20.partial/model.safetensors"),
    *("rejected_rows.jsonl", "metrics.jsonl", "train.tsv", "cache/codes.arrow", "samples/notes.txt", "samples/a/b.png"),
    *("optimizer.safetensors", "model.safetensors.tmp", ".model-x/model.safetensors", "pytorch_model.bin", ".env"),
    *("config.json.bak", "settings.yaml", "token", "pai-painter/events.out.tfevents", "modeling_vqgan.py"),
}
BESIDE = {"loss.png", "training_summary.json", "LICENSE", "samples/step-000010.png", "samples/step-000020.png"}
CARD = "---\nlanguage: zh\n---\n\n# 画家\n"


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return "hf_writer"


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a download that breaks off the client keeps whole pieces, of 10 MB."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)


@pytest.fixture
def folder(tiny_painter: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_painter, tmp_path / "out")
    for name in BESIDE | PRIVATE:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content of {name}".encode())
    (tmp_path / "out" / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "out"


@pytest.fixture
def code(tiny_painter: Path) -> set[str]:
    """What goes beside a painter, for machines without this package."""
    files = {path.name: path for path in tiny_painter.iterdir()}
    return with_remote_code(files).keys() - files.keys()


@pytest.fixture
def belonging(tiny_painter: Path) -> set[str]:
    """What of `folder` may leave this machine."""
    return {path.name for path in tiny_painter.iterdir()} | BESIDE | {"README.md"}
