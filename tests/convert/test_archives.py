# SPDX-License-Identifier: Apache-2.0
"""Archives of strangers."""

import gzip
import io
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from checkpoints import files_of

from pai_painter.convert import convert
from pai_painter.convert.checkpoint_reading import CheckpointError
from pai_painter.convert.conversion import unpack


def archive_of(path: Path, *members: tuple[str, bytes | dict[str, Any]], mode: Any = "w:gz") -> Path:
    """Members are files with a content, or whatever a tar header can say."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                for field, value in content.items():
                    setattr(member, field, value)
                archive.addfile(member)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outer" / "target").mkdir(parents=True)
    return tmp_path / "outer" / "target"


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_plain_files_are_unpacked(tmp_path: Path, target: Path, mode: str) -> None:
    members = [("model", {"type": tarfile.DIRTYPE, "mode": 0o755})]
    members += [("model/config.json", b"{}"), ("./model/红.txt", b"x" * 3_000_000)]
    assert unpack(archive_of(tmp_path / "file.tgz", *members, mode=mode), target) == target / "model"
    assert files_of(target) == ["model/config.json", "model/红.txt"]
    assert (target / "model/红.txt").read_bytes() == b"x" * 3_000_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../escaped", b"x"),
        ("model/../../escaped", b"x"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": ".."}),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "../escaped"}),
        ("device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
        ("device", {"type": tarfile.BLKTYPE}),
        ("pipe", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_what_could_reach_outside_is_refused(tmp_path: Path, target: Path, name: str, content: Any) -> None:
    path = archive_of(tmp_path / "file.tgz", ("model/config.json", b"{}"), (name, content))
    with pytest.raises(CheckpointError, match="refused") as error:
        unpack(path, target)
    assert str(error.value).isprintable()
    assert files_of(tmp_path / "outer") == ["target/model/config.json"]


def test_an_absolute_name_stays_inside(tmp_path: Path, target: Path) -> None:
    unpack(archive_of(tmp_path / "file.tgz", (f"{tmp_path}/escaped/config.json", b"{}")), target)
    assert not (tmp_path / "escaped").exists()


def test_large_contents_are_refused(tmp_path: Path, target: Path) -> None:
    archive_of(tmp_path / "zeros.tgz", ("zeros", bytes(4 * 2**20)))
    header = tarfile.TarInfo("large")
    header.size = 2**40  # promises more than follows
    with gzip.open(tmp_path / "promise.tgz", "wb") as file:
        file.write(header.tobuf() + bytes(1024))
    for name in ("zeros.tgz", "promise.tgz"):
        with pytest.raises(CheckpointError, match="unpacks to more than 1,048,576 bytes"):
            unpack(tmp_path / name, target, max_bytes=2**20)
    assert files_of(target) == []


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_archive_is_refused(tmp_path: Path, target: Path, share: float) -> None:
    content = archive_of(tmp_path / "file.tgz", ("a", random.Random(0).randbytes(50_000))).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.tgz is damaged"):
        unpack(tmp_path / "cut.tgz", target)


@pytest.mark.parametrize("members", [[], ["a/config.json", "b/x.ckpt"]])
def test_an_archive_holds_one_model(tmp_path: Path, members: list[str]) -> None:
    path = archive_of(tmp_path / "file.tgz", *((name, b"{}") for name in members))
    with pytest.raises(CheckpointError, match="is no known checkpoint"):
        convert(path, tmp_path / "out")
