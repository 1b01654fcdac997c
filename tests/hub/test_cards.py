# SPDX-License-Identifier: Apache-2.0
"""The published models' cards: their metadata, their figures, and that all they tell the reader to type runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard, close_session
from PIL import Image
from test_documents import ROOT, blocks
from typer.testing import CliRunner

from pai_painter import PaiPainterConfig, PaiPainterImageProcessor, PaiPainterVQConfig, PaiPainterVQModel
from pai_painter.cli import app
from pai_painter.hub import push_folder
from pai_painter.model_info import describe_model

sys.path.append(str(ROOT / "tools"))

from make_hub_configs import painter_sizes, vqgan_sizes

FOLDERS = ROOT / "hub_configs"
VQGAN = "vqgan-f16-16384"
PAINTERS = sorted(path.name for path in FOLDERS.glob("pai-painter-*"))
MODELS = [*PAINTERS, VQGAN]
SIDE = 16  # of the tiny painter's pictures
FOREIGN_CODE = "trust_remote_code=True"


def card(name: str) -> ModelCard:
    return ModelCard.load(FOLDERS / name / "README.md")


def sections(name: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", card(name).text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def full_hub(hub: HubStandIn, tiny_painter: Path, tmp_path: Path) -> HubStandIn:
    """All published names; under each is what was pushed once: a tiny painter, or its VQGAN."""
    close_session()  # a connection that is kept open would lead to the Hub of the test before
    vqgan = tmp_path / "vqgan"
    PaiPainterVQModel.from_pretrained(tiny_painter).save_pretrained(vqgan)
    PaiPainterImageProcessor(size=SIDE).save_pretrained(vqgan)
    push_folder(vqgan, f"alibaba-pai/{VQGAN}", token="hf_alibaba")
    push_folder(tiny_painter, f"alibaba-pai/{PAINTERS[0]}", token="hf_alibaba")
    for name in PAINTERS[1:]:
        hub.repositories[f"alibaba-pai/{name}"] = hub.repositories[f"alibaba-pai/{PAINTERS[0]}"]
    for name, published in (("your-painter", PAINTERS[0]), ("your-vqgan", VQGAN)):
        own = hub.repositories[f"your-name/{name}"] = hub.repositories[f"alibaba-pai/{published}"]
        own.tags["COMMIT"] = own.branches["main"][-1].oid
    return hub


@pytest.mark.parametrize("name", PAINTERS)
def test_metadata_of_a_painter(name: str) -> None:
    data = card(name).data
    assert (data.pipeline_tag, data.library_name, data.language) == ("text-to-image", "transformers", "zh")
    assert {"pai-painter", "vqgan", "chinese"} <= set(data.tags)
    assert data.license == ("apache-2.0" if name == "pai-painter-demo" else "unknown")
    scenery = ("alibaba-pai/pai-painter-base-zh", "finetune")
    base = (data.base_model, data.to_dict().get("base_model_relation"))
    assert base == (scenery if name == "pai-painter-scenery-base-zh" else (None, None))


def test_metadata_of_the_vqgan() -> None:
    data = card(VQGAN).data
    assert (data.pipeline_tag, data.library_name, data.license) == ("image-to-image", "transformers", "mit")


@pytest.mark.parametrize("name", MODELS)
def test_a_card_says_what_one_must_know(name: str) -> None:
    found = sections(name)
    assert {"Use", "Trained on", "Size and memory", "Limits and risks"} <= set(found)
    assert "{{" not in card(name).content
    if name not in ("pai-painter-demo", VQGAN):
        assert "licence is not stated separately" in found["Licence"]
        assert not re.search(r"\d[.,]\d|FID|%", found["Metrics"])  # they are published as a picture only


@pytest.mark.parametrize("name", MODELS)
def test_the_table_of_sizes_is_the_computed_one(name: str) -> None:
    folder = FOLDERS / name
    if name == VQGAN:
        table = vqgan_sizes(PaiPainterVQConfig.from_pretrained(folder))
    else:
        table = painter_sizes(PaiPainterConfig.from_pretrained(folder))
        (whole,) = re.findall(r"^\| total \| ([\d,]+) \| (.+) \| (.+) \|$", table, re.MULTILINE)
        info = describe_model(folder)
        assert info["parameters"].endswith(f"= {whole[0]}")
        assert info["memory of the weights"].startswith(f"{whole[1]} in float32, {whole[2]}")
    assert f"\n{table}\n" in sections(name)["Size and memory"]


@pytest.mark.parametrize("name", MODELS)
def test_what_runs_with_the_package(
    name: str, full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 70), "red").save("picture.png")
    found = blocks(FOLDERS / name / "README.md", "python")
    assert len(found) == 3
    for block in found[:2]:
        names: dict[str, object] = {}
        exec(block, names)
        if "image" in names:
            assert isinstance(names["image"], Image.Image)
    Path("picture.png").unlink()
    for command in blocks(FOLDERS / name / "README.md", "console"):
        result = CliRunner().invoke(app, shlex.split(command.removeprefix("$ pai-painter ")))
        assert result.exit_code == 0, result.output
        assert Image.open("picture.png").format == "PNG"


def test_what_runs_without_the_package(full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    script = ["import sys", "sys.modules['pai_painter'] = None  # as if it weren't installed"]
    for name in MODELS:
        block = blocks(FOLDERS / name / "README.md", "python")[2]
        assert block.count(FOREIGN_CODE) == block.count('revision="COMMIT", trust_remote_code=True') == 2
        assert block.count('"your-name/your-') == 2
        script += [block, "print('pai_painter' in type(model if 'image' in dir() else vqgan).__module__, image.size)"]
    script[-1] = "print(type(vqgan).__name__)"
    (tmp_path / "card.py").write_text("\n".join(script), encoding="utf-8")
    done = subprocess.run([sys.executable, "card.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"True ({SIDE}, {SIDE})"] * len(PAINTERS) + ["PaiPainterVQModel"]
