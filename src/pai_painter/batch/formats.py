# SPDX-License-Identifier: Apache-2.0
"""What pictures are written as. Each kind of output has parts, one a shard, and a way to join them."""

import base64
import json
import os
import re
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, get_args

from ..data.tsv import Schema
from .captions import CaptionFile
from .pictures import PaintedRow, Picture

__all__ = ["FormatName", "OutputFormat", "Part", "find_format", "sync"]

FormatName = Literal["tsv", "parquet", "png", "webp", "webdataset"]

_ENDINGS: dict[str, FormatName] = {".tsv": "tsv", ".parquet": "parquet", ".tar": "webdataset", "": "png"}
_LINE_BREAK = re.compile(r" *[\t\r\n]+ *")
_BLOCK, _RECORD = 512, 10240
# Readers of Parquet hold one row group at a time.
_GROUP_ROWS, _GROUP_BYTES = 512, 32 * 1024 * 1024


class Part(ABC):
    """
    One shard's output while it grows.

    Attributes:
        joined_lines (`int`): Captions in which line breaks and tabs became blanks.
    """

    joined_lines = 0

    @abstractmethod
    def write(self, row: PaintedRow) -> None:
        """Adds a row."""

    @abstractmethod
    def close(self) -> None:
        """Brings everything to the disk."""

    @abstractmethod
    def discard(self) -> None:
        """Lets go of the file; what it is worth no longer matters."""


class OutputFormat(ABC):
    """
    Attributes:
        name (`str`): As the user calls it.
        picture_kind (`str`): `"png"` or `"webp"`.
    """

    name: FormatName
    picture_kind: Literal["png", "webp"] = "png"

    @property
    def options(self) -> dict[str, Any]:
        """What decides about the bytes."""
        return {"format": self.name}

    def part_path(self, parts: Path, shard: int) -> Path:
        """Where a shard goes within the folder of parts."""
        return parts / f"{shard:06d}.{self.name}"

    @abstractmethod
    def open_part(self, path: Path, shard: int) -> Part:
        """A new part, written to `path`, until it is renamed."""

    @abstractmethod
    def join(self, parts: Sequence[Path], target: Path) -> None:
        """Makes the whole of all parts, in order; they stay as they are, or are in the whole already."""


def find_format(
    output: Path, name: FormatName | None = None, output_schema: str | None = None, source: CaptionFile | None = None
) -> OutputFormat:
    """
    The format that is asked for, or else the one that the output's name ends in: .tsv, .parquet, .tar (WebDataset), or
    none for a folder of PNG.

    Args:
        output (`Path`): Where the pictures go.
        name (`str`, *optional*): `"tsv"`, `"parquet"`, `"png"`, `"webp"` or `"webdataset"`.
        output_schema (`str`, *optional*): Columns of a TSV, by default `idx,text,gen_imgbase64`.
        source ([`CaptionFile`], *optional*): Its names for the columns of ids and captions may be used, too.

    Raises:
        ValueError: if the ending is of no format, or if a column isn't known.
    """
    if name is None:
        name = _ENDINGS.get(output.suffix.lower())
        if name is None:
            raise ValueError(
                f"{output} ends in none of .tsv, .parquet and .tar, nor is it named like a folder: please rename it, "
                f"or set the format."
            )
    if name not in get_args(FormatName):
        raise ValueError(f"The format is one of {', '.join(get_args(FormatName))}, not {name!r}.")
    if name == "tsv":
        schema = Schema.parse(TsvFormat.default_schema if output_schema is None else output_schema)
        aliases = {} if source is None else {source.id_column: "idx", source.caption_column: "text"}
        return TsvFormat(schema, aliases)
    if output_schema is not None:
        raise ValueError(f"An output schema is for TSV; {output} becomes {name}.")
    if name in ("png", "webp"):
        return FolderFormat(name)
    return ParquetFormat() if name == "parquet" else WebDatasetFormat()


