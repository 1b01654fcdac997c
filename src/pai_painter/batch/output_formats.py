# SPDX-License-Identifier: Apache-2.0
"""What pictures are written as: a TSV, a Parquet file, or a folder of PNG."""

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from ..data.table_files import Schema
from ..whole_files import sync

FormatName = Literal["tsv", "parquet", "png"]

_ENDINGS: dict[str, FormatName] = {".tsv": "tsv", ".parquet": "parquet", "": "png"}
_COLUMNS = ("idx", "text", "gen_imgbase64", "seed", "score")
_NOT_IN_A_CELL = re.compile(r" *[\t\r\n\0]+ *")
_ROWS_OF_A_GROUP = 256  # readers of Parquet hold one row group at a time
_ROWS_OF_A_FOLDER = 1000


@dataclass(frozen=True, slots=True)
class PaintedRow:
    """A row's number among all rows, from 0, its id, its caption as written, and its pictures."""

    number: int
    idx: str
    text: str
    pictures: list[tuple[str, int, float]]  # PNG in base64, seed, score


def find_format(
    output: Path, name: FormatName | None, output_schema: str | None, aliases: Mapping[str, str]
) -> tuple[FormatName, list[str]]:
    """
    The format that is asked for, or else the one that the output's name ends in, and the columns of a TSV, in which
    `aliases` are other names for `idx` and `text`. A `ValueError` if the ending is of no format, or a column not known.
    """
    name = name or _ENDINGS.get(output.suffix.lower())
    if name is None or name not in get_args(FormatName):
        known = ", ".join(get_args(FormatName))
        raise ValueError(f"The format of {output} is not known by its name: please set one of {known}.")
    if name != "tsv" and output_schema is not None:
        raise ValueError(f"An output schema is for TSV; {output} becomes {name}.")
    columns = Schema.parse(output_schema or "idx,text,gen_imgbase64").columns
    cells = [aliases.get(column, column) for column in columns]
    if "gen_imgbase64" not in cells or not {*cells} <= {*_COLUMNS}:
        known = "gen_imgbase64 and any of idx, text, seed and score"
        raise ValueError(f"The output schema must name {known}, got {','.join(columns)!r}.")
    return name, cells if name == "tsv" else []


def write_output(name: FormatName, cells: list[str], path: Path, rows: Iterable[PaintedRow]) -> None:
    """Makes a new file or folder, and brings it to the disk; for `name` and `cells` see [`find_format`]."""
    if name == "png":
        _write_folder(path, rows)
    elif name == "parquet":
        _write_parquet(path, rows)
    else:
        _write_tsv(path, cells, rows)
    if path.is_file():
        sync(path)
    elif os.name == "posix":
        os.sync()  # once for all files


def _write_tsv(path: Path, cells: list[str], rows: Iterable[PaintedRow]) -> None:
    """Without header or quoting; several pictures of one caption, their seeds and scores, are a JSON array."""

    def cell(values: Sequence[Any]) -> str:
        return str(values[0]) if len(values) == 1 else json.dumps(values)

    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            pngs, seeds, scores = zip(*row.pictures, strict=True)
            values = {"idx": row.idx, "text": _NOT_IN_A_CELL.sub(" ", row.text)}
            values |= {"gen_imgbase64": cell(pngs), "seed": cell(seeds)}
            values["score"] = cell([round(score, 4) for score in scores])
            file.write("\t".join(values[cell] for cell in cells) + "\n")


def _write_parquet(path: Path, rows: Iterable[PaintedRow]) -> None:
    """A row for each picture: `idx`, `text`, `seed`, `score`, and `image`, the datasets library's Image feature."""
    import datasets
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {"idx": "string", "text": "string", "seed": "int64", "score": "float32"}
    features = {**{name: datasets.Value(kind) for name, kind in kinds.items()}, "image": datasets.Image()}
    schema = datasets.Features(features).arrow_schema
    pictures = (
        {"idx": row.idx, "text": row.text, "seed": seed, "score": score, "image": {"bytes": base64.b64decode(png)}}
        for row in rows
        for png, seed, score in row.pictures
    )
    # Pictures are compressed already, and a dictionary of them would only be a copy.
    with ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while group := list(islice(pictures, _ROWS_OF_A_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _write_folder(path: Path, rows: Iterable[PaintedRow]) -> None:
    """
    Picture files and a metadata.jsonl, as the datasets library reads them: `000000/00000012.png`, a thousand rows in
    each sub-folder; picture i of several is `00000012-i.png`.
    """
    path.mkdir()
    with open(path / "metadata.jsonl", "w", encoding="utf-8") as listing:
        for row in rows:
            folder = f"{row.number // _ROWS_OF_A_FOLDER:06d}"
            (path / folder).mkdir(exist_ok=True)
            for i, (png, seed, score) in enumerate(row.pictures):
                name = f"{folder}/{row.number:08d}{f'-{i}' if len(row.pictures) > 1 else ''}.png"
                (path / name).write_bytes(base64.b64decode(png))
                facts = {"file_name": name, "idx": row.idx, "text": row.text, "seed": seed, "score": round(score, 4)}
                listing.write(json.dumps(facts, ensure_ascii=False) + "\n")
