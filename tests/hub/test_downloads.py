# SPDX-License-Identifier: Apache-2.0
"""Models by their names on the Hub, in every place that takes one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from hub_stand_in import Fault, HubStandIn
from model_fixtures import expected, vqgan_config, whole_sequence
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from pai_painter import PaiPainterPipeline
from pai_painter.cli import app
from pai_painter.hub import push_folder

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = "alibaba-pai/pai-painter-base-zh"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def test_an_untouched_easynlp_folder_loads_by_its_published_name(hub: HubStandIn) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint, token="hf_alibaba")
    api.create_repo(PUBLISHED)
    files = ["config.json", "pytorch_model.bin", "vocab.txt"]
    api.upload_folder(repo_id=PUBLISHED, folder_path=GOLDEN / "easynlp_tiny", allow_patterns=files)
    assert set(hub.repositories[PUBLISHED].files()) == set(files)
    painter = AutoModel.from_pretrained(PUBLISHED, vq_config=vqgan_config())
    with torch.no_grad():
        logits = painter(whole_sequence()[:, :-1]).logits
    torch.testing.assert_close(logits, expected()["all_logits"], atol=1e-4, rtol=1e-4)
    processor = AutoProcessor.from_pretrained(PUBLISHED)
    assert processor.tokenizer.vocab_size == len((GOLDEN / "easynlp_tiny" / "vocab.txt").read_text().splitlines())


def test_every_command_takes_a_name_and_a_revision(hub: HubStandIn, tiny_painter: Path, tmp_path: Path) -> None:
    repository = hub.add("painter/tiny", tiny_painter, tag="v1.0")
    broken: dict[str, bytes | None] = dict.fromkeys(repository.files())
    repository.commit("taken away", {**broken, "README.md": b"gone"})
    model = ["--model", "painter/tiny", "--revision", "v1.0"]
    painted = run("paint", "红苹果", "--seed", "1", "--output", str(tmp_path / "a.png"), *model)
    assert painted.exit_code == 0, painted.output
    assert "painter/tiny (v1.0)" in run("info", "painter/tiny", "--revision", "v1.0").output
    assert run("encode", str(tmp_path / "a.png"), "--output", str(tmp_path / "a.json"), *model).exit_code == 0
    assert run("decode", str(tmp_path / "a.json"), "--output", str(tmp_path / "b.png"), *model).exit_code == 0
    (tmp_path / "captions.txt").write_text("红苹果\n", encoding="utf-8")
    refused = run("paint", "红苹果", "--model", "painter/tiny", "--output", str(tmp_path / "c.png"))
    assert refused.exit_code == 2
    assert "config.json" in refused.output
    assert refused.output.count("\n") == 1


def test_the_pipeline(hub: HubStandIn, tiny_painter: Path) -> None:
    hub.add("painter/tiny", tiny_painter, tag="v1.0")
    here = PaiPainterPipeline.from_pretrained(tiny_painter)
    there = PaiPainterPipeline.from_pretrained("painter/tiny", revision="v1.0")
    for pipe in (here, there):
        pipe.set_progress_bar_config(disable=True)
    draws = [pipe("红苹果", generator=torch.Generator().manual_seed(0)).images[0] for pipe in (here, there)]
    assert draws[0].tobytes() == draws[1].tobytes()


def test_an_adapter_and_its_base_both_by_name(hub: HubStandIn, tiny_painter: Path, tmp_path: Path, token: str) -> None:
    from pai_painter.lora import add_lora, load_painter, save_lora

    shutil.copytree(tiny_painter, tmp_path / "base")
    push_folder(tmp_path / "base", "painter/base")
    painter, _ = load_painter("painter/base")
    torch.manual_seed(0)
    add_lora(painter, 2)
    for name, weight in painter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_lora(painter, tmp_path / "style")
    push_folder(tmp_path / "style", "painter/style", tag="v1.0")
    settings = json.loads(hub.repositories["painter/style"].files()["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "painter/base"
    texts = [content for name, content in hub.repositories["painter/style"].files().items() if "safe" not in name]
    assert not [text for text in texts if str(tmp_path).encode() in text]
    loaded, processor = load_painter("painter/style", revision="v1.0")
    inputs = processor(text="红苹果", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, painter(**inputs).logits)
    merged = run("merge", "painter/style", str(tmp_path / "merged"), "--revision", "v1.0")
    assert merged.exit_code == 0, merged.output


_LOAD = """
from transformers import AutoModel, AutoProcessor
import pai_painter
AutoProcessor.from_pretrained("painter/tiny")
print(sum(weight.double().sum().item() for weight in AutoModel.from_pretrained("painter/tiny").parameters()))
"""


def test_from_a_mirror_and_then_without_a_network(hub: HubStandIn, tiny_painter: Path) -> None:
    """This process knows of the stand-in by `HF_ENDPOINT` alone; for the next one, its cache is enough."""
    hub.add("painter/tiny", tiny_painter)
    AutoProcessor.from_pretrained("painter/tiny")
    weights = AutoModel.from_pretrained("painter/tiny").parameters()
    requests = len(hub.requests)
    assert requests > 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", _LOAD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(sum(weight.double().sum().item() for weight in weights), rel=1e-9)
    assert len(hub.requests) == requests


def test_a_cut_download_is_no_whole_model(
    hub: HubStandIn, tiny_painter: Path, no_waiting: list[float], small_pieces: None
) -> None:
    hub.add("painter/tiny", tiny_painter)
    hub.faults = [Fault("GET /storage/", cut=True)]
    AutoModel.from_pretrained("painter/tiny")
    assert len(hub.ranges) == 1  # the second half was fetched


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("painter/none", "painter/none is neither a local folder nor available on the Hub"),
        ("painter/gated", "gated"),
    ],
)
def test_what_cannot_be_loaded(hub: HubStandIn, tiny_painter: Path, name: str, sentence: str) -> None:
    hub.add("painter/gated", tiny_painter, gated=True)
    refused = run("info", name)
    assert refused.exit_code == 2
    assert sentence in refused.output
    assert refused.output.count("\n") == 1
