# SPDX-License-Identifier: Apache-2.0
"""Tables with the pictures in them: EasyNLP's TSV, and Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow
import pyarrow.parquet

from .file_kinds import kind_of_file
from .picture_rows import Columns, FileSource, PictureRow, Record, RowReader
from .pictures import BadPicture, decode_base64_picture
from .tsv import BadRow, Layout, Schema, open_lines, parse_row

__all__ = ["ParquetFiles", "TsvFiles"]

_BATCH = 16  # rows of a Parquet file held at a time: pictures are large


@dataclass(frozen=True)
class TsvFiles(FileSource):
    """
    Tab-separated files without header, plain or gzip, with pictures in base64.

    Args:
        schema (`Schema`): The order of their columns.
    """

    schema: Schema = field(kw_only=True)

    def __post_init__(self) -> None:
        _ = self.layout  # a missing column is an error now
        for path in self.paths:
            open_lines(path)

    @cached_property
    def layout(self) -> Layout:
        has_ids = self.columns.idx != Columns.idx or self.columns.idx in self.schema.columns
        image = "imgbase64" if self.columns.image is None else self.columns.image
        idx = self.columns.idx if has_ids else None
        return Layout(self.schema, idx, self.columns.caption, image, self.columns.caption_separator)

    @property
    def options(self) -> list[Any]:
        layout = self.layout
        used = [layout.id_column, layout.text_column, layout.picture_column, layout.caption_separator]
        return ["tsv", self.schema.columns, *used]

    @property
    def advice(self) -> str:
        return f" Is `input_schema` ({','.join(self.schema.columns)}) its order of columns?"

    def records(self, part: int) -> Iterator[Record]:
        for line_number, line in open_lines(self.paths[part]):
            yield Record(part, line_number, line)

    def read(self, record: Record) -> PictureRow:
        file = self.parts[record.part]
        row = parse_row(file, record.line, record.content, self.layout)
        idx = row.idx if self.layout.id_column is not None else self.own_id(record, record.line)
        try:
            picture = decode_base64_picture(row.imgbase64 or "")
        except BadPicture as error:
            raise BadRow(file, record.line, str(error), idx) from error
        return PictureRow(file, record.line, idx, row.text, row.captions, picture)


@dataclass(frozen=True)
class ParquetFiles(FileSource):
    """Parquet files; pictures are bytes, base64 or the datasets library's Image feature."""

    def __post_init__(self) -> None:
        for path in self.paths:
            kind = kind_of_file(path)
            if kind != "a Parquet file":
                raise ValueError(f"{path} is no Parquet file: it looks like {kind}.")
            try:
                metadata = pyarrow.parquet.read_metadata(path)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{path} is a damaged Parquet file: {_first_line(error)}") from error
            self.columns.check(str(path), metadata.schema.to_arrow_schema().names, self.image)
            if not metadata.num_rows:
                raise ValueError(f"{path} is empty: it has no rows.")

    @property
    def image(self) -> str:
        return "image" if self.columns.image is None else self.columns.image

    @cached_property
    def _readers(self) -> list[RowReader]:
        there = [pyarrow.parquet.read_schema(path).names for path in self.paths]
        return [RowReader(self, self.columns, self.image, self.columns.idx in names) for names in there]

    @property
    def options(self) -> list[Any]:
        return ["parquet", self.columns.idx, self.columns.caption, self.image, self.columns.caption_separator]

    def records(self, part: int) -> Iterator[Record]:
        wanted = [self.columns.caption, self.image]
        if self._readers[part].has_ids:
            wanted.append(self.columns.idx)
        path, line = self.paths[part], 0
        try:
            # What is held at once is about two row groups of the file, however many there are.
            with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
                    for values in batch.to_pylist():
                        line += 1
                        yield Record(part, line, values)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged after row {line}: {_first_line(error)}") from error

    def read(self, record: Record) -> PictureRow:
        return self._readers[record.part].read(record, record.content)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") + "."
