# SPDX-License-Identifier: Apache-2.0
"""Rows on the disk: a TSV becomes an Arrow table once, and is read from there without filling memory."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset

from ..image_processing_pai_painter import PaiPainterImageProcessor
from .pictures import BadPicture, decode_base64_picture, open_picture
from .tsv import BadRow, Schema, read_rows

__all__ = ["PictureRows", "hash_of_file", "load_rows"]

logger = logging.getLogger(__name__)

# Raised whenever the table's columns or the checks of a row change, so that old caches are left alone.
_LAYOUT = 1


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
    key = hashlib.sha256(
        json.dumps([_LAYOUT, hash_of_file(path), schema, caption_separator], ensure_ascii=False).encode()
    ).hexdigest()[:24]
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_rows" / key
    table, rejected_copy = folder / "table", folder / "rejected_rows.jsonl"
    if not (folder / "done").is_file():
        _build_table(path, parsed, caption_separator, table, rejected_copy, key)
        (folder / "done").touch()
    rejected = rejected_copy.read_text(encoding="utf-8")
    bad = rejected.count("\n")
    if rejects is not None and bad:
        Path(rejects).parent.mkdir(parents=True, exist_ok=True)
        Path(rejects).write_text(rejected, encoding="utf-8")
    if bad:
        first = json.loads(rejected.partition("\n")[0])
        logger.warning("%d rows of %s can't be used; line %d: %s", bad, path, first["line"], first["reason"])
    rows = datasets.load_from_disk(str(table))
    if bad > max_bad_rows or not len(rows):
        reason = json.loads(rejected.partition("\n")[0])["reason"] if bad else "it is empty"
        raise ValueError(
            f"{path} has {bad} unusable and {len(rows)} usable rows (the first: {reason}); at most {max_bad_rows} "
            f"unusable ones are allowed (`max_bad_rows`). Is `input_schema` ({schema}) its order of columns?"
        )
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


def _build_table(
    path: Path, schema: Schema, caption_separator: str | None, table: Path, rejected: Path, key: str
) -> None:
    rejected.parent.mkdir(parents=True, exist_ok=True)
    with open(rejected, "w", encoding="utf-8") as rejects:

        def reject(bad: BadRow) -> None:
            record = {"file": str(bad.path), "line": bad.line_number, "idx": bad.idx, "reason": bad.reason}
            rejects.write(json.dumps(record, ensure_ascii=False) + "\n")

        def usable_rows() -> Iterator[dict[str, Any]]:
            for row in read_rows(path, schema, caption_separator=caption_separator, on_bad_row=reject):
                try:
                    picture = decode_base64_picture(row.imgbase64 or "")
                    open_picture(picture)
                except BadPicture as error:
                    reject(BadRow(path, row.line_number, str(error), row.idx))
                else:
                    yield {"idx": row.idx, "captions": row.captions, "picture": picture}

        features = datasets.Features(
            {
                "idx": datasets.Value("string"),
                "captions": datasets.List(datasets.Value("string")),
                "picture": datasets.Value("binary"),
            }
        )
        with datasets.arrow_writer.ArrowWriter(features=features, path=str(rejected.with_suffix(".arrow"))) as writer:
            for row in usable_rows():
                writer.write(row)
            writer.finalize()
    written = datasets.Dataset.from_file(str(rejected.with_suffix(".arrow")))
    # Named by its content, so that what is computed from it can be found again by content, too.
    datasets.Dataset(written.data, info=written.info, fingerprint=key).save_to_disk(str(table))
    rejected.with_suffix(".arrow").unlink()
