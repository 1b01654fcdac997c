# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are whole or not there, run nothing, and a full disk is no reason to lose a run."""

import json
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pai_painter.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint

SETTINGS = {"learning_rate": 0.1, "config": {"layers": 2, "sizes": [1, 2]}}


class State:
    """Something that a run remembers."""

    def __init__(self, value: float = 1.0):
        self.value = torch.tensor(value)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.value = state["value"]


class Poison:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.fixture
def accelerator() -> Accelerator:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(torch.ones(1, 64)).sum())
    optimizer.step()
    return accelerator


@pytest.fixture
def save(accelerator: Accelerator, tmp_path: Path) -> Callable[..., Path | None]:
    def save(step: int, keep: int = 2) -> Path | None:
        save_checkpoint(accelerator, tmp_path, step, SETTINGS, {"state": State()}, keep)
        path = tmp_path / f"checkpoint-{step}"
        return path if path.exists() else None

    return save


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk is like to a writer: safetensors, torch.save and open() fail in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_round_trip(accelerator: Accelerator, save: Callable, tmp_path: Path) -> None:
    model, state = accelerator._models[0], State(7.0)
    before = model.weight.detach().clone()
    checkpoint = save(7)
    assert checkpoint == tmp_path / "checkpoint-7"
    model.weight.data.zero_()
    assert load_checkpoint(accelerator, checkpoint, SETTINGS, {"state": state}) == 7
    assert torch.equal(model.weight, before)
    assert state.value == 1.0


def test_old_ones_go_when_the_new_one_is_whole(save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 10):
        save(step)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pai_painter.training.checkpoints.sync", killed)
        with pytest.raises(KeyboardInterrupt):
            save(11)
    assert names(tmp_path) == [".checkpoint-11.partial", "checkpoint-10", "checkpoint-2"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-2" / "optimizer.bin").unlink()  # killed while it was removed
    save(11, keep=1)
    assert names(tmp_path) == ["checkpoint-11"]


def test_later_ones_than_the_one_resumed_from_stay(save: Callable, tmp_path: Path) -> None:
    for step, keep in ((10, 2), (20, 2), (12, 1)):
        save(step, keep)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-20"]


def cut(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_byte(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(checkpoint: Path) -> None:
    (checkpoint / "optimizer.bin").unlink()


def damage_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"step": 2, "fi')


@pytest.mark.parametrize("spoil", [cut, flip_a_byte, remove, damage_manifest])
def test_the_newest_whole_one_is_taken(
    spoil: Callable, save: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_checkpoint(tmp_path / "nothing", "latest") is None
    for step in (1, 2):
        save(step)
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / ".checkpoint-3.partial")
    spoil(tmp_path / "checkpoint-2")
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-1"
    assert f"{tmp_path / 'checkpoint-2'} is damaged: " in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-2 isn't a complete checkpoint: .*use `latest`"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match=r"True isn't a complete checkpoint: a file is missing"):
        find_checkpoint(tmp_path, "True")
    assert find_checkpoint(Path("elsewhere"), str(tmp_path / "checkpoint-1")) == tmp_path / "checkpoint-1"
    spoil(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"checkpoint-2 isn't a complete checkpoint"):  # rather than beginning anew
        find_checkpoint(tmp_path, "latest")


def test_differences_are_named_where_they_are(accelerator: Accelerator, save: Callable) -> None:
    checkpoint = save(1)
    now = {"config": {"layers": 3, "sizes": (1, 2)}, "learning_rate": 0.1, "new": None}
    with pytest.raises(ValueError, match=r": config\.layers was 2 and is now 3\. Set them back"):
        load_checkpoint(accelerator, checkpoint, now, {})
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "processes": 2}))
    with pytest.raises(ValueError, match="processes was 2 and is now 1"):
        load_checkpoint(accelerator, checkpoint, SETTINGS, {})


@pytest.mark.parametrize("size", [500, 20_000, 34_500])
def test_a_full_disk(size: int, save: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """16 KB of weights and 33 KB of optimizer: it fills up in the first, the second or at its end."""
    save(1)
    assert any(name.stat().st_size > size for name in (tmp_path / "checkpoint-1").iterdir())
    with files_of_at_most(size):
        assert save(2, keep=1) is None
    assert names(tmp_path) == ["checkpoint-1"]
    message = caplog.records[-1].message
    assert message.startswith(f"{tmp_path / 'checkpoint-2'} could not be saved (")
    assert message.endswith("; the newest is checkpoint-1.")
    assert "\n" not in message
    save(3)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-3"


def test_no_space_for_the_manifest(
    save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pai_painter.training.checkpoints.sync", full)
    assert save(2) is None
    assert names(tmp_path) == []
    assert "No space left on device); there is none yet." in caplog.text


def test_what_does_not_fit_is_an_error(accelerator: Accelerator, save: Callable) -> None:
    checkpoint = save(2)
    with pytest.raises(ValueError, match=r"checkpoint-2 can't be resumed by this run: 'best'"):
        load_checkpoint(accelerator, checkpoint, SETTINGS, {"best": State()})
    other = Accelerator(cpu=True)
    other.prepare(torch.nn.Linear(32, 32))
    with pytest.raises(ValueError, match=r"checkpoint-2 can't be resumed by this run: (.|\n)*size mismatch"):
        load_checkpoint(other, checkpoint, SETTINGS, {}, ignore=True)


@pytest.mark.parametrize("writer", [pickle.dump, torch.save])
@pytest.mark.parametrize(
    "name", ["optimizer.bin", "random_states_0.pkl", "states.pt", "custom_checkpoint_0.pkl", "pytorch_model.bin"]
)
def test_nothing_in_a_checkpoint_runs(
    writer: Callable, name: str, accelerator: Accelerator, save: Callable, tmp_path: Path
) -> None:
    """Somebody has replaced a file and made the manifest fit it."""
    checkpoint = save(2)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    if writer is pickle.dump:
        (checkpoint / name).write_bytes(pickle.dumps(Poison(tmp_path / "ran")))
    else:
        torch.save(Poison(tmp_path / "ran"), checkpoint / name)
    # Without the random state accelerate goes on; every step sets its own.
    refused = name != "random_states_0.pkl"
    with pytest.raises(ValueError, match="can't be resumed by this run") if refused else nullcontext():
        load_checkpoint(accelerator, checkpoint, SETTINGS, {"state": State()})
    assert not (tmp_path / "ran").exists()
