# SPDX-License-Identifier: Apache-2.0
"""Rows on the disk: a source becomes an Arrow table once, and is read from there without filling memory."""

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
from tqdm.auto import tqdm

from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from .picture_rows import DataSource
from .pictures import BadPicture, open_picture
from .tsv import BadRow

__all__ = ["PictureRows", "load_rows"]

logger = logging.getLogger(__name__)

# Raised whenever the table's columns, the checks of a row or the reading of pictures change, so that old caches are
# left alone.
_LAYOUT = 5
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
    source: DataSource,
    max_bad_rows: int = 100,
    cache_dir: str | Path | None = None,
    rejects: str | Path | None = None,
) -> datasets.Dataset:
    """
    Checked rows of a source of captions and pictures, every picture having been opened once.

    Args:
        source: from [`~pai_painter.data.sources.find_source`].
        max_bad_rows: more unusable rows than this are an error, and reading stops there.
        cache_dir: where the Arrow table is kept; the datasets library's cache by default. Its name is a hash of the
            files' content and of the options, so that a changed file is never mistaken for the old one.
        rejects: JSON lines file for unusable rows (`file`, `line`, `idx`, `reason`).

    Returns:
        `datasets.Dataset` with the columns `idx` (str), `captions` (list of str), `picture` (encoded bytes).

    Raises:
        ValueError: if a file can't be used, holds no usable row or too many unusable ones.
    """
    source = source.on_disk()
    identity = [_LAYOUT, source.content_hash(), source.options]
    key = hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()[:24]
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_rows" / key
    rejects = None if rejects is None else Path(rejects)
    if not folder.is_dir():
        _build(source, folder, max_bad_rows, rejects)
    bad = _read_rejected(folder / _REJECTED, source)
    if rejects is not None:
        _write_rejected(bad, rejects)
    table = datasets.Dataset.from_file(str(folder / _TABLE))
    # Named by its content, so that what is computed from it can be found again by content, too.
    rows = datasets.Dataset(table.data, info=table.info, fingerprint=key)
    if len(bad) > max_bad_rows or not len(rows):
        raise ValueError(_too_many(source, bad, len(rows), max_bad_rows))
    if bad:
        where = "" if rejects is None else f" All are listed in {rejects}."
        place = _place(source, bad[0])
        count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
        logger.warning("%s of %s can't be used; %s: %s%s", count, source.name, place, bad[0]["reason"], where)
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


def _build(source: DataSource, folder: Path, max_bad_rows: int, rejects: Path | None) -> None:
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
            _write_table(source, partial, max_bad_rows, rejects)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_table(source: DataSource, folder: Path, max_bad_rows: int, rejects: Path | None) -> None:
    """The table, and the rejected rows with their file's place in the source: files are called otherwise tomorrow."""
    places = {file: place for place, file in enumerate(source.parts)}
    usable = 0
    with (
        open(folder / _REJECTED, "w", encoding="utf-8") as rejected,
        datasets.arrow_writer.ArrowWriter(
            features=_FEATURES, path=str(folder / _TABLE), writer_batch_size=_BATCH
        ) as writer,
        tqdm(desc=f"Checking {source.name}", unit=" rows", mininterval=1, disable=None) as bar,
    ):
        count = 0

        def reject(bad: BadRow) -> None:
            nonlocal count
            count += 1
            bar.update()
            record = {"file": places[str(bad.path)], "line": bad.line_number, "idx": bad.idx, "reason": bad.reason}
            rejected.write(json.dumps(record) + "\n")
            if count > max_bad_rows:
                rejected.flush()
                so_far = _read_rejected(folder / _REJECTED, source)
                if rejects is not None:
                    _write_rejected(so_far, rejects)
                raise ValueError(_too_many(source, so_far, usable, max_bad_rows, stopped=True))

        for row in source.rows(reject):
            try:
                open_picture(row.picture)
            except BadPicture as error:
                reject(BadRow(row.file, row.line, str(error), row.idx))
            else:
                writer.write({"idx": row.idx, "captions": row.captions, "picture": row.picture})
                usable += 1
                bar.update()
        writer.finalize()


def _too_many(
    source: DataSource, bad: list[dict[str, Any]], usable: int, max_bad_rows: int, stopped: bool = False
) -> str:
    if not bad:
        return f"{source.name} has no rows."
    first = f"{_place(source, bad[0])}: {bad[0]['reason'].rstrip('.')}"
    if not usable and len(bad) <= max_bad_rows:
        return f"{source.name} has no usable row: of all {len(bad)} the first is {first}.{source.advice}"
    end = ", and reading stopped there" if stopped else ""
    return (
        f"{source.name} has {len(bad)} unusable and {usable} usable rows (the first, {first}); at most {max_bad_rows} "
        f"unusable ones are allowed (`max_bad_rows`){end}.{source.advice}"
    )


def _place(source: DataSource, bad: dict[str, Any]) -> str:
    return f"line {bad['line']}" if len(source.parts) == 1 else f"{bad['file']}, line {bad['line']}"


def _read_rejected(path: Path, source: DataSource) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [{**record, "file": source.parts[record["file"]]} for record in records]


def _write_rejected(bad: list[dict[str, Any]], rejects: Path) -> None:
    """No bad rows, no file: not even one of an earlier run."""
    if bad:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in bad)
        # Names that aren't Unicode can be the very reason.
        rejects.write_text(lines, encoding="utf-8", errors="backslashreplace")
    else:
        rejects.unlink(missing_ok=True)
