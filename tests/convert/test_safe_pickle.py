# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as data: all that honest ones hold is read, and nothing that hostile ones name is run."""

import builtins
import collections
import copyreg
import importlib
import io
import os
import pathlib
import pickle
import pickletools
import resource
import struct
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

from pai_painter.convert.safe_pickle import (
    CheckpointError,
    Inert,
    Name,
    NumPyArray,
    SafeUnpickler,
    StoredTensor,
    read_pickle,
)
from pai_painter.convert.torch_files import open_torch_file

FORMATS = {"zip": True, "legacy": False}


def load(content: bytes) -> Any:
    return SafeUnpickler(io.BytesIO(content), Path("file")).load()


def saved(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def read_all(path: Path) -> dict[str, Any]:
    with open_torch_file(path) as file:
        return {
            name: file.read(value) if isinstance(value, StoredTensor) else value for name, value in file.content.items()
        }


# What honest files hold


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
def test_tensors_of_every_kind_are_as_pytorch_reads_them(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    kinds = ("bfloat16", "bool", "uint8", "int8", "float64", "float32", "float16", "int32", "int64", "int16")
    content: dict[str, Any] = {kind: (torch.randn(3, 4) * 50).to(getattr(torch, kind)) for kind in kinds}
    content |= {"whole": base, "row": base[2], "column": base[:, 3], "block": base[1:4, 2:7:2], "turned": base.t()}
    content |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4), "parameter": torch.nn.Parameter(base[:2])}
    content |= {"number": 3, "text": "红", "list": [1, 2.5, None, True], "set": {1}, "bytes": b"\x00\xff"}
    found = read_all(saved(content, tmp_path / "file.pt", zipped))
    assert found.keys() == content.keys()
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value.detach()), name
            assert found[name].untyped_storage().nbytes() == value.numel() * value.element_size()  # its own memory
        else:
            assert found[name] == value


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
def test_what_training_leaves_is_read_but_does_nothing(tmp_path: Path, zipped: bool) -> None:
    ordered = collections.OrderedDict(a=torch.ones(2))
    ordered._metadata = {"version": 1}  # as in a module's state dict
    content = {
        "weights": ordered,
        "path": pathlib.PurePosixPath("/somewhere"),
        "default": collections.defaultdict(list, a=[1]),
        torch.optim.Adam: "a class as a key",
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    found = read_all(saved(content, tmp_path / "file.pt", zipped))
    assert isinstance(found["weights"]["a"], StoredTensor)
    assert isinstance(found["path"], Inert)
    assert found["default"] == {"a": [1]}
    assert len(found) == len(content)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
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
    found = read_pickle(path)
    for name, array in arrays.items():
        assert isinstance(found[name], NumPyArray)
        np.testing.assert_array_equal(found[name].array, array)
        assert found[name].array.dtype == array.dtype.newbyteorder("=")


# What hostile files name


class Evil:
    """Has a method that unpickling would call."""

    def __setstate__(self, state: Any) -> None:
        os.mkdir(state)


def hostile(marker: Path) -> dict[str, Any]:
    """Objects that do something when they are unpickled."""
    program = f"import os; os.mkdir({str(marker)!r})"
    return {
        "os": making(marker),
        "exec": Payload(exec, program),
        "eval": Payload(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "subprocess": Payload(subprocess.call, [sys.executable, "-c", program]),
        "import": Payload(importlib.import_module, "antigravity"),
        "getattr": Payload(builtins.getattr, os, "mkdir"),
        "torch": Payload(torch.load, str(marker)),
        "torch's hub": Payload(torch.hub.load, str(marker), "model"),
        "numpy": Payload(np.load, str(marker)),
        "open": Payload(open, str(marker), "w"),
        "extension": Payload(copyreg.add_extension, "os", "mkdir", 1),
    }


HOSTILE = sorted(hostile(Path("marker")).keys() - {"getattr"})  # which can't be written: a module isn't picklable


def in_places(payload: Any) -> dict[str, Any]:
    tensor = torch.ones(2)
    return {
        "alone": payload,
        "state dict": {"state_dict": {"a": tensor, "b": payload}},
        "callbacks": {"state_dict": {"a": tensor}, "callbacks": {"EarlyStopping": {"state": [payload]}}},
        "nested": {"state_dict": {"a": tensor}, "hyper_parameters": {"a": [({"b": (1, payload)},)]}},
        "a key": {"state_dict": {"a": tensor}, payload: 1},
    }


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("place", in_places(0))
def test_a_program_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, kind: str, place: str, zipped: bool) -> None:
    marker = tmp_path / "ran"
    path = saved(in_places(hostile(marker)[kind])[place], tmp_path / "file.ckpt", zipped)
    with pytest.raises(CheckpointError, match="nothing of it was run") as error, open_torch_file(path):
        pass
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_program_among_arrays_is_refused_and_not_run(tmp_path: Path, kind: str, protocol: int) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps({"a": np.ones(2), "b": hostile(marker)[kind]}, protocol))
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        read_pickle(path)
    assert not marker.exists()


def test_the_programs_would_run(tmp_path: Path) -> None:
    """Else the tests above say nothing."""
    for kind in ("os", "exec", "eval", "subprocess"):
        pickle.loads(pickle.dumps({"a": hostile(tmp_path / kind)[kind]}))
        assert (tmp_path / kind).is_dir()


