# SPDX-License-Identifier: Apache-2.0
"""EasyNLP's `pipeline(...)`: the blog post's Python, its results, and what it refuses."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pai_painter import PaiPainterPipeline
from pai_painter.easynlp import pipeline
from pai_painter.easynlp.names import PUBLISHED, checked_model

# The blog post's, but for the import line and for `data`, of which the tiny model knows the words.
POST = """
import base64
from io import BytesIO
from PIL import Image
from pai_painter.easynlp import pipeline

# Directly build a pipeline.
default_ecommercial_pipeline = pipeline("pai-painter-commercial-base-zh")
# Model prediction
data = ["宽松T恤"]
results = default_ecommercial_pipeline(data)  # Each result is a base64 encoding of the generated image
# Convert base64 to image
def base64_to_image(imgbase64_str):
    image = Image.open(BytesIO(base64.urlsafe_b64decode(imgbase64_str)))
    return image
# Save the image named with the text
for text, result in zip(data, results):
    imgpath = '{}.png'.format(text)
    imgbase64_str = result['gen_imgbase64']
    image = base64_to_image(imgbase64_str)
    image.save(imgpath)
    print('text: {}, save generated image: {}'.format(text, imgpath))
"""
MISSING = """
try:
    pipeline("pai-painter-large-zh")
except OSError as error:
    print(f"ERROR {error}")
"""


def run_script(script: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_painter: Path) -> Path:
    """What the Hub's client leaves after a download of the commercial painter."""
    repository = tmp_path / "hub" / "models--alibaba-pai--pai-painter-commercial-base-zh"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_painter, repository / "snapshots" / ("0" * 40))
    return repository.parent


@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}]
)
@pytest.mark.slow
def test_the_posts_python_from_the_cache(tmp_path: Path, hub_cache: Path, environment: dict[str, str]) -> None:
    """Told that there is no network, or finding out."""
    told = run_script(POST + MISSING, tmp_path, HF_HUB_CACHE=str(hub_cache), **environment)
    with Image.open(tmp_path / "宽松T恤.png") as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (16, 16))
    errors = [line for line in told.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1
    assert "alibaba-pai/pai-painter-large-zh is not in the cache" in errors[0]
    assert told.count("\n") == 2


def test_the_five_names_are_those_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert PUBLISHED == (
        "pai-painter-base-zh",
        "pai-painter-large-zh",
        "pai-painter-commercial-base-zh",
        "pai-painter-scenery-base-zh",
        "pai-painter-painting-base-zh",
    )
    for name in PUBLISHED:
        with pytest.raises(OSError, match=f"^The model alibaba-pai/{name} is not in the cache"):
            checked_model(name, {})


def test_a_string_or_a_list_in_dictionaries_out(tiny_painter: Path) -> None:
    paint = pipeline("text2image_generation", tiny_painter)
    single, several = paint("红苹果"), paint(["红苹果", "一只熊猫"])
    assert [[*result] for result in single + several] == [["gen_imgbase64"]] * 3
    for result in single + several:
        assert isinstance(result["gen_imgbase64"], str)


def test_several_pictures_of_a_caption_are_a_list(tiny_painter: Path) -> None:
    paint = pipeline("text2image_generation", str(tiny_painter), max_generated_num="3")
    results = paint(["红苹果", "一只熊猫", "宽松T恤"])  # nine pictures: more than are painted at once
    assert [len(result["gen_imgbase64"]) for result in results] == [3, 3, 3]
    captions = [[caption_of(each) for each in result["gen_imgbase64"]] for result in results]
    assert captions == [["红苹果"] * 3, ["一只熊猫"] * 3, ["宽松T恤"] * 3]
    assert len({picture for result in results for picture in result["gen_imgbase64"]}) == 9


def test_the_same_caption_twice_gives_two_pictures_unless_torch_is_seeded(tiny_painter: Path) -> None:
    paint = pipeline("text2image_generation", tiny_painter)
    torch.manual_seed(7)
    first = paint(["红苹果", "红苹果"])
    second = paint(["红苹果", "红苹果"])
    torch.manual_seed(7)
    again = paint(["红苹果", "红苹果"])
    assert first == again
    assert len({result["gen_imgbase64"] for result in first + second}) == 4


def test_both_decoders_of_base64_give_the_pictures(tiny_painter: Path) -> None:
    """The post reads with the URL-safe decoder what EasyNLP writes in the standard alphabet."""
    paint = pipeline("text2image_generation", tiny_painter, max_generated_num=64)
    pictures = paint("红苹果")[0]["gen_imgbase64"]
    assert any("+" in picture for picture in pictures)
    assert any("/" in picture for picture in pictures)
    for picture in pictures:
        content = base64.b64decode(picture, validate=True)
        assert base64.urlsafe_b64decode(picture) == content
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.format == "PNG"


def test_the_metadatas_seed_paints_the_picture_again(tiny_painter: Path, pipe: PaiPainterPipeline) -> None:
    pipe.model.generation_config.best_of = 2
    pipe.save_pretrained(folder := tiny_painter.parent / "best-of-two")
    picture = pipeline("text2image_generation", folder)("红苹果")[0]["gen_imgbase64"]
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        seed = int(image.text["seed"])
        again = pipe("红苹果", seed=seed, best_of=1).images[0]
        assert image.convert("RGB").tobytes() == again.tobytes()
        assert image.text["model"] == "best-of-two"
        assert json.loads(image.text["options"])["best_of"] == 1


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("pai-painter-base",), {}, "did you mean `pai-painter-base-zh`?"),
        (("text_classify", "folder"), {}, "pai-painter-painting-base-zh"),
        (("text2image_generation",), {}, "name one model"),
        (("pai-painter-base-zh", "folder"), {}, "name one model"),
        (("text2image_generation", "{model}"), {"max_generated_nm": 4}, "did you mean `max_generated_num`?"),
        (("text2image_generation", "{model}"), {"max_generated_num": 0}, "at least 1"),
        (("text2image_generation", "{model}"), {"max_generated_num": "two"}, "whole number"),
        (("text2image_generation", "{model}"), {"text_len": 32}, "text_len=32 contradicts the model"),
    ],
)
def test_what_cant_be_is_one_sentence(tiny_painter: Path, arguments: tuple, options: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are looked at below
        pipeline(*(word.format(model=tiny_painter) for word in arguments), **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", [[], "", ["红苹果", ""], ("红苹果",), 3])
def test_captions_that_say_nothing_are_refused(tiny_painter: Path, inputs: object) -> None:
    with pytest.raises(ValueError, match="caption"):
        pipeline("text2image_generation", tiny_painter, text_len="8", img_vocab_size=64)(inputs)


def caption_of(picture: str) -> str:
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return image.text["caption"]
