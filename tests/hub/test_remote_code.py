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
from pai_painter.hub.remote_code import CODE_FILES, add_remote_code

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
    # And so does whoever has the package.
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
    assert not [request for request in hub.requests if request.endswith(tuple(f"/{name}" for name in CODE_FILES))]


def written(folder: Path, files: dict[str, Path | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


def files_of(folder: Path) -> dict[str, Path | bytes]:
    return {path.name: path for path in folder.iterdir()}


def test_what_is_added_to_a_painter(tiny_painter: Path) -> None:
    before = files_of(tiny_painter)
    files = add_remote_code(before)
    assert before == files_of(tiny_painter)
    assert set(files) == set(before) | CODE_FILES
    changed = ["config.json", "processor_config.json", "tokenizer_config.json"]
    assert {name for name in before if files[name] != before[name]} == set(changed)
    config, processor, tokenizer = (json.loads(files[name]) for name in changed)
    assert config.pop("auto_map").keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert processor.pop("auto_map").keys() == {"AutoProcessor"}
    assert processor["image_processor"].pop("auto_map").keys() == {"AutoImageProcessor"}
    assert tokenizer.pop("auto_map") == {"AutoTokenizer": ["tokenization_pai_painter.PaiPainterTokenizer", None]}
    assert [config, processor, tokenizer] == [json.loads((tiny_painter / name).read_bytes()) for name in changed]


def test_what_was_saved_elsewhere_is_described_anew(tiny_painter: Path, tmp_path: Path) -> None:
    once = add_remote_code(files_of(tiny_painter))
    assert add_remote_code(once) == once
    older = dict(once)
    config = json.loads(once["config.json"])
    older["config.json"] = json.dumps(config | {"auto_map": {"AutoModel": "somebody/else--modeling.Other"}}).encode()
    older["modeling_vqgan.py"] = b"raise SystemExit"
    assert add_remote_code(older) == once


def test_a_vqgan_brings_its_own_files_alone(vqgan_folder: Path) -> None:
    before = files_of(vqgan_folder)
    files = add_remote_code(before)
    assert set(files) - set(before) == {
        "configuration_pai_painter.py",
        "image_processing_pai_painter.py",
        "model_files_pai_painter.py",
        "modeling_vqgan.py",
        "strict_config_pai_painter.py",
        "weight_mapping.py",
    }


def test_a_processor_alone_brings_code_of_one_version(tiny_painter: Path) -> None:
    before = {name: path for name, path in files_of(tiny_painter).items() if not name.startswith(("model", "config"))}
    assert set(add_remote_code(before)) == set(before) | CODE_FILES


def test_an_adapter_brings_nothing(tmp_path: Path) -> None:
    files: dict[str, Path | bytes] = {"adapter_config.json": b"{}", "adapter_model.safetensors": tmp_path}
    assert add_remote_code(files) == files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", r"config\.json is not valid JSON"),
        ("config.json", b"[]", "must hold a JSON object, but it holds a list"),
        ("config.json", b'{"model_type": "bert"}', "model_type in config.json is 'bert'"),
        ("config.json", b"{}", "model_type in config.json is None"),
        ("config.json", b'{"model_type": []}', r"model_type in config.json is \[\]"),
        ("processor_config.json", b"{}", "is another model's: it has no image_processor"),
        ("preprocessor_config.json", b"\xff", r"preprocessor_config\.json is not valid JSON"),
    ],
)
def test_configurations_that_are_not_ours(name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_remote_code({name: content})


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
    files = add_remote_code(files_of(tiny_painter if kind == "painter" else vqgan_folder))
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
    files = add_remote_code(files_of(tiny_painter))
    tree = ast.parse(files["pipeline.py"])
    named = {f"{node.module}.py" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert named == {name for name in files if name.endswith(".py") and "/" not in name} - {"pipeline.py"}


def test_no_file_imports_itself_on_a_detour(tiny_painter: Path, tmp_path: Path) -> None:
    """diffusers would follow the circle for ever: even one that is for type checkers only."""
    folder = written(tmp_path / "repository", add_remote_code(files_of(tiny_painter)))

    def follow(module: str, way: tuple[str, ...] = ()) -> None:
        assert module not in way, " → ".join([*way, module])
        for imported in get_relative_imports(folder / f"{module}.py"):
            follow(imported, (*way, module))

    follow("pipeline")


def test_the_travelling_half_of_the_pipeline_needs_diffusers_and_the_model_only() -> None:
    tree = ast.parse((PACKAGE / "pipeline_base_pai_painter.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = {str(node.module) for node in imports if isinstance(node, ast.ImportFrom) and node.level}
    assert {f"{name}.py" for name in ours} <= CODE_FILES
    others = {str(node.module) for node in imports if isinstance(node, ast.ImportFrom) and not node.level}
    others |= {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    roots = {name.partition(".")[0] for name in others} - sys.stdlib_module_names
    assert roots == {"PIL", "diffusers", "numpy", "torch", "tqdm", "transformers"}


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
    files = add_remote_code({path.name: path for path in tiny_painter.iterdir()})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_TRANSFORMERS, str(tmp_path), version], capture_output=True, text=True, check=True
    )
    assert "transformers" in done.stdout
    assert f"found transformers=={version}" in done.stdout
    assert "pip install 'transformers>=5.24,<6'" in done.stdout
