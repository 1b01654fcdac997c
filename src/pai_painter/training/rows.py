# SPDX-License-Identifier: Apache-2.0
"""The rows that a run's arguments name, found and cached by all processes together."""

from pathlib import Path

import datasets
from accelerate import Accelerator

from ..data.image_tokens import ImageTokenCache
from ..data.row_cache import load_rows
from ..data.sources import DataSource, find_source
from .arguments import DataArguments

REJECTED = "rejected_rows.jsonl"  # in the output folder; with streams, other processes have their own


def find_rows(data: DataArguments, validation: bool = False) -> DataSource:
    """What to train or to validate on; a `ValueError` says why it can't be used."""
    files, split = (data.validation_file, data.validation_split) if validation else (data.train_file, data.train_split)
    same = ("dataset_config_name", "input_schema", "id_column", "caption_column", "image_column", "caption_separator")
    return find_source(
        files or None,
        dataset_name=None if files else data.dataset_name,
        split=split or "train",
        streaming=data.streaming and not validation,
        cache_dir=data.cache_dir,
        **{name: getattr(data, name) for name in same},
    )


def load_run_rows(
    source: DataSource, data: DataArguments, folder: Path, accelerator: Accelerator, rejected: str = REJECTED
) -> datasets.Dataset:
    """
    Checked rows. The first process of a machine builds the cache. What can't be used is listed in `folder/rejected`.
    Raises `ValueError` if a file can't be used, holds no usable row or too many unusable ones.
    """
    with accelerator.local_main_process_first():
        listed = folder / rejected if accelerator.is_main_process else None
        return load_rows(source, data.max_bad_rows, data.cache_dir, listed)


def load_validation_rows(data: DataArguments, folder: Path, accelerator: Accelerator) -> datasets.Dataset | None:
    """Checked rows to validate on, if there are any; see [`load_run_rows`]."""
    if not data.validates:
        return None
    return load_run_rows(find_rows(data, True), data, folder, accelerator, "rejected_validation_rows.jsonl")


def encode_together(cache: ImageTokenCache, accelerator: Accelerator) -> datasets.Dataset:
    """Each process encodes its share, and then all find the whole."""
    cache.encode_share(accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    with accelerator.local_main_process_first():  # another machine's share may be on that machine's disk
        return cache.load()
