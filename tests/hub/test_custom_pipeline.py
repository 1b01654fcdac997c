# SPDX-License-Identifier: Apache-2.0
"""diffusers' own `DiffusionPipeline.from_pretrained` on the same repository, where this package isn't installed."""

import hashlib
import shutil
from pathlib import Path

import pytest
from another_machine import CAPTION
from diffusers import DiffusionPipeline
from elsewhere import Job, elsewhere
from hub_stand_in import HubStandIn

from pai_painter import PaiPainterForImageGeneration, PaiPainterPipeline
from pai_painter.hub import push_folder

TRUST = {"trust_remote_code": True}

pytestmark = pytest.mark.usefixtures("token")


def hashes(pipe: PaiPainterPipeline) -> list[str]:
    pipe.set_progress_bar_config(disable=True)
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in pipe(CAPTION, 2, seed=5).images]


def test_diffusers_without_the_package(hub: HubStandIn, tiny_painter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_painter, other)
    model = PaiPainterForImageGeneration.from_pretrained(tiny_painter)
    model.lm_head.weight.data.neg_()
    (other / "model.safetensors").unlink()
    model.half().save_pretrained(other, max_shard_size="300KB")
    push_folder(tiny_painter, "painter/tiny", tag="v1")
    push_folder(other, "painter/tiny")
    files = hub.repositories["painter/tiny"].files()
    weights = [name for name in files if name.endswith(".safetensors")]
    assert len(weights) > 1
    assert not [name for name in weights if "/" in name]

    saved = [str(tmp_path / f"again-{number}") for number in range(4)]
    jobs: list[Job] = [
        ("diffusers", "painter/tiny", saved[0], TRUST | {"revision": "v1"}),
        ("diffusers", "painter/tiny", saved[1], TRUST),
        ("diffusers", "painter/tiny", saved[2], TRUST | {"custom_pipeline": "painter/tiny"}),
        ("transformers", "painter/tiny", saved[3], TRUST | {"revision": "v1"}),
    ]
    first, second, third, by_transformers = elsewhere(tmp_path, jobs)[0]
    assert first["images"] == by_transformers["images"] == hashes(PaiPainterPipeline.from_pretrained(tiny_painter))
    assert second == third
    assert second["images"] == hashes(PaiPainterPipeline.from_pretrained(other)) != first["images"]
    assert second["dtype"] == "torch.float32"
    assert first["classes"] == {"model": "PaiPainterForImageGeneration", "processor": "PaiPainterProcessor"}

    # What was saved there holds its code, too; and a folder that was downloaded is as good as a repository.
    repository = tmp_path / "downloaded"
    for name, content in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(content)
    (tmp_path / "elsewhere").mkdir()
    jobs = [
        ("transformers", saved[0], str(tmp_path / "third"), TRUST),
        ("diffusers", str(repository), str(tmp_path / "fourth"), TRUST),
        ("diffusers", saved[0], str(tmp_path / "fifth"), TRUST),
        ("diffusers", str(tmp_path / "fifth"), str(tmp_path / "sixth"), TRUST),
    ]
    again, downloaded, *trips = elsewhere(tmp_path / "elsewhere", jobs)[0]
    assert again == by_transformers
    assert downloaded == second
    assert trips == [first, first]
    # And so it does where the package is installed.
    assert hashes(PaiPainterPipeline.from_pretrained(tmp_path / "sixth")) == first["images"]


def test_diffusers_with_the_package(hub: HubStandIn, tiny_painter: Path, tmp_path: Path) -> None:
    push_folder(tiny_painter, "painter/tiny")
    saved = [str(tmp_path / f"again-{number}") for number in range(3)]
    jobs: list[Job] = [
        ("diffusers", "painter/tiny", saved[0], TRUST),
        ("diffusers", saved[0], saved[1], TRUST),
    ]
    pushed, again = elsewhere(tmp_path, jobs, installed=True)[0]
    assert pushed == again
    assert pushed["pipeline"] == "pai_painter.model.pipeline_pai_painter.PaiPainterPipeline"
    assert pushed["images"] == hashes(PaiPainterPipeline.from_pretrained(tiny_painter))
    assert [path.name for path in Path(saved[1]).rglob("*.py")] == ["pipeline.py"]


def test_without_trust_nothing_is_run(hub: HubStandIn, tiny_painter: Path, tmp_path: Path) -> None:
    push_folder(tiny_painter, "painter/tiny")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained("painter/tiny")
