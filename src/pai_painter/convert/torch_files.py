# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save`, in today's format (a zip) and in that before PyTorch 1.6; read without PyTorch's loader."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .safe_pickle import CheckpointError, SafeUnpickler, StoredTensor, reading

__all__ = ["TorchFile", "open_torch_file"]

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_PICKLE = 256 * 2**20  # of names and shapes; a real one has less than one MiB


class TorchFile:
    """
    An open checkpoint.

    Args:
        path: The file.
        file: The same, open.

    Attributes:
        content: What was saved. Its tensors are [`StoredTensor`]s, whose numbers [`~TorchFile.read`] fetches.

    Raises:
        CheckpointError: if it is no such file, is damaged, or isn't safe to read.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file = path, file
        # Of the storages: start, size in bytes, checksum (which the older format doesn't have).
        self._places: dict[str, tuple[int, int, int | None]] = {}
        with reading(path):
            start = file.read(2)
            file.seek(0)
            if start == b"PK":
                self.content = self._open_zip(zipfile.ZipFile(file))
            elif start[:1] == b"\x80":
                self.content = self._open_legacy()
            else:
                raise CheckpointError(f"{path} is no checkpoint of PyTorch.")

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """
        Fetches a tensor's numbers.

        Raises:
            CheckpointError: if they aren't all there.
        """
        with reading(self.path):
            start, size, checksum = self._places[stored.key]
            if not stored.length:
                return torch.empty(stored.shape, dtype=stored.dtype)
            self._file.seek(start)
            content = bytearray(self._file.read(size))
            if len(content) != size or size < stored.length * stored.dtype.itemsize:
                raise CheckpointError(f"{self.path} is damaged or cut off (numbers are missing).")
            if checksum is not None and zlib.crc32(content) != checksum:
                raise CheckpointError(f"{self.path} is damaged (a checksum doesn't fit).")
            flat = torch.frombuffer(content, dtype=stored.dtype, count=stored.length)
            return flat.as_strided(stored.shape, stored.stride, stored.offset).clone(
                memory_format=torch.contiguous_format
            )

    def _open_zip(self, archive: zipfile.ZipFile) -> Any:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{self.path} is a zip archive, but no checkpoint of PyTorch.")
        root = pickles[0].removesuffix("/data.pkl")
        if f"{root}/constants.pkl" in entries or any(name.startswith(f"{root}/code/") for name in entries):
            raise CheckpointError(
                f"{self.path} is a TorchScript archive, which is a program and not read; please save the model's "
                f"`state_dict()` instead."
            )
        size = sum(entry.file_size for entry in archive.infolist())
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        if packed or size > self._size() or len(entries) != len(archive.infolist()):
            raise CheckpointError(
                f"{self.path} is refused: it unpacks to {size:,} bytes, but PyTorch packs and repeats nothing."
            )
        order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in entries else b"little"
        if order != b"little":
            raise CheckpointError(f"{self.path} has its numbers in the order of a big-endian machine.")
        for name, entry in entries.items():
            if name.startswith(f"{root}/data/"):
                self._places[name.removeprefix(f"{root}/data/")] = (self._start_of(entry), entry.file_size, entry.CRC)
        if entries[pickles[0]].file_size > _MAX_PICKLE:
            raise CheckpointError(f"{self.path} is refused: it has far more names than a model.")
        return SafeUnpickler(io.BytesIO(archive.read(pickles[0])), self.path).load()

    def _start_of(self, entry: zipfile.ZipInfo) -> int:
        """Where a stored file's bytes begin: behind its own header, whose length the directory doesn't tell."""
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{self.path} is damaged or cut off (a header is missing).")
        name, extra = struct.unpack("<HH", header[26:30])
        start = entry.header_offset + 30 + name + extra
        if start + entry.file_size > self._size():
            raise CheckpointError(f"{self.path} is damaged or cut off (numbers are missing).")
        return start

    def _open_legacy(self) -> Any:
        magic, protocol, system = (SafeUnpickler(self._file, self.path).load() for _ in range(3))
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
            raise CheckpointError(f"{self.path} is a pickle, but no checkpoint of PyTorch.")
        if not system["little_endian"]:
            raise CheckpointError(f"{self.path} has its numbers in the order of a big-endian machine.")
        unpickler = _Noting(self._file, self.path)
        content = unpickler.load()
        for key in SafeUnpickler(self._file, self.path).load():
            (length,) = struct.unpack("<q", self._file.read(8))
            size = length * unpickler.itemsizes[key]
            start = self._file.tell()
            if length < 0 or start + size > self._size():
                raise CheckpointError(f"{self.path} is damaged or cut off (numbers are missing).")
            self._places[key] = (start, size, None)
            self._file.seek(start + size)
        return content

    def _size(self) -> int:
        position = self._file.tell()
        size = self._file.seek(0, 2)
        self._file.seek(position)
        return size


class _Noting(SafeUnpickler):
    """The storages follow the pickle in this format, and only it says what they are made of."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file, path)
        self.itemsizes: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> StoredTensor:
        stored = super().persistent_load(pid)
        self.itemsizes[stored.key] = stored.dtype.itemsize
        return stored


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """
    Opens a checkpoint for as long as its tensors are read.

    Raises:
        OSError: if it can't be read.
        CheckpointError: if it is no such file, is damaged, or isn't safe to read.
    """
    with path.open("rb") as file:
        yield TorchFile(path, file)
