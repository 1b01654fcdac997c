# SPDX-License-Identifier: Apache-2.0
"""
Pickles read as data. A pickle is a program: it names functions and has them called. This reader never imports a name;
it gives back what tensors, arrays and containers hold, and everything else as an object that does nothing.
"""

import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

__all__ = [
    "CheckpointError",
    "Inert",
    "Name",
    "NumPyArray",
    "SafeUnpickler",
    "StoredTensor",
    "printable",
    "read_pickle",
    "reading",
]

# What training programs leave in their checkpoints beside tensors: callbacks, settings, paths. Read as `Inert`.
_HARMLESS = {
    *("argparse", "datetime", "easynlp", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf"),
    *("pathlib", "pytorch_lightning", "taming", "typing"),
    *("__main__", "main"),  # taming's own callbacks are defined in the script that trains
}
_BUILTINS = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object", "range"),
    *("set", "slice", "str", "tuple", "unicode"),
}
_MAX_TUPLE = 10_000  # members, those of the tuples within it included; a tensor's sizes are a handful
_ARRAY_DTYPE = re.compile(r"[fiub]\d{1,2}")


class CheckpointError(ValueError):
    """A file that can't be read, or must not be: the message is one sentence."""


@dataclass(frozen=True)
class Name:
    """What a pickle calls by name: a class or a function. It is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """Stands for an object of a class that isn't read; takes whatever the pickle puts into it and forgets it."""

    def __init__(self, name: Name):
        self.name = name

    def append(self, item: object) -> None:
        """As a list has it."""

    def extend(self, items: object) -> None:
        """As a list has it."""

    def add(self, item: object) -> None:
        """As a set has it."""

    def update(self, items: object) -> None:
        """As a set has it."""

    def __setitem__(self, key: object, value: object) -> None:
        """As a dictionary has it."""


@dataclass(frozen=True)
class StoredTensor:
    """
    Where a tensor's numbers are; see [`~torch_files.TorchFile.read`].

    Args:
        key (`str`): The storage's.
        dtype (`torch.dtype`): The storage's.
        length (`int`): Elements of the storage.
        offset (`int`): Of the first element in it.
        shape, stride (`tuple[int, ...]`): As of a tensor.
    """

    key: str
    dtype: torch.dtype
    length: int
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()


class NumPyArray:
    """An array, once the pickle has given its content."""

    def __init__(self, array: np.ndarray | None = None):
        self.array = np.empty(0) if array is None else array

    def fill(self, state: Any) -> None:
        """Takes what NumPy calls the array's state: version, shape, dtype, order and bytes."""
        _, shape, dtype, fortran, content = state
        self.array = _array(content, dtype, shape, "F" if fortran else "C")


class _ArrayType:
    """NumPy's dtype: a letter and a size, and the order of bytes."""

    def __init__(self, code: str):
        if not isinstance(code, str) or not _ARRAY_DTYPE.fullmatch(code):
            raise CheckpointError(f"It holds an array of {printable(code)}, which are no numbers.")
        self.code, self.order = code, "="

    def fill(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "=", "=": "="}[state[1]]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _ArrayType) or order not in ("C", "F"):
        raise CheckpointError("It holds an array that isn't stored as bytes.")
    array = np.frombuffer(content, dtype.dtype).reshape(_sizes(shape), order=order)
    return array.astype(dtype.dtype.newbyteorder("="), order="C", copy=False)


def _measuring(load: Callable[[Any], None]) -> Callable[["SafeUnpickler"], None]:
    def load_tuple(unpickler: "SafeUnpickler") -> None:
        load(unpickler)
        unpickler._measured(unpickler.stack[-1])  # type: ignore[attr-defined]

    return load_tuple