def test_an_object_gets_no_state(tmp_path: Path) -> None:
    """A class that may be named isn't imported, so that its methods aren't called either."""
    evil = Evil()
    evil.__dict__["a"] = 1
    content = pickle.dumps(evil).replace(b"test_safe_pickle", b"taming.test_safe")
    assert isinstance(load(content), Inert)


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
        b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",  # two GiB
        b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",  # bytes that aren't there
        b"\x80\x02]r\xff\xff\xff\xff.",  # a memo of four thousand millions
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(U\x0c__defaults__)utb.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # a number of two thousand million bytes
        b"\x80\x02c_vqgans\nencode\nU\x01aU\x06rot-13\x86R.",
    ],
)
def test_no_instruction_runs_anything_or_reserves_memory(
    tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pdparams"
    path.write_bytes(program)
    before = resident()
    found, reason = reading_ends(path, read_pickle)
    assert isinstance(found, Inert | list) if reason is None else "\n" not in reason
    assert resident() - before < 2**26
    assert not Path("MARKER").exists()


def reading_ends(path: Path, read: Callable[[Path], Any]) -> tuple[Any, str | None]:
    """What was read, or why not."""
    try:
        return read(path), None
    except CheckpointError as error:
        return None, str(error)


def resident() -> int:
    """Bytes of memory that this process has at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_hostile_text_is_not_for_terminals() -> None:
    with pytest.raises(CheckpointError) as error:
        load(b"cevil\x1b[2J" + b"x" * 500 + b"\nname\n.")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


# Files that are no checkpoints


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="TorchScript"), open_torch_file(tmp_path / "file.pt"):
        pass


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, zipped: bool, share: float) -> None:
    content = saved({"a": torch.randn(500), "b": torch.randn(500)}, tmp_path / "whole.pt", zipped).read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pt (is damaged or cut off|is no checkpoint)"):
        read_all(tmp_path / "cut.pt")


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    tensor = torch.arange(1000.0)
    content = bytearray(saved({"a": tensor}, tmp_path / "file.pt").read_bytes())
    place = content.index(tensor.numpy().tobytes()[:64])
    content[place + 9] ^= 1
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_all(tmp_path / "file.pt")


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_is_an_error_of_one_sentence_or_none(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    source = [EASYNLP / "pytorch_model.bin", PADDLE / "model_state.pdparams"][seed % 2]
    content = bytearray(source.read_bytes())
    where = generator.integers(0, min(len(content), 20_000 if seed % 4 < 2 else len(content)), 20)
    for place in where:
        content[place] = generator.integers(256)
    path = tmp_path / "file"
    path.write_bytes(content)
    _, reason = reading_ends(path, read_all if seed % 2 == 0 else read_pickle)
    assert reason is None or (str(path) in reason and "\n" not in reason)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A checkpoint packed again."""
    with zipfile.ZipFile(path) as old:
        entries = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in entries.items():
            new.writestr(name, content)
    return path


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(2)}, tmp_path / "file.pt")
    rewritten(path, lambda name, old: bytes(2**27) if "/data/" in name else old, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    before = resident()
    with pytest.raises(CheckpointError, match="unpacks to"), open_torch_file(path):
        pass
    assert resident() - before < 2**26


def test_a_tensor_of_few_numbers_cannot_be_a_large_one(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(1).expand(2**40)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="of which it has 1"), open_torch_file(path):
        pass


def test_a_storage_that_is_too_short(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(64)}, tmp_path / "file.pt")
    rewritten(path, lambda name, old: old[:100] if "/data/" in name else old)
    with pytest.raises(CheckpointError, match="numbers are missing"):
        read_all(path)


def test_big_endian_is_refused(tmp_path: Path) -> None:
    path = rewritten(
        saved({"a": torch.ones(2)}, tmp_path / "file.pt"), lambda name, old: b"big" if "byteorder" in name else old
    )
    with pytest.raises(CheckpointError, match="big-endian"), open_torch_file(path):
        pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no checkpoint of PyTorch"),
        (b"hello", "no checkpoint of PyTorch"),
        (pickle.dumps({"a": 1}), "damaged or cut off"),
        (pickle.dumps(1) + pickle.dumps(2) + pickle.dumps({}), "a pickle, but no checkpoint of PyTorch"),
        (struct.pack("<4s22x", b"PK\x05\x06")[:22], "a zip archive, but no checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason), open_torch_file(tmp_path / "file"):
        pass


def test_the_reader_replaces_all_that_could_run_something() -> None:
    """Of the unpickler's instructions, those that call or change what a file names."""
    ours, theirs = SafeUnpickler.dispatch, pickle._Unpickler.dispatch
    replaced = {pickletools.code2op[chr(code)].name for code in theirs if ours[code] is not theirs[code]}
    measured = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    assert replaced == {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"} | measured  # INST and OBJ come to `_instantiate`
    assert {"find_class", "persistent_load", "_instantiate"} <= vars(SafeUnpickler).keys()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x04\x8c\x07pathlib\x8c\x08os.mkdir\x93.", "nothing of it was run"),
        (b"S'MARKER'\n(S'MARKER'\ntR.", "calls something that isn't named"),
    ],
)
def test_names_by_the_back_door_are_refused(program: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load(program)


def test_views_of_a_storage_in_the_oldest_files() -> None:
    reader = SafeUnpickler(io.BytesIO(), Path("file"))
    storage = reader.persistent_load(("storage", Name("torch", "FloatStorage"), "0", "cpu", 10, ("1", 3, 5)))
    tensor = reader._call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, 1, (2,), (1,), False, {}))
    assert (tensor.offset, tensor.shape, tensor.length) == (4, (2,), 10)
