# SPDX-License-Identifier: Apache-2.0
"""Rows on the disk: a TSV becomes an Arrow table once, and is read from there without filling memory."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from ..image_processing_pai_painter import PaiPainterImageProcessor
from .pictures import BadPicture, decode_base64_picture, open_picture
from .tsv import BadRow, Schema, read_rows

__all__ = ["PictureRows", "hash_of_file", "load_rows"]

logger = logging.getLogger(__name__)

# Raised whenever the table's columns or the checks of a row change, so that old caches are left alone.
_LAYOUT = 2
# Rows written at a time: pictures are large, and a thousand of them, the default, are not little memory.
_BATCH = 32
_TABLE, _REJECTED = "rows.arrow", "rejected_rows.jsonl"
_FEATURES = datasets.Features(
    {
        "idx": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "picture": datasets.Value("binary"),
    }
)


def load_rows(
    path: str | Path,
    schema: str,
    caption_separator: str | None = None,
    max_bad_rows: int = 100,
    cache_dir: str | Path | None = None,
    rejects: str | Path | None = None,
) -> datasets.Dataset:
    """
    Checked rows of a TSV of captions and pictures.

    Args:
        path: TSV file, may end in `.gz`.
        schema: its columns, such as `idx:str:1,text:str:1,imgbase64:str:1`.
        caption_separator: splits the text column into several captions.
        max_bad_rows: more unusable rows than this are an error.
        cache_dir: where the Arrow table is kept; the datasets library's cache by default. Its name is a hash of the
            file's content and of the options, so that a changed file is never mistaken for the old one.
        rejects: JSON lines file for unusable rows (`file`, `line`, `idx`, `reason`).

    Returns:
        `datasets.Dataset` with the columns `idx` (str), `captions` (list of str), `picture` (encoded bytes).

    Raises:
        ValueError: if the file can't be used, holds no usable row or too many unusable ones.
    """
    path = Path(path)
    parsed = Schema.parse(schema)
    identity = [_LAYOUT, hash_of_file(path), parsed.columns, caption_separator]
    key = hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()[:24]
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_rows" / key
    if not folder.is_dir():
        _build(path, parsed, caption_separator, folder)
    rejected = (folder / _REJECTED).read_text(encoding="utf-8")
    bad = rejected.count("\n")
    if rejects is not None:
        _copy_rejected(rejected, Path(rejects))
    table = datasets.Dataset.from_file(str(folder / _TABLE))
    # Named by its content, so that what is computed from it can be found again by content, too.
    rows = datasets.Dataset(table.data, info=table.info, fingerprint=key)
    first: dict[str, Any] = json.loads(rejected.partition("\n")[0]) if bad else {"line": 1, "reason": "it is empty"}
    if bad > max_bad_rows or not len(rows):
        raise ValueError(
            f"{path} has {bad} unusable and {len(rows)} usable rows (the first, line {first['line']}: "
            f"{first['reason'].rstrip('.')}); at most {max_bad_rows} unusable ones are allowed (`max_bad_rows`). Is "
            f"`input_schema` ({schema}) its order of columns?"
        )
    if bad:
        where = "" if rejects is None else f" All are listed in {rejects}."
        logger.warning("%d rows of %s can't be used; line %d: %s%s", bad, path, first["line"], first["reason"], where)
    return rows


class PictureRows(Dataset[torch.Tensor]):
    """
    The pictures of rows, decoded when they are asked for.

    Items are asked for by row or by (epoch, row) and are pixels (3, height, width) in [-1, 1].
    """

    def __init__(self, rows: datasets.Dataset, processor: PaiPainterImageProcessor):
        self.rows, self.processor = rows, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> torch.Tensor:
        row = item if isinstance(item, int) else item[1]
        picture = open_picture(self.rows[row]["picture"])
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]


def hash_of_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(path: Path, schema: Schema, caption_separator: str | None, folder: Path) -> None:
    """
    Makes `folder` under another name and renames it, so that it is whole or not there.

    A second run that wants the same table waits; if the first is killed, its lock goes with it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _write_table(path, schema, caption_separator, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_table(path: Path, schema: Schema, caption_separator: str | None, folder: Path) -> None:
    table = str(folder / _TABLE)
    with (
        open(folder / _REJECTED, "w", encoding="utf-8") as rejects,
        datasets.arrow_writer.ArrowWriter(features=_FEATURES, path=table, writer_batch_size=_BATCH) as writer,
    ):

        def reject(bad: BadRow) -> None:
            record = {"file": str(bad.path), "line": bad.line_number, "idx": bad.idx, "reason": bad.reason}
            rejects.write(json.dumps(record, ensure_ascii=False) + "\n")

        for row in read_rows(path, schema, caption_separator=caption_separator, on_bad_row=reject):
            try:
                picture = decode_base64_picture(row.imgbase64 or "")
                open_picture(picture)
            except BadPicture as error:
                reject(BadRow(path, row.line_number, str(error), row.idx))
            else:
                writer.write({"idx": row.idx, "captions": row.captions, "picture": picture})
        writer.finalize()


def _copy_rejected(rejected: str, rejects: Path) -> None:
    """No bad rows, no file: not even one of an earlier run."""
    if rejected:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        rejects.write_text(rejected, encoding="utf-8")
    else:
        rejects.unlink(missing_ok=True)
