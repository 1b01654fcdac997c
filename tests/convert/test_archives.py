# SPDX-License-Identifier: Apache-2.0
"""Archives of strangers."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import files_of

from pai_painter.convert.archives import is_archive, unpack
from pai_painter.convert.safe_pickle import CheckpointError


def archive_of(path: Path, *members: tuple[str, bytes | dict[str, Any]], mode: Any = "w:gz") -> Path:
    """Members are files with a content, or whatever a tar header can say."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                vars_of(member, content)
                archive.addfile(member)
    return path


def vars_of(member: tarfile.TarInfo, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        setattr(member, name, value)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outer" / "target").mkdir(parents=True)
    return tmp_path / "outer" / "target"


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_plain_files_are_unpacked(tmp_path: Path, target: Path, mode: str) -> None:
    members = [("model", {"type": tarfile.DIRTYPE}), ("model/config.json", b"{}"), ("./model/红.txt", b"x" * 3_000_000)]
    path = archive_of(tmp_path / "file.tgz", *members, mode=mode)
    assert is_archive(path)
    unpack(path, target)
    assert files_of(target) == ["model/config.json", "model/红.txt"]
    assert (target / "model/红.txt").read_bytes() == b"x" * 3_000_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("../escaped", b"x", "leads out"),
        ("model/../../escaped", b"x", "leads out"),
        ("/tmp/escaped", b"x", "leads out"),
        ("C:\\escaped", b"x", "leads out"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": ".."}, "a link or a device"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "model"}, "a link or a device"),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "../escaped"}, "a link or a device"),
        ("device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, "a link or a device"),
        ("device", {"type": tarfile.BLKTYPE}, "a link or a device"),
        ("pipe", {"type": tarfile.FIFOTYPE}, "a link or a device"),
        ("sparse", {"type": tarfile.GNUTYPE_SPARSE, "size": 0}, "a link or a device"),
        ("model/config.json", b"again", "twice"),
        ("model/config.json/inside", b"x", "twice"),
    ],
)
def test_what_could_reach_outside_is_refused(
    tmp_path: Path, target: Path, name: str, content: Any, reason: str
) -> None:
    path = archive_of(tmp_path / "file.tgz", ("model/config.json", b"{}"), (name, content))
    with pytest.raises(CheckpointError, match=reason) as error:
        unpack(path, target)
    assert "\n" not in str(error.value)
    assert files_of(tmp_path / "outer") == ["target/model/config.json"]
    assert (target / "model/config.json").read_bytes() == b"{}"
    assert not Path("/tmp/escaped").exists()


def bomb_of_zeros(path: Path) -> None:
    archive_of(path, ("zeros", bytes(40 * 2**20)))


def bomb_of_a_header(path: Path) -> None:
    """A header whose text, which a reader takes into memory, is long."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**32
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf() + bytes(40 * 2**20))


def bomb_of_a_number(path: Path) -> None:
    """A header that promises more than follows."""
    header = tarfile.TarInfo("large")
    header.size = 2**40
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf() + bytes(1024))


@pytest.mark.parametrize("bomb", [bomb_of_zeros, bomb_of_a_header, bomb_of_a_number])
def test_a_bomb_is_refused(tmp_path: Path, target: Path, bomb: Callable[[Path], None]) -> None:
    bomb(tmp_path / "file.tgz")
    assert (tmp_path / "file.tgz").stat().st_size < 2**20
    with pytest.raises(CheckpointError, match=r"refused|cut off"):
        unpack(tmp_path / "file.tgz", target, max_bytes=2**20)
    assert sum(path.stat().st_size for path in target.rglob("*")) < 20 * 2**20


def test_too_many_files_are_refused(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pai_painter.convert.archives._MAX_FILES", 5)
    path = archive_of(tmp_path / "file.tgz", *((str(number), b"") for number in range(6)))
    with pytest.raises(CheckpointError, match="more than 5 files"):
        unpack(path, target)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, target: Path, share: float) -> None:
    content = archive_of(tmp_path / "file.tgz", ("a", random.Random(0).randbytes(50_000))).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.tgz is damaged or cut off"):
        unpack(tmp_path / "cut.tgz", target)


def test_a_long_header_is_not_taken_into_memory(tmp_path: Path, target: Path) -> None:
    bomb_of_a_header(tmp_path / "file.tgz")
    with pytest.raises(CheckpointError, match="one of its headers says that it has 4,294,967,296 bytes"):
        unpack(tmp_path / "file.tgz", target)
