# SPDX-License-Identifier: Apache-2.0
"""A Hub that can't be reached: one try, then the cache with a note; without a cache the cause, at once."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_stand_in import Fault, HubStandIn
from transformers import AutoModel
from typer.testing import CliRunner

from pai_painter import PaiPainterForImageGeneration, PaiPainterPipeline, PaiPainterProcessor
from pai_painter.cli import app
from pai_painter.data.image_token_files import PictureVQGAN
from pai_painter.lora import load_painter
from pai_painter.model_info import describe_model

GOLDEN = Path(__file__).parents[1] / "golden"
NAME = "painter/tiny"
WAYS: dict[str, Callable[[str], object]] = {
    "pipeline": PaiPainterPipeline.from_pretrained,
    "model": PaiPainterForImageGeneration.from_pretrained,
    "processor": PaiPainterProcessor.from_pretrained,
    "vqgan": PictureVQGAN.from_pretrained,
    "info": describe_model,
    "lora": load_painter,
}


def close(hub: HubStandIn) -> None:
    """Nobody is at the Hub's address any more."""
    hub.shutdown()
    hub.hang_up()
    hub.server_close()


def paint(tmp_path: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app, ["paint", "红苹果", "--model", NAME, "--seed", "1", "--output", str(tmp_path / "a.png"), *words]
    )
    return result.exit_code, result.stderr


@pytest.mark.parametrize("way", WAYS)
def test_the_hub_is_asked_once_and_then_for_files(hub: HubStandIn, tiny_painter: Path, way: str) -> None:
    hub.add(NAME, tiny_painter)
    WAYS[way](NAME)
    files = [request for request in hub.requests if "/resolve/" in request]
    assert len(files) == len(set(files)) > 0
    hub.requests.clear()
    WAYS[way](NAME)
    # The tokenizer's chat templates, which it has none of, are transformers' own question.
    asked = [request for request in hub.requests if "/tree/" not in request]
    assert len(asked) == 1
    assert asked[0].startswith(f"GET /api/models/{NAME}")


@pytest.mark.parametrize("way", WAYS)
def test_a_cached_model_loads_after_one_try_with_a_note(
    hub: HubStandIn, tiny_painter: Path, no_waiting: list[float], caplog: pytest.LogCaptureFixture, way: str
) -> None:
    hub.add(NAME, tiny_painter)
    PaiPainterPipeline.from_pretrained(NAME)
    hub.requests.clear()
    hub.faults = [Fault("", cut=True, times=1000)]
    with caplog.at_level(logging.WARNING, "pai_painter"):
        WAYS[way](NAME)
    assert len(hub.requests) == 1
    (note,) = [record.getMessage() for record in caplog.records if record.name.startswith("pai_painter")]
    assert note == f"The Hub ({hub.endpoint}) can't be reached; {NAME} is taken from the cache."
    close(hub)
    WAYS[way](NAME)
    assert no_waiting == []


def test_a_hub_out_of_order_is_no_reason_either(hub: HubStandIn, tiny_painter: Path, no_waiting: list[float]) -> None:
    hub.add(NAME, tiny_painter)
    PaiPainterPipeline.from_pretrained(NAME)
    hub.requests.clear()
    hub.faults = [Fault("", status=503, times=1000)]
    PaiPainterPipeline.from_pretrained(NAME)
    assert len(hub.requests) == 1
    assert no_waiting == []


def test_automodel_finds_its_files_in_the_cache(hub: HubStandIn, tiny_painter: Path, no_waiting: list[float]) -> None:
    hub.add(NAME, tiny_painter)
    before = AutoModel.from_pretrained(NAME).state_dict()
    close(hub)
    after = AutoModel.from_pretrained(NAME).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert no_waiting == []


def test_an_easynlp_model_from_the_cache(hub: HubStandIn, tmp_path: Path, no_waiting: list[float]) -> None:
    from model_fixtures import vqgan_config

    for name in ("config.json", "pytorch_model.bin", "vocab.txt"):
        shutil.copy(GOLDEN / "easynlp_tiny" / name, tmp_path)
    hub.add(NAME, tmp_path)
    PaiPainterPipeline.from_pretrained(NAME, vq_config=vqgan_config())
    close(hub)
    PaiPainterPipeline.from_pretrained(NAME, vq_config=vqgan_config())
    assert no_waiting == []


def test_a_cached_model_paints_on_the_command_line(
    hub: HubStandIn, tiny_painter: Path, tmp_path: Path, no_waiting: list[float]
) -> None:
    hub.add(NAME, tiny_painter)
    assert paint(tmp_path)[0] == 0
    close(hub)
    code, said = paint(tmp_path, "--force")
    assert code == 0
    assert f"Note: The Hub ({hub.endpoint}) can't be reached" in said
    assert f"{NAME} is taken from the cache" in said
    assert no_waiting == []


@pytest.mark.parametrize("way", WAYS)
def test_without_a_cache_the_cause_is_told_at_once(hub: HubStandIn, no_waiting: list[float], way: str) -> None:
    close(hub)
    with pytest.raises(OSError, match=r"the Hub could not be reached \(ConnectError.* was found in the local cache"):
        WAYS[way](NAME)
    assert no_waiting == []


def test_the_cause_on_the_command_line(hub: HubStandIn, tmp_path: Path, no_waiting: list[float]) -> None:
    close(hub)
    code, said = paint(tmp_path)
    assert code == 2
    assert said.count("\n") == 1
    assert "could not be reached" in said
    assert "config.json" not in said
    assert no_waiting == []


def test_half_a_model_in_the_cache(
    hub: HubStandIn, tiny_painter: Path, tmp_path: Path, no_waiting: list[float]
) -> None:
    hub.add(NAME, tiny_painter)
    describe_model(NAME)  # its configuration, but no weights
    close(hub)
    with pytest.raises(OSError, match="in the cache"):
        PaiPainterPipeline.from_pretrained(NAME)
    assert no_waiting == []


def test_no_hub_is_asked_if_it_must_not_be(
    hub: HubStandIn, tiny_painter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, tiny_painter)
    with pytest.raises(OSError, match="'local_files_only=True' is set and no matching entry"):
        PaiPainterPipeline.from_pretrained(NAME, local_files_only=True)
    assert hub.requests == []
    PaiPainterPipeline.from_pretrained(NAME)
    hub.requests.clear()
    PaiPainterPipeline.from_pretrained(NAME, local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    PaiPainterPipeline.from_pretrained(NAME)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        PaiPainterPipeline.from_pretrained("painter/other")
    assert hub.requests == []


def test_all_files_are_of_one_commit(hub: HubStandIn, tiny_painter: Path) -> None:
    repository = hub.add(NAME, tiny_painter)
    settings = repository.files()["generation_config.json"]

    def push_a_change() -> None:
        repository.commit("changed", {"generation_config.json": settings.replace(b"100", b"7")})

    hub.faults = [Fault("HEAD", before=push_a_change)]
    assert PaiPainterPipeline.from_pretrained(NAME).model.generation_config.top_k == 100
    assert PaiPainterPipeline.from_pretrained(NAME).model.generation_config.top_k == 7
