# SPDX-License-Identifier: Apache-2.0
"""The Space: what the Hub reads of it, and that its page paints; the page itself needs gradio."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

from pai_painter import DEMO_MODEL, PaiPainterPipeline, __version__

SPACE = Path(__file__).parents[2] / "hub_configs" / "space"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAI_PAINTER_MODEL", raising=False)
    monkeypatch.delenv("PAI_PAINTER_REVISION", raising=False)


def painting_function() -> Callable[[str, int | None], str]:
    """As a Space would import it, but without opening the page."""
    return runpy.run_path(str(SPACE / "app.py"))["paint"]  # type: ignore[no-any-return]


def text_of(path: str) -> dict[str, str]:
    with Image.open(path) as picture:
        return dict(picture.text)  # type: ignore[attr-defined]


def test_what_the_hub_reads() -> None:
    data = SpaceCard.load(SPACE / "README.md").data
    assert (data.sdk, data.license) == ("gradio", "apache-2.0")
    assert Version(data.sdk_version) >= Version("6.31")
    assert (SPACE / data.app_file).is_file()
    assert data.title
    assert len(data.to_dict()["short_description"]) <= 60  # the Hub refuses more
    for model in data.models:
        assert (SPACE.parent / model.removeprefix("alibaba-pai/") / "config.json").is_file()


def test_requirements() -> None:
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (own,) = [Requirement(line) for line in lines if not line.startswith("#")]
    assert own.name == "pai-painter"
    assert own.specifier.contains(__version__)


def test_it_paints_what_the_pipeline_paints_and_the_file_says_how() -> None:
    path = painting_function()("红苹果", 3)
    expected = PaiPainterPipeline.from_pretrained(DEMO_MODEL)("红苹果", seed=3).images[0]
    with Image.open(path) as picture:
        assert picture.tobytes() == expected.tobytes()
    text = text_of(path)
    assert (text["caption"], text["seed"], text["model"]) == ("红苹果", "3", "the demo model of pai-painter")


def test_without_a_seed_it_takes_a_new_one() -> None:
    paint = painting_function()
    assert text_of(paint("红苹果", None))["seed"] != text_of(paint("红苹果", None))["seed"]


def test_what_cannot_be_painted_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^The caption '' is empty: please say in Chinese what to paint\.$"):
        painting_function()("", 0)


def test_another_model(hub: HubStandIn, tiny_painter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("acme/shop-painter", tiny_painter, tag="v1")
    monkeypatch.setenv("PAI_PAINTER_MODEL", "acme/shop-painter")
    monkeypatch.setenv("PAI_PAINTER_REVISION", "v1")
    assert text_of(painting_function()("红苹果", 0))["model"] == "acme/shop-painter"
    assert any("/v1" in request for request in hub.requests)


def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio", reason="only a Space needs gradio")
    opened: list[Any] = []
    monkeypatch.setattr(gradio.Interface, "launch", lambda page, **options: opened.append((page, options)))
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    ((page, options),) = opened
    assert (page.title, options) == ("PAI-Painter", {"show_error": True})
    assert text_of(page.fn("红苹果", 0))["caption"] == "红苹果"
