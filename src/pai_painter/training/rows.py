# SPDX-License-Identifier: Apache-2.0
"""The rows that a run's arguments name."""

import datasets
from accelerate import Accelerator

from ..data.rows import load_rows
from .arguments import DataArguments

__all__ = ["load_both"]


def load_both(data: DataArguments, accelerator: Accelerator) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training rows, and validation rows if there are any. The first process of a machine builds the cache."""
    with accelerator.local_main_process_first():
        train = _load(data, data.train_file)
        valid = None if data.validation_file is None else _load(data, data.validation_file)
    return train, valid


def _load(data: DataArguments, path: str) -> datasets.Dataset:
    return load_rows(path, data.input_schema, data.caption_separator, data.max_bad_rows, data.cache_dir)
