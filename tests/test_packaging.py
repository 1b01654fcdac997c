# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist build and hold what painting needs; a wheel in an empty environment paints."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "vocab.txt",
}
ASSETS = {f"pai_painter/demo_model/{name}" for name in DEMO_MODEL} | {
    "pai_painter/imaging/fonts/OFL.txt",
    "pai_painter/imaging/fonts/pai-painter-sans.otf",
    "pai_painter/training/model_card_template.md",
}
# What a build reads. It happens in a copy, so that it neither sees nor leaves anything in the work tree.
BUILD_INPUTS = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "NOTICE",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.cfg",
    "src",
    "tests",
    "tools",
    "train.py",
    "train_vqgan.py",
]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.cfg").is_file(), reason="needs the repository, not an installation")


def run(command: Iterable[str | Path], **kwargs: object) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stdout + result.stderr
    return result  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, built from the sdist, and the sdist."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    junk = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=junk)
        else:
            shutil.copy2(ROOT / name, source / name)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source])
    return output


@pytest.fixture(scope="session")
def wheel(archives: Path) -> Path:
    (path,) = archives.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_with_its_model_and_font(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/pai_painter").rglob("*.py")}
    assert names >= ASSETS | modules
    roots = {"pai_painter", "pai_painter-0.1.0.dist-info", "pai_painter_command.py"}
    assert {name.split("/")[0] for name in names} == roots
    assert sizes["pai_painter/demo_model/model.safetensors"] < 16 * 2**20
    assert sizes["pai_painter/imaging/fonts/pai-painter-sans.otf"] < 2.5 * 2**20


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read("pai_painter-0.1.0.dist-info/METADATA").decode()
        entry_points = archive.read("pai_painter-0.1.0.dist-info/entry_points.txt").decode()
        licences = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "pai-painter = pai_painter_command:main" in entry_points
    assert licences >= {"LICENSE", "NOTICE", "OFL.txt"}


def test_the_sdist_holds_what_a_clone_needs(archives: Path) -> None:
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"src/{name}" for name in ASSETS} | {
        "Makefile",
        "constraints.txt",
        "LICENSE",
        "NOTICE",
        "setup.cfg",
    }
    assert names >= wanted | {"tests/test_packaging.py", "tools/make_font.py", "train.py", "train_vqgan.py"}


def declared_requirements() -> list[Requirement]:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    blocks = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {normal_name(pin.name): pin for pin in pins}


def normal_name(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_every_requirement_is_constrained_to_one_version_within_its_range() -> None:
    pins = constraints()
    for requirement in declared_requirements():
        if requirement.name == "pai-painter":  # an extra that includes another one
            continue
        (pin,) = pins[normal_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert "+" not in pin.version  # a local build such as +cpu is not for everybody
        assert requirement.specifier.contains(pin.version), f"{requirement} does not admit {pin}"


def test_the_build_requirement_is_met_by_the_constraints() -> None:
    build_system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    (setuptools,) = map(Requirement, build_system["requires"])
    (pin,) = constraints()["setuptools"].specifier
    assert setuptools.specifier.contains(pin.version)


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment_paints(wheel: Path, tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([sys.executable, "-m", "venv", environment])
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    run([programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel])
    offline = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    offline |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    picture = elsewhere / "apple.png"
    run(
        [programs / "pai-painter", "paint", "红苹果", "--seed", "0", "--output", picture],
        cwd=elsewhere,
        env=offline,
    )
    with Image.open(picture) as image:
        image.load()
        red, green, blue = (sum(band.histogram()[:128]) for band in image.convert("RGB").split())
    assert red < green, "a red apple has more dark green than dark red values"
    assert red < blue