class _FilePart(Part):
    def __init__(self, path: Path) -> None:
        self.file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - closed by `close` or `discard`

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def discard(self) -> None:
        try:
            self.file.close()
        except OSError:  # what was still in its buffer doesn't fit on the disk either
            self.file.close()


class TsvFormat(OutputFormat):
    """
    Tab-separated rows without header. Pictures are PNG in standard base64; several of one caption, and their seeds and
    scores, are a JSON array.

    Args:
        schema ([`Schema`]): The columns: any of `idx`, `text`, `gen_imgbase64` (needed), `seed` and `score`.
        aliases (`dict[str, str]`): Other names for these.

    Raises:
        ValueError: if a column isn't known, or if there is none of pictures.
    """

    name = "tsv"
    default_schema = "idx,text,gen_imgbase64"
    _columns = ("idx", "text", "gen_imgbase64", "seed", "score")

    def __init__(self, schema: Schema, aliases: dict[str, str]) -> None:
        self.schema = schema
        self.cells = tuple(aliases.get(column, column) for column in schema.columns)
        unknown = [name for name, cell in zip(schema.columns, self.cells, strict=True) if cell not in self._columns]
        if unknown or "gen_imgbase64" not in self.cells:
            reason = f"has {unknown[0]!r}" if unknown else "lacks gen_imgbase64"
            raise ValueError(
                f"The output schema {','.join(schema.columns)!r} {reason}: please name gen_imgbase64 and any of idx, "
                f"text, seed and score."
            )

    @property
    def options(self) -> dict[str, Any]:
        return {"format": self.name, "output_schema": ",".join(self.cells)}

    def open_part(self, path: Path, shard: int) -> Part:
        return _TsvPart(path, self.cells)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        _concatenate(parts, target)


class _TsvPart(_FilePart):
    def __init__(self, path: Path, cells: tuple[str, ...]) -> None:
        super().__init__(path)
        self.cells = cells

    def write(self, row: PaintedRow) -> None:
        text = _LINE_BREAK.sub(" ", row.text)
        self.joined_lines += text != row.text
        values = {
            "idx": row.idx,
            "text": text,
            "gen_imgbase64": _cell([base64.b64encode(picture.data).decode("ascii") for picture in row.pictures]),
            "seed": _cell([picture.seed for picture in row.pictures]),
            "score": _cell([round(picture.score, 4) for picture in row.pictures]),
        }
        self.file.write(("\t".join(values[cell] for cell in self.cells) + "\n").encode())


def _cell(values: list[Any]) -> str:
    return str(values[0]) if len(values) == 1 else json.dumps(values)


class ParquetFormat(OutputFormat):
    """A row for each picture: `idx`, `text`, `image` (the datasets library's Image feature), `seed` and `score`."""

    name = "parquet"

    @cached_property
    def schema(self) -> Any:
        import datasets

        columns = {"idx": "string", "text": "string", "seed": "int64", "score": "float32"}
        features = {name: datasets.Value(kind) for name, kind in columns.items()}
        return datasets.Features({**features, "image": datasets.Image()}).arrow_schema

    def open_part(self, path: Path, shard: int) -> Part:
        return _ParquetPart(path, self.schema)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        import pyarrow.parquet

        whole = _ParquetPart(target, self.schema)
        try:
            for path in parts:
                with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as part:
                    for group in range(part.num_row_groups):
                        whole.writer.write_table(part.read_row_group(group, use_threads=False))
            whole.close()
        finally:
            whole.discard()