class SafeUnpickler(pickle._Unpickler):
    """
    Reads a pickle of any protocol. Python's unpickler in Python, not the one in C: each step that could run or change
    something is replaced below, and a number in the file can't make it reserve memory.

    Args:
        file: Positioned at the pickle.
        path: For error messages.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(_Bounded(file), encoding="utf-8", errors="replace")
        self.path = path
        self._tuples: dict[int, tuple[tuple, int]] = {}  # with their sizes; kept, so that none gets another's id

    def find_class(self, module: str, name: str) -> Name:
        """
        Raises:
            CheckpointError: if it is a name that no checkpoint needs.
        """
        found = Name(module, name)
        if found in _CALLS or _is_harmless(found):
            return found
        raise CheckpointError(
            f"{self.path} is refused: its pickle names {printable(found)}, which no checkpoint needs; nothing of it "
            f"was run."
        )

    def persistent_load(self, pid: Any) -> StoredTensor:
        """What PyTorch stores outside the pickle: ("storage", type, key, location, length), or older, a view too."""
        kind, storage_type, key, _, length, *view = pid
        is_storage = kind == "storage" and isinstance(storage_type, Name) and isinstance(key, str | int)
        if not is_storage or type(length) is not int or length < 0:
            raise CheckpointError(f"{self.path} refers to {printable(kind)}, which is no tensor.")
        return StoredTensor(str(key), _storage_dtype(storage_type), length, view[0][1] if view and view[0] else 0)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise CheckpointError(f"{self.path} is refused: its pickle calls something that isn't named.")
        if function in _CALLS:
            return self._measured(_CALLS[function](*arguments))
        return Inert(function)

    def _measured(self, made: Any) -> Any:
        """
        Tuples within tuples, of which a few bytes name a billion: Python would look at each to use one as a key.
        """
        if type(made) is tuple:
            size = len(made) + sum(self._tuples[id(each)][1] for each in made if id(each) in self._tuples)
            if size > _MAX_TUPLE:
                raise CheckpointError(f"{self.path} is refused: it holds more tuples within tuples than a model needs.")
            self._tuples[id(made)] = (made, size)
        return made

    def _load_call(self) -> None:
        arguments = self.stack.pop()  # type: ignore[attr-defined]  # typeshed leaves the stack out
        function = self.stack.pop()  # type: ignore[attr-defined]
        self.append(self._call(function, arguments))  # type: ignore[attr-defined]

    def _load_call_with_keywords(self) -> None:
        self.stack.pop()  # type: ignore[attr-defined]
        self._load_call()

    def _instantiate(self, klass: Any, arguments: Any) -> None:
        """The two oldest ways of making an object come here."""
        self.append(self._call(klass, tuple(arguments)))  # type: ignore[attr-defined]

    def _load_build(self) -> None:
        """Where other unpicklers set attributes."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, NumPyArray | _ArrayType):
            target.fill(state)

    for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[_code[0]] = _measuring(dispatch[_code[0]])
    dispatch[pickle.REDUCE[0]] = _load_call
    dispatch[pickle.NEWOBJ[0]] = _load_call
    dispatch[pickle.NEWOBJ_EX[0]] = _load_call_with_keywords
    dispatch[pickle.BUILD[0]] = _load_build


class _Bounded:
    """A file from which no more is asked for than there is: a reader reserves the memory before it reads."""

    def __init__(self, file: BinaryIO):
        self.file = file
        start = file.tell()
        self.end = file.seek(0, 2)
        file.seek(start)

    def read(self, size: int) -> bytes:
        if size < 0 or size > self.end - self.file.tell():
            raise EOFError("it ends too early")
        return self.file.read(size)

    def readinto(self, buffer: bytearray) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)

    def readline(self) -> bytes:
        return self.file.readline()


def read_pickle(path: Path) -> Any:
    """
    Reads a file that is a single pickle, such as PaddlePaddle's.

    Raises:
        OSError: if it can't be read.
        CheckpointError: if it is damaged, or names what no checkpoint needs.
    """
    with path.open("rb") as file, reading(path):
        return SafeUnpickler(file, path).load()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """
    For the time in which a file's structure is read: whatever goes wrong then, it is damaged.

    Raises:
        CheckpointError: if something went wrong; `OSError` and `MemoryError` pass.
    """
    try:
        yield
    except (CheckpointError, MemoryError, OSError) as error:
        if not isinstance(error, CheckpointError) or str(path) in str(error):
            raise
        raise CheckpointError(f"{path} can't be read: {str(error)[0].lower()}{str(error)[1:]}") from error
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or "it ends too early"
        raise CheckpointError(f"{path} is damaged or cut off ({reason}).") from error


