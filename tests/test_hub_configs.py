# SPDX-License-Identifier: Apache-2.0
"""What the published models' repositories hold beside their weights."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, GenerationConfig

from pai_painter import DEMO_MODEL, PaiPainterForImageGeneration, PaiPainterVQModel

ROOT = Path(__file__).parent.parent
FOLDERS = ROOT / "hub_configs"
VOCABULARY = FOLDERS / "vocab.txt"  # of all published models
BASE = (126_669_312, 76_073_859, 202_743_171)
# Transformer, VQGAN, together.
PARAMETERS = {
    "pai-painter-base-zh": BASE,
    "pai-painter-large-zh": (357_795_840, 76_073_859, 433_869_699),
    "pai-painter-commercial-base-zh": BASE,
    "pai-painter-scenery-base-zh": BASE,
    "pai-painter-painting-base-zh": BASE,
    "pai-painter-demo": (5_068_800, 2_737_651, 7_806_451),
}
PUBLISHED = [name for name in PARAMETERS if name != "pai-painter-demo"]
VQGAN = "vqgan-f16-16384"
OF_A_VQGAN = {"README.md", "config.json", "preprocessor_config.json"}
OF_A_PAINTER = {
    *("README.md", "config.json", "generation_config.json", "processor_config.json"),
    "tokenizer_config.json",
}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes(name: str) -> None:
    with torch.device("meta"):
        painter = AutoModel.from_config(AutoConfig.from_pretrained(FOLDERS / name))
    assert isinstance(painter, PaiPainterForImageGeneration)
    whole = painter.num_parameters()
    vqgan = painter.vqgan.num_parameters()
    assert (whole - vqgan, vqgan, whole) == PARAMETERS[name]


def test_size_of_the_vqgan() -> None:
    with torch.device("meta"):
        vqgan = AutoModel.from_config(AutoConfig.from_pretrained(FOLDERS / VQGAN))
    assert isinstance(vqgan, PaiPainterVQModel)
    assert vqgan.num_parameters() == 76_073_859
    inside = AutoConfig.from_pretrained(FOLDERS / "pai-painter-base-zh").vq_config
    its_own = {"_name_or_path": str(FOLDERS / VQGAN), "architectures": ["PaiPainterVQModel"]}
    assert vqgan.config.to_dict() == {**inside.to_dict(), **its_own}


def test_the_folders_are_complete_but_for_the_weights() -> None:
    wanted = dict.fromkeys(PUBLISHED, OF_A_PAINTER)
    wanted |= {"pai-painter-demo": OF_A_PAINTER | {"tokenizer.json", "vocab.txt"}, VQGAN: OF_A_VQGAN}
    found = {path.name: set(content(path)) for path in FOLDERS.iterdir() if path.name != "space" and path.is_dir()}
    assert found == wanted


def test_the_vocabulary_is_there_once() -> None:
    assert VOCABULARY.read_bytes() == (ROOT / "tests" / "golden" / "vocab.txt").read_bytes()
    of_the_demo = {FOLDERS / "pai-painter-demo" / name for name in ("tokenizer.json", "vocab.txt")}
    assert {path for name in ("tokenizer.json", "vocab.txt") for path in FOLDERS.rglob(name)} == {
        VOCABULARY,
        *of_the_demo,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_captions(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDERS / name, tmp_path / name)
    with pytest.raises(OSError, match=r"has no vocabulary: it needs a vocab\.txt"):
        AutoProcessor.from_pretrained(folder)
    shutil.copy(VOCABULARY, folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.check_model(AutoConfig.from_pretrained(folder))
    assert (processor.text_length, processor.image_processor.size) == (32, {"shortest_edge": 256})
    vocabulary = VOCABULARY.read_text(encoding="utf-8").split("\n")
    ids = processor(text="宽松T恤", return_tensors="pt")["input_ids"][0] - 16384
    assert [vocabulary[index] for index in ids[:4]] == ["宽", "松", "t", "恤"]
    assert (ids[4:] == 0).all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_of_the_publication(name: str) -> None:
    settings = GenerationConfig.from_pretrained(FOLDERS / name)
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (True, 1.0, 100, 1.0)
    assert (settings.max_length, settings.to_dict()["best_of"]) == (288, 1)


def test_pictures_of_the_vqgan() -> None:
    assert AutoImageProcessor.from_pretrained(FOLDERS / VQGAN).size == {"shortest_edge": 256}


def test_the_demo_is_the_one_in_the_package() -> None:
    packaged = content(Path(DEMO_MODEL))
    del packaged["model.safetensors"]
    assert content(FOLDERS / "pai-painter-demo") == packaged
    # What packs a newly trained model takes the card from here.
    assert (ROOT / "examples" / "emoji" / "MODEL_CARD.md").read_bytes() == packaged["README.md"]


def test_the_tool_writes_what_is_there(tmp_path: Path) -> None:
    words = ["tools/make_hub_configs.py", "--vocabulary", "tests/golden/vocab.txt", "--output", str(tmp_path)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {*PARAMETERS, VQGAN, "vocab.txt"}
    for name in (*PARAMETERS, VQGAN):
        assert content(tmp_path / name) == content(FOLDERS / name), name