class _ParquetPart(_FilePart):
    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet

        from ..data.shards import HashedSink

        super().__init__(path)
        self.schema, self.size = schema, 0
        self.rows: list[dict[str, Any]] = []
        self.sink = HashedSink(self.file)  # type: ignore[arg-type]
        # Pictures are compressed already, and a dictionary of them would only be a copy.
        self.writer = pyarrow.parquet.ParquetWriter(self.sink, schema, compression="none", use_dictionary=False)

    def write(self, row: PaintedRow) -> None:
        for picture in row.pictures:
            image = {"bytes": picture.data, "path": None}
            self.rows.append(
                {"idx": row.idx, "text": row.text, "image": image, "seed": picture.seed, "score": picture.score}
            )
            self.size += len(picture.data)
        if len(self.rows) >= _GROUP_ROWS or self.size >= _GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        self._write_group()
        self.writer.close()
        super().close()

    def discard(self) -> None:
        self.sink.failed = True
        self.writer.close()
        super().discard()

    def _write_group(self) -> None:
        import pyarrow

        if self.rows:
            self.writer.write_table(pyarrow.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.size = [], 0


class FolderFormat(OutputFormat):
    """
    Picture files and a metadata.jsonl, as the datasets library reads them: `000000/00000012.png`, in one sub-folder for
    each shard; picture i of several is `00000012-i.png`.
    """

    def __init__(self, kind: Literal["png", "webp"]) -> None:
        self.name, self.picture_kind = kind, kind

    def part_path(self, parts: Path, shard: int) -> Path:
        # In the whole from the beginning: there may be too many pictures to move them one by one.
        return parts / "joined" / f"{shard:06d}"

    def open_part(self, path: Path, shard: int) -> Part:
        return _FolderPart(path, path.parent.parent / f"{shard:06d}.metadata", f"{shard:06d}", self.picture_kind)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        listings = [target.parent / f"{part.name}.metadata" for part in parts]
        _concatenate(listings, target / "metadata.jsonl")


class _FolderPart(Part):
    def __init__(self, path: Path, listing: Path, name: str, kind: str) -> None:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        self.path, self.name, self.kind, self.written = path, name, kind, [listing]
        self.listing = open(listing, "w", encoding="utf-8")  # noqa: SIM115 - closed by `close` or `discard`

    def write(self, row: PaintedRow) -> None:
        for i, picture in enumerate(row.pictures):
            file = f"{_key(row, i)}.{self.kind}"
            self.written.append(self.path / file)
            self.written[-1].write_bytes(picture.data)
            facts = {"file_name": f"{self.name}/{file}", **_facts(row, picture)}
            self.listing.write(json.dumps(facts, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.listing.close()
        for path in (*self.written, self.path):
            sync(path)

    def discard(self) -> None:
        try:
            self.listing.close()
        except OSError:
            self.listing.close()


class WebDatasetFormat(OutputFormat):
    """A tar archive with `00000012.png`, `00000012.txt` and `00000012.json` of each picture; ustar, without times."""

    name = "webdataset"

    def open_part(self, path: Path, shard: int) -> Part:
        return _TarPart(path)

    def join(self, parts: Sequence[Path], target: Path) -> None:
        _concatenate(parts, target, _close_tar)


class _TarPart(_FilePart):
    def write(self, row: PaintedRow) -> None:
        for i, picture in enumerate(row.pictures):
            facts = json.dumps(_facts(row, picture), ensure_ascii=False).encode()
            for ending, data in (("png", picture.data), ("txt", row.text.encode()), ("json", facts)):
                header = tarfile.TarInfo(f"{_key(row, i)}.{ending}")
                header.size = len(data)
                self.file.write(header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK))


def _close_tar(file: IO[bytes]) -> None:
    file.write(bytes(2 * _BLOCK))
    file.write(bytes(-file.tell() % _RECORD))


def _key(row: PaintedRow, i: int) -> str:
    return f"{row.number:08d}" if len(row.pictures) == 1 else f"{row.number:08d}-{i}"


def _facts(row: PaintedRow, picture: Picture) -> dict[str, Any]:
    return {"idx": row.idx, "text": row.text, "seed": picture.seed, "score": round(picture.score, 4)}


def _concatenate(parts: Sequence[Path], target: Path, finish: Any = lambda file: None) -> None:
    with open(target, "wb") as whole:
        for path in parts:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)
        finish(whole)
        whole.flush()
        os.fsync(whole.fileno())


def sync(path: Path) -> None:
    """Brings a file or a folder's names to the disk."""
    if path.is_dir() and os.name != "posix":  # there folders can't be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