def _is_harmless(found: Name) -> bool:
    if "." in found.name:
        return False
    if found.module in ("builtins", "__builtin__"):
        return found.name in _BUILTINS
    if found.module in ("torch", "torch.cuda"):
        is_dtype = isinstance(getattr(torch, found.name, None), torch.dtype)
        return is_dtype or found.name.endswith("Storage") or found.name in ("Size", "Tensor", "device")
    if found.module == "torch.nn.parameter":
        return found.name == "Parameter"
    if found.module.startswith("torch.optim."):
        return found.name[0].isupper()
    if found.module == "numpy":
        return found.name in ("dtype", "ndarray")
    return found.module.partition(".")[0] in _HARMLESS


def _storage_dtype(storage_type: Name) -> torch.dtype:
    known = {
        "BFloat16": torch.bfloat16, "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8,
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "Int": torch.int32,
        "Long": torch.int64, "Short": torch.int16,
    }  # fmt: skip
    kind = storage_type.name.removesuffix("Storage")
    if storage_type.module not in ("torch", "torch.cuda") or kind not in known:
        raise CheckpointError(f"It holds tensors of {printable(storage_type)}, which aren't supported.")
    return known[kind]


def _sizes(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or any(type(size) is not int or size < 0 for size in sizes):
        raise CheckpointError("It holds a tensor whose sizes are no numbers.")
    return sizes


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """A view of a storage. The gradients' hooks are among what isn't looked at."""
    shape, stride = _sizes(shape), _sizes(stride)
    if not isinstance(storage, StoredTensor) or type(offset) is not int or offset < 0 or len(shape) != len(stride):
        raise CheckpointError("It holds a tensor without numbers.")
    offset += storage.offset
    count = int(np.prod(shape, dtype=object))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if count and (last >= storage.length or count > storage.length):
        raise CheckpointError(f"It holds a tensor of {count} numbers, of which it has {storage.length}.")
    return StoredTensor(storage.key, storage.dtype, storage.length, offset, shape, stride)


def _latin(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("It holds a text that isn't one.")
    return text.encode("latin-1")


def _buffer(content: Any = b"", *rest: Any) -> bytes | bytearray | Inert:
    """`bytes` and `bytearray`: of bytes, not of a number, which would be a size."""
    return content if isinstance(content, bytes | bytearray) and not rest else Inert(Name("builtins", "bytes"))


def _container(make: Callable) -> Callable:
    def made(content: Any = (), *_: Any) -> Any:
        return make(content) if isinstance(content, list | tuple | dict) else make()

    return made


_CALLS: dict[Name, Callable] = {
    Name("_vqgans", "encode"): _latin,
    Name("collections", "OrderedDict"): _container(dict),
    Name("collections", "defaultdict"): lambda *_: {},
    Name("copy_reg", "_reconstructor"): lambda cls, *_: Inert(cls),
    Name("copyreg", "_reconstructor"): lambda cls, *_: Inert(cls),
    Name("numpy", "dtype"): lambda code, *_: _ArrayType(code),
    Name("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
for _module in ("builtins", "__builtin__"):
    _CALLS[Name(_module, "bytes")] = _CALLS[Name(_module, "bytearray")] = _buffer
    for _type in (dict, frozenset, list, set, tuple):
        _CALLS[Name(_module, _type.__name__)] = _container(_type)
for _module in ("numpy.core", "numpy._core"):
    _CALLS[Name(f"{_module}.multiarray", "_reconstruct")] = lambda *_: NumPyArray()
    _CALLS[Name(f"{_module}.multiarray", "scalar")] = lambda *_: Inert(Name("numpy", "scalar"))
    _CALLS[Name(f"{_module}.numeric", "_frombuffer")] = lambda content, dtype, shape, order: NumPyArray(
        _array(content, dtype, shape, order)
    )


def printable(value: object) -> str:
    """A stranger's name on one line, without what a terminal would obey; of anything else only the kind."""
    text = str(value) if isinstance(value, str | int | Name) else f"a {type(value).__name__}"
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= 80 else f"{text[:80]}…"
