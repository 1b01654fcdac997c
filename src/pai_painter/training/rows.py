# SPDX-License-Identifier: Apache-2.0
"""The rows that a run's arguments name."""

from pathlib import Path

import datasets
from accelerate import Accelerator

from ..data.rows import load_rows
from .arguments import DataArguments

__all__ = ["load_both"]


def load_both(
    data: DataArguments, output_dir: str | Path, accelerator: Accelerator
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """
    Training rows, and validation rows if there are any. The first process of a machine builds the cache.

    Rows that can't be used are listed in rejected_train_rows.jsonl and rejected_validation_rows.jsonl.

    Raises:
        ValueError: if a file can't be used, holds no usable row or too many unusable ones.
    """
    with accelerator.local_main_process_first():
        rejects = Path(output_dir) if accelerator.is_main_process else None
        train = _load(data, data.train_file, rejects and rejects / "rejected_train_rows.jsonl")
        valid = None
        if data.validation_file is not None:
            valid = _load(data, data.validation_file, rejects and rejects / "rejected_validation_rows.jsonl")
    return train, valid


def _load(data: DataArguments, path: str, rejects: Path | None) -> datasets.Dataset:
    return load_rows(path, data.input_schema, data.caption_separator, data.max_bad_rows, data.cache_dir, rejects)
