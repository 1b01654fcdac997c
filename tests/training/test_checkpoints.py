# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are whole or not there, and a full disk is no reason to lose a run."""

import json
import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pai_painter.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint

SETTINGS = {"learning_rate": 0.1, "config": {"layers": 2, "sizes": [1, 2]}}


@pytest.fixture
def accelerator() -> Accelerator:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(torch.ones(1, 64)).sum())
    optimizer.step()
    return accelerator


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk is like to whoever writes: safetensors, torch.save and open() fail in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_round_trip(accelerator: Accelerator, tmp_path: Path) -> None:
    model = accelerator._models[0]
    before = model.weight.detach().clone()
    checkpoint = save_checkpoint(accelerator, tmp_path, 7, SETTINGS, keep=2)
    assert checkpoint == tmp_path / "checkpoint-7"
    model.weight.data.zero_()
    assert load_checkpoint(accelerator, checkpoint, SETTINGS) == 7
    assert torch.equal(model.weight, before)


def test_old_ones_go_when_the_new_one_is_whole(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 10):
        save_checkpoint(accelerator, tmp_path, step, SETTINGS, keep=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pai_painter.training.checkpoints._sync", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(accelerator, tmp_path, 11, SETTINGS, keep=2)
    assert names(tmp_path) == [".checkpoint-11.partial", "checkpoint-10", "checkpoint-2"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"
    save_checkpoint(accelerator, tmp_path, 12, SETTINGS, keep=1)
    assert names(tmp_path) == ["checkpoint-12"]


def test_one_taken_up_again_from_an_earlier_step_stays(accelerator: Accelerator, tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(accelerator, tmp_path, step, SETTINGS, keep=2)
    save_checkpoint(accelerator, tmp_path, 12, SETTINGS, keep=1)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-20"]


def cut(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove(checkpoint: Path) -> None:
    (checkpoint / "optimizer.bin").unlink()


def damage_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"step": 2, "fi')


def remove_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize("spoil", [cut, remove, damage_manifest, remove_manifest])
def test_the_newest_whole_one_is_taken(
    spoil: Callable, accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_checkpoint(tmp_path / "nothing", "latest") is None
    for step in (1, 2):
        save_checkpoint(accelerator, tmp_path, step, SETTINGS, keep=5)
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / ".checkpoint-3.partial")
    spoil(tmp_path / "checkpoint-2")
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-1"
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'checkpoint-2'} is not whole (its manifest doesn't fit its files) and is passed over."
    ]
    with pytest.raises(ValueError, match=r"checkpoint-2 is not a whole checkpoint.*use `latest`"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match=r"There is no checkpoint True; use `latest`"):
        find_checkpoint(tmp_path, "True")
    assert find_checkpoint("elsewhere", str(tmp_path / "checkpoint-1")) == tmp_path / "checkpoint-1"


def test_differences_are_named_where_they_are(accelerator: Accelerator, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(accelerator, tmp_path, 1, SETTINGS, keep=1)
    now = {"config": {"layers": 3, "sizes": (1, 2)}, "learning_rate": 0.1, "new": None}
    with pytest.raises(ValueError, match=r": config\.layers was 2 and is now 3\. Set them back"):
        load_checkpoint(accelerator, checkpoint, now)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "processes": 2}))
    with pytest.raises(ValueError, match="processes was 2 and is now 1"):
        load_checkpoint(accelerator, checkpoint, SETTINGS)


@pytest.mark.parametrize("size", [500, 20_000, 34_500])
def test_a_full_disk(size: int, accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """16 KB of weights and 33 KB of optimizer: it fills up in the first, the second or at its end."""
    save_checkpoint(accelerator, tmp_path, 1, SETTINGS, keep=1)
    files = {name.stat().st_size for name in (tmp_path / "checkpoint-1").iterdir()}
    assert any(file > size for file in files)
    with files_of_at_most(size):
        assert save_checkpoint(accelerator, tmp_path, 2, SETTINGS, keep=1) is None
    assert names(tmp_path) == ["checkpoint-1"]
    message = caplog.records[-1].message
    assert caplog.records[-1].levelno == logging.WARNING
    assert message.startswith("checkpoint-2 could not be saved (")
    assert message.endswith("Training goes on; the newest is checkpoint-1.")
    assert "\n" not in message
    save_checkpoint(accelerator, tmp_path, 3, SETTINGS, keep=1)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-3"


def test_no_space_for_the_manifest(
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pai_painter.training.checkpoints._sync", full)
    assert save_checkpoint(accelerator, tmp_path, 2, SETTINGS, keep=1) is None
    assert names(tmp_path) == []
    assert "No space left on device). Training goes on; there is none yet." in caplog.text


def test_what_does_not_fit_is_one_sentence(accelerator: Accelerator, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(accelerator, tmp_path, 2, SETTINGS, keep=1)
    state = checkpoint / "optimizer.bin"
    state.write_bytes(bytes(state.stat().st_size))  # as long as it was
    with pytest.raises(ValueError, match=r"checkpoint-2 can't be taken up by this run: "):
        load_checkpoint(accelerator, checkpoint, SETTINGS)
    other = Accelerator(cpu=True)
    other.prepare(torch.nn.Linear(32, 32))
    with pytest.raises(ValueError, match=r"checkpoint-2 can't be taken up by this run: (.|\n)*size mismatch"):
        load_checkpoint(other, checkpoint, SETTINGS, ignore_changes=True)
