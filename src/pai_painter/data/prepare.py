# SPDX-License-Identifier: Apache-2.0
"""Any source of captions and pictures to checked shards: what `pai-painter prepare` does."""

import base64
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow
from PIL import Image
from pyarrow.parquet import ParquetWriter
from tqdm import trange

from ..whole_files import new_folder
from .open_picture import open_picture, picture_format
from .row_cache import load_rows, mapped
from .sources import FEATURES, DataSource

_LAYOUT = "shards of pai-painter, 3"
_MANIFEST, _REJECTED = "manifest.json", "rejected_rows.jsonl"
_LINE_BREAK = re.compile(r" *[\t\r\n]+ *")
_SCHEMA = datasets.Features(idx=FEATURES["idx"], text=FEATURES["idx"], image=datasets.Image()).arrow_schema


def prepare_rows(
    source: DataSource,
    output: Path,
    *,
    format: Literal["tsv", "parquet"] = "tsv",
    shard_size: int = 10_000,
    size: int | None = None,
    caption_separator: str | None = None,
    workers: int = 1,
    max_bad_rows: int = 100,
    force: bool = False,
    cache_dir: str | Path | None = None,
) -> dict[str, Any]:
    """
    Writes the rows of a source, checked and cached as training does it, into shards.

    Args:
        output: a new folder, which is there when all of it is written.
        format: `"tsv"` (idx, text, imgbase64) or `"parquet"` (idx, text and the datasets library's Image).
        size: pictures whose shorter side has more pixels are shrunk to this, as JPEG if they were JPEG or WebP and as
            PNG otherwise. The files of all others are kept byte for byte.
        caption_separator: stands between several captions of one picture.
        workers, max_bad_rows, cache_dir: see [`~data.row_cache.load_rows`].
        force: replace a folder that holds nothing but what its own manifest names.

    Returns:
        The manifest: `files`, `rows` in them, `rejected` rows (listed in rejected_rows.jsonl), and `joined_lines`, the
        rows in which tabs and line breaks became spaces.

    Raises:
        ValueError: if an option is out of range, too few rows can be used, or the source lies in the folder.
        OSError: if the folder holds other things, or can't be written to.
    """
    options = {"format": format, "shard_size": shard_size, "size": size, "caption_separator": caption_separator}
    if format not in ("tsv", "parquet"):
        raise ValueError(f"The format of shards is tsv or parquet, not {format!r}.")
    if shard_size < 1 or (size is not None and size < 1):
        raise ValueError(f"shard_size ({shard_size}) and size ({size}) must be at least 1.")
    if caption_separator is not None and _LINE_BREAK.search(caption_separator):
        raise ValueError("The captions of a row stand on one line: caption_separator can't be a tab or line break.")
    with new_folder(output, source.paths, force, _files_of) as (folder, _):
        rejects, files = folder / _REJECTED, [_MANIFEST]
        rows = load_rows(source, max_bad_rows, cache_dir, rejects, workers)
        rejected = rejects.read_bytes().count(b"\n") if rejects.exists() else 0
        files += [_REJECTED] * (rejected > 0)
        joined = _check_captions(rows, caption_separator)
        shrunk = rows if size is None else mapped(partial(_shrink, size=size), rows, workers)
        cells = (_cells_of(row, caption_separator or "") for row in shrunk)
        for number in trange(-(-len(rows) // shard_size), desc="Writing shards", disable=None, leave=False):
            files.append(f"shard-{number:05d}.{format}")
            _write_shard(islice(cells, shard_size), folder / files[-1], format)
        made = {"rows": len(rows), "rejected": rejected, "joined_lines": joined, "files": files}
        manifest = {"layout": _LAYOUT, "source": rows._fingerprint, **options, **made}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _files_of(output: Path) -> list[str]:
    """The files of an earlier run, by its manifest."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or not ours
        manifest = json.loads((output / _MANIFEST).read_bytes())
        if manifest["layout"] == _LAYOUT:
            return list(manifest["files"])
    return []


def _check_captions(rows: datasets.Dataset, separator: str | None) -> int:
    """In how many rows line breaks will be joined; a `ValueError` if captions can't be told apart."""
    joined = 0
    for row in rows.select_columns(["idx", "captions"]):
        if len(row["captions"]) > 1 and separator is None:
            count = len(row["captions"])
            raise ValueError(f"The row {row['idx']!r} has {count} captions: please give a --caption-separator.")
        joined += any(_LINE_BREAK.search(caption) for caption in row["captions"])
    return joined


def _cells_of(row: dict[str, Any], separator: str) -> dict[str, Any]:
    idx, text = (_LINE_BREAK.sub(" ", cell) for cell in (row["idx"], separator.join(row["captions"])))
    return {"idx": idx, "text": text, "image": {"bytes": row["picture"], "path": None}}


def _write_shard(rows: Iterator[dict[str, Any]], path: Path, format: str) -> None:
    if format == "parquet":
        # Pictures are compressed already, and a dictionary of them would only be a copy.
        with ParquetWriter(path, _SCHEMA, compression="none", use_dictionary=False) as table:
            for group in iter(lambda: list(islice(rows, 64)), []):  # readers hold a whole one in memory
                table.write_table(pyarrow.Table.from_pylist(group, schema=_SCHEMA))
        return
    with open(path, "wb") as file:
        for row in rows:
            picture = base64.b64encode(row["image"]["bytes"]).decode("ascii")
            file.write(f"{row['idx']}\t{row['text']}\t{picture}\n".encode())


def _shrink(row: dict[str, Any], size: int) -> dict[str, Any]:
    """The row, with a smaller picture if its shorter side has more than `size` pixels."""
    picture = open_picture(row["picture"])
    shorter = min(picture.size)
    if shorter <= size:
        return row
    width, height = (max(1, round(side * size / shorter)) for side in picture.size)
    shrunk, file = picture.resize((width, height), Image.Resampling.BICUBIC), io.BytesIO()
    if picture_format(row["picture"]) in ("JPEG", "WEBP"):
        shrunk.save(file, "JPEG", quality=95, subsampling=0)
    else:
        shrunk.save(file, "PNG")
    return {**row, "picture": file.getvalue()}
