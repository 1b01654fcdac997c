# SPDX-License-Identifier: Apache-2.0
"""Pickles of strangers: what honest ones hold is read, and nothing that hostile ones name is run."""

import collections
import importlib
import pathlib
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import EASYNLP, PADDLE, Payload, making

from pai_painter.convert.checkpoint_reading import CheckpointError, load_weights
from pai_painter.convert.from_paddlenlp import _read_arrays as read_arrays

FORMATS = {"zip": True, "legacy": False}


def saved(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def how_it_ends(path: Path, read: Callable[[Path], Any]) -> str | None:
    """The error, if there is one."""
    try:
        read(path)
    except CheckpointError as error:
        return str(error)
    return None


# What honest files hold


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
def test_what_training_leaves_is_read_and_does_nothing(tmp_path: Path, zipped: bool) -> None:
    ordered = collections.OrderedDict(a=torch.ones(2))
    ordered._metadata = {"version": 1}  # as in a module's state dict
    content = {
        "state_dict": ordered,
        "path": pathlib.PurePosixPath("/somewhere"),
        "default": collections.defaultdict(list, a=[1]),
        torch.optim.Adam: "a class as a key",
        "callbacks": {Payload: {"state": collections.Counter("ab")}},
        "scalar": np.float32(3),
    }
    weights, others = load_weights(saved(content, tmp_path / "file.ckpt", zipped))
    assert torch.equal(weights["a"], torch.ones(2))
    assert others == ["path", "default", "a type", "callbacks", "scalar"]


@pytest.mark.parametrize("protocol", range(5))  # Paddle takes up to 4
def test_arrays_are_as_numpy_reads_them(tmp_path: Path, protocol: int) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "float32": generator.normal(size=(3, 4)).astype("float32"),
        "fortran": np.asfortranarray(generator.normal(size=(3, 4))),
        "big endian": np.arange(5, dtype=">i4"),
        "part": np.arange(20, dtype="int64")[::3],
        "half": np.ones((2, 1, 2), "float16"),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "bool": np.array([True, False]),
    }
    path = tmp_path / "file.pdparams"
    path.write_bytes(pickle.dumps(arrays, protocol))
    found = read_arrays(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
        assert found[name].numpy().dtype == array.dtype.newbyteorder("=")


# What hostile files name


def hostile(marker: Path) -> dict[str, Any]:
    """Objects that do something when they are unpickled."""
    program = f"import os; os.mkdir({str(marker)!r})"
    return {
        "os": making(marker),
        "exec": Payload(exec, program),
        "eval": Payload(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "subprocess": Payload(subprocess.call, [sys.executable, "-c", program]),
        "import": Payload(importlib.import_module, "antigravity"),
        "torch": Payload(torch.load, str(marker)),
        "open": Payload(open, str(marker), "w"),
    }


KINDS = sorted(hostile(Path("marker")))


def in_places(payload: Any) -> dict[str, Any]:
    tensor = torch.ones(2)
    return {
        "alone": payload,
        "state dict": {"state_dict": {"a": tensor, "b": payload}},
        "callbacks": {"state_dict": {"a": tensor}, "callbacks": {"EarlyStopping": {"state": [payload]}}},
        "a key": {"state_dict": {"a": tensor}, payload: 1},
    }


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_program_in_a_checkpoint_is_run(tmp_path: Path, kind: str, zipped: bool) -> None:
    marker = tmp_path / "ran"
    for place, content in in_places(hostile(marker)[kind]).items():
        error = how_it_ends(saved(content, tmp_path / "file.ckpt", zipped), load_weights)
        assert error is not None or (kind != "os" and place in ("callbacks", "a key"))  # else read as a stand-in
        assert not marker.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_no_program_among_arrays_is_run(tmp_path: Path, kind: str, protocol: int) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps({"a": np.ones(2), "b": hostile(marker)[kind]}, protocol))
    assert "nothing in it was executed" in str(how_it_ends(path, read_arrays))
    assert not marker.exists()


def test_the_programs_would_run(tmp_path: Path) -> None:
    """Else the tests above say nothing."""
    for kind in ("os", "exec", "eval", "subprocess"):
        pickle.loads(pickle.dumps({"a": hostile(tmp_path / kind)[kind]}))
        assert (tmp_path / kind).is_dir()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nmkdir\n(S'MARKER'\ntR.",  # GLOBAL, REDUCE
        b"(S'MARKER'\nios\nmkdir\n.",  # INST
        b"(cos\nmkdir\nS'MARKER'\no.",  # OBJ
        b"\x80\x02cos\nmkdir\nU\x06MARKER\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x06MARKER\x85}\x92.",  # STACK_GLOBAL, NEWOBJ_EX
        b"\x80\x04\x8c\x07pathlib\x8c\x08os.mkdir\x93\x8c\x06MARKER\x85R.",  # a path of attributes
        b"c__main__\n__builtins__\n(S'MARKER'\ntR.",
        b"\x80\x02\x82\x01)R.",  # EXT1
        b"S'MARKER'\n(S'MARKER'\ntR.",  # a text is called
        b"\x80\x02cnumpy\ndtype\n}(U\x0c__defaults__)utb.",  # attributes of what may be named
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",  # an array of objects
        b"\x80\x02c_codecs\nencode\nU\x01aU\x06rot-13\x86R.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",  # bytes that aren't there
        b"",
        b"hello",
    ],
)
def test_no_instruction_runs_anything(tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pdparams"
    path.write_bytes(program)
    for read in (read_arrays, load_weights):
        assert how_it_ends(path, read) is not None
    assert not Path("MARKER").exists()


def test_what_a_pickle_does_to_a_name_is_forgotten(tmp_path: Path) -> None:
    state = {"__call__": None, "__init__": None, "__setstate__": None, "__code__": None}
    path = tmp_path / "file.pdparams"
    path.write_bytes(b"\x80\x02cnumpy\ndtype\nN" + pickle.dumps(state, 2)[2:-1] + b"\x86b0}.")
    how_it_ends(path, read_arrays)
    path.write_bytes(pickle.dumps({"a": np.ones(2)}, 2))
    assert read_arrays(path)["a"].tolist() == [1, 1]


def test_names_are_not_for_terminals(tmp_path: Path) -> None:
    path = saved({"a\x1b[2J" + "x" * 500: 3}, tmp_path / "file.bin")
    error = how_it_ends(path, load_weights)
    assert error is not None
    assert len(error) < 300
    assert error.isprintable()
    path.write_bytes(b"cevil\x1b[2J\nname\n.")
    assert "evil\\x1b[2J.name" in str(how_it_ends(path, read_arrays))


# Files that are no checkpoints


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_weights(tmp_path / "file.pt")


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool, share: float) -> None:
    content = saved({"a": torch.randn(500), "b": torch.randn(500)}, tmp_path / "whole.pt", zipped).read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * share)])
    assert "cut.pt is damaged or no checkpoint" in str(how_it_ends(tmp_path / "cut.pt", load_weights))


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    tensor = torch.arange(1000.0)
    content = bytearray(saved({"a": tensor}, tmp_path / "file.pt").read_bytes())
    content[content.index(tensor.numpy().tobytes()[:64]) + 9] ^= 1
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_weights(tmp_path / "file.pt")


def test_a_compressed_file_has_the_same_numbers(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(1000.0)}, tmp_path / "file.pt")
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, content)
    weights, _ = load_weights(path)
    assert torch.equal(weights["a"], torch.arange(1000.0))


@pytest.mark.parametrize("seed", range(24))
def test_damage_anywhere_is_an_error_of_one_sentence_or_none(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    source = [EASYNLP / "pytorch_model.bin", PADDLE / "model_state.pdparams"][seed % 2]
    content = bytearray(source.read_bytes())
    for place in generator.integers(0, min(len(content), 20_000 if seed % 4 < 2 else len(content)), 20):
        content[place] = generator.integers(256)
    path = tmp_path / "file"
    path.write_bytes(content)
    error = how_it_ends(path, load_weights if seed % 2 == 0 else read_arrays)
    assert error is None or (str(path) in error and error.isprintable())
