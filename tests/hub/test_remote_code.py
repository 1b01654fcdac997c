# SPDX-License-Identifier: Apache-2.0
"""One repository for all: with this package, and with the code that travels, where the package isn't installed."""

import ast
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from another_machine import CAPTION
from elsewhere import elsewhere
from hub_stand_in import HubStandIn
from model_fixtures import GOLDEN
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import pai_painter
from pai_painter import PaiPainterImageProcessor, PaiPainterPipeline, PaiPainterVQModel
from pai_painter.convert import convert
from pai_painter.hub import push_folder
from pai_painter.remote_code import with_remote_code

TRUST = {"trust_remote_code": True}
PACKAGE = Path(pai_painter.__file__).parent / "model"
CLASSES = {
    "config": "PaiPainterConfig",
    "tokenizer": "PaiPainterTokenizer",
    "image_processor": "PaiPainterImageProcessor",
    "language_model": "PaiPainterForImageGeneration",
    "model": "PaiPainterForImageGeneration",
    "processor": "PaiPainterProcessor",
}

pytestmark = pytest.mark.usefixtures("token")


@pytest.fixture
def vqgan_folder(tiny_painter: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "vqgan"
    PaiPainterVQModel.from_pretrained(tiny_painter).save_pretrained(folder)
    PaiPainterImageProcessor.from_pretrained(tiny_painter).save_pretrained(folder)
    return folder


def painted_here(folder: Path) -> dict[str, Any]:
    """What the package itself makes of the jobs of `another_machine`."""
    pipe = PaiPainterPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(CAPTION, 2, seed=5).images
    pixel_values = pipe.processor(images=images, return_tensors="pt")["pixel_values"]
    input_ids = pipe.processor(text=CAPTION, return_tensors="pt")["input_ids"]
    return {
        "classes": CLASSES,
        "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in images],
        "generated": pipe.model.generate(input_ids, do_sample=False)[0].tolist(),
        "encoded": pipe.model.vqgan.encode(pixel_values).image_tokens.tolist(),
    }


def test_without_the_package_and_saved_again_from_there(
    hub: HubStandIn, tiny_painter: Path, vqgan_folder: Path, tmp_path: Path
) -> None:
    convert(GOLDEN / "easynlp_tiny", tmp_path / "converted", vq_config=GOLDEN / "easynlp_tiny" / "dims.json")
    folders = {"painter/tiny": tiny_painter, "painter/from-easynlp": tmp_path / "converted"}
    for name, folder in (folders | {"painter/vqgan": vqgan_folder}).items():
        push_folder(folder, name)
    again = {name: str(tmp_path / "again" / name.replace("/", "-")) for name in folders}

    jobs = [("transformers", name, again[name], TRUST) for name in folders]
    jobs.append(("vqgan", "painter/vqgan", str(tmp_path / "again" / "vqgan"), TRUST))
    results, _ = elsewhere(tmp_path, jobs)
    expected = [painted_here(folder) for folder in folders.values()]
    assert results[:2] == expected
    assert expected[0]["images"][0] != expected[0]["images"][1]

    saved_vqgan = str(tmp_path / "again" / "vqgan")
    jobs = [("transformers", folder, str(tmp_path / "third"), TRUST) for folder in again.values()]
    jobs.append(("vqgan", saved_vqgan, str(tmp_path / "third-vqgan"), TRUST))
    (tmp_path / "elsewhere").mkdir()
    assert elsewhere(tmp_path / "elsewhere", jobs)[0] == results
    # So do those who have the package.
    assert painted_here(Path(again["painter/tiny"])) == expected[0]


def test_with_the_package_nobody_is_asked_and_nothing_is_run(
    hub: HubStandIn, tiny_painter: Path, vqgan_folder: Path, tmp_path: Path
) -> None:
    push_folder(tiny_painter, "painter/tiny")
    push_folder(vqgan_folder, "painter/vqgan")
    jobs = [
        ("transformers", "painter/tiny", str(tmp_path / "again"), {}),
        ("vqgan", "painter/vqgan", str(tmp_path / "again-vqgan"), {}),
        ("transformers", "painter/tiny", str(tmp_path / "trusted"), TRUST),
    ]
    results, said = elsewhere(tmp_path, jobs, installed=True)
    assert results[0] == results[2] == painted_here(tiny_painter)
    assert not re.search("warn|code|trust", said, re.IGNORECASE), said
    assert not list((tmp_path / "modules").rglob("*painter*")), "foreign code was brought along"
    assert not [request for request in hub.requests if request.endswith("_painter.py")]


def files_of(folder: Path) -> dict[str, Path | bytes]:
    return with_remote_code({path.name: path for path in folder.iterdir()})


def written(folder: Path, files: dict[str, Path | bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


def test_what_is_added_to_a_painter(tiny_painter: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tiny_painter.iterdir()}
    folder = written(tmp_path / "repository", files_of(tiny_painter))
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = ["config.json", "processor_config.json", "tokenizer_config.json"]
    assert {name for name in before if after[name] != before[name]} == set(changed)
    assert {name.rpartition(".")[2] for name in after.keys() - before.keys() - {"model_index.json"}} == {"py"}
    config, processor, tokenizer = (json.loads(after[name]) for name in changed)
    assert config.pop("auto_map").keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert processor.pop("auto_map").keys() == {"AutoProcessor"}
    assert processor["image_processor"].pop("auto_map").keys() == {"AutoImageProcessor"}
    assert tokenizer.pop("auto_map") == {"AutoTokenizer": ["tokenization_pai_painter.PaiPainterTokenizer", None]}
    assert [config, processor, tokenizer] == [json.loads(before[name]) for name in changed]
    # What is there already, of an older version or of a stranger's, is replaced.
    (folder / "modeling_vqgan.py").write_bytes(b"raise SystemExit")
    stale = json.loads(after["config.json"]) | {"auto_map": {"AutoModel": "somebody/else--modeling.Other"}}
    (folder / "config.json").write_text(json.dumps(stale))
    again = written(tmp_path / "again", files_of(folder))
    assert {path.name: path.read_bytes() for path in again.iterdir()} == after


def test_a_part_brings_what_it_needs(tiny_painter: Path, vqgan_folder: Path) -> None:
    of_vqgan = {name for name in files_of(vqgan_folder) if name.endswith(".py")}
    assert {"modeling_vqgan.py", "image_processing_pai_painter.py", "configuration_pai_painter.py"} <= of_vqgan
    assert not of_vqgan & {"modeling_pai_painter.py", "pipeline.py"}
    of_painter = {name for name in files_of(tiny_painter) if name.endswith(".py")}
    # The files import each other and must be of one version.
    parts = {path.name: path for path in tiny_painter.iterdir() if not path.name.startswith(("model", "config"))}
    assert {name for name in with_remote_code(parts) if name.endswith(".py")} == of_painter
    adapter: dict[str, Path | bytes] = {"adapter_config.json": tiny_painter, "adapter_model.safetensors": tiny_painter}
    assert with_remote_code(adapter) == adapter


def references(config: Any) -> list[str]:
    """All classes that a configuration names, at any depth."""
    if not isinstance(config, dict):
        return []
    named = [name if isinstance(name, str) else name[0] for name in config.get("auto_map", {}).values()]
    return named + [name for part in config.values() for name in references(part)]


@pytest.mark.parametrize("kind", ["painter", "vqgan"])
def test_all_that_the_files_import_goes_along(
    kind: str, tiny_painter: Path, vqgan_folder: Path, tmp_path: Path
) -> None:
    files = files_of(tiny_painter if kind == "painter" else vqgan_folder)
    folder = written(tmp_path / "repository", files)
    for name in files:
        if name.endswith(".py") and "/" not in name:
            # As transformers finds them, which reads every line that looks like an import.
            assert [path for path in get_relative_import_files(folder / name) if not Path(path).is_file()] == []
    for name in files:
        for reference in references(json.loads((folder / name).read_bytes())) if name.endswith("config.json") else ():
            module, cls = reference.split(".")
            assert re.search(rf"^class {cls}\b", (folder / f"{module}.py").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_pipeline_names_every_file_since_diffusers_copies_no_other(tiny_painter: Path) -> None:
    files = files_of(tiny_painter)
    tree = ast.parse(files["pipeline.py"])
    named = {f"{node.module}.py" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert named == {name for name in files if name.endswith(".py") and "/" not in name} - {"pipeline.py"}


def test_no_file_imports_itself_on_a_detour(tiny_painter: Path, tmp_path: Path) -> None:
    """diffusers would follow the circle for ever: even one that is for type checkers only."""
    folder = written(tmp_path / "repository", files_of(tiny_painter))

    def follow(module: str, way: tuple[str, ...] = ()) -> None:
        assert module not in way, " → ".join([*way, module])
        for imported in get_relative_imports(folder / f"{module}.py"):
            follow(imported, (*way, module))

    follow("pipeline")


def test_the_pipeline_needs_diffusers_and_the_model_only() -> None:
    tree = ast.parse((PACKAGE / "pipeline_pai_painter.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = {str(node.module) for node in imports if isinstance(node, ast.ImportFrom) and node.level}
    assert all((PACKAGE / f"{name}.py").is_file() for name in ours)
    others = {str(node.module) for node in imports if isinstance(node, ast.ImportFrom) and not node.level}
    others |= {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    roots = {name.partition(".")[0] for name in others} - sys.stdlib_module_names
    assert roots == {"accelerate", "diffusers", "torch", "tqdm", "transformers"}


ANOTHER_TRANSFORMERS = """
import importlib.metadata, sys
from transformers import AutoConfig
found = importlib.metadata.version
importlib.metadata.version = lambda name: sys.argv[2] if name == "transformers" else found(name)
try:
    AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print(" ".join(str(error).split()))
"""


@pytest.mark.parametrize("version", ["5.23.0", "6.0.0"])
def test_another_transformers_is_told_which_one_is_needed(version: str, tiny_painter: Path, tmp_path: Path) -> None:
    """In one sentence, rather than by what happens to be missing in it, or by wrong pictures."""
    folder = str(written(tmp_path / "repository", files_of(tiny_painter)))
    command = [sys.executable, "-c", ANOTHER_TRANSFORMERS, folder, version]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "transformers" in done.stdout
    assert f"found transformers=={version}" in done.stdout
    assert "pip install 'transformers>=5.24,<6'" in done.stdout
