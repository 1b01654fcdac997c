# SPDX-License-Identifier: Apache-2.0
"""The rows that a run's arguments name, found and cached by all processes together."""

from pathlib import Path

import datasets
from accelerate import Accelerator

from ..data.image_tokens import ImageTokenCache
from ..data.row_cache import load_rows
from ..data.row_stream import PictureStream, list_of_process
from ..data.sources import DataSource, find_source
from .arguments import DataArguments

__all__ = [
    "encode_together",
    "find_training_source",
    "load_run_rows",
    "load_validation_rows",
    "open_stream",
    "rejected_rows",
]

_REJECTED = "rejected_rows.jsonl"


def find_training_source(data: DataArguments) -> DataSource:
    """What to train on; a `ValueError` says why it can't be used."""
    return _find(data, data.train_file, data.train_split, data.streaming)


def load_run_rows(
    source: DataSource, data: DataArguments, folder: Path, accelerator: Accelerator, rejected: str = _REJECTED
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
    source = _find(data, data.validation_file, data.validation_split)
    return load_run_rows(source, data, folder, accelerator, "rejected_validation_rows.jsonl")


def open_stream(
    source: DataSource, data: DataArguments, folder: Path, accelerator: Accelerator, seed: int
) -> PictureStream:
    """This process's share of the training rows, as they come."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    rejects = folder / _REJECTED
    return PictureStream(source, seed, data.shuffle_buffer, rank, processes, data.max_bad_rows, rejects)


def encode_together(cache: ImageTokenCache, accelerator: Accelerator) -> datasets.Dataset:
    """Each process encodes its share, and then all find the whole."""
    cache.encode_share(accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    with accelerator.local_main_process_first():  # another machine's share may be on that machine's disk
        return cache.load()


def rejected_rows(folder: Path, processes: int) -> int:
    """How many training rows couldn't be used, by the lists of all processes in the output folder."""
    lists = [list_of_process(folder / _REJECTED, rank) for rank in range(processes)]
    return sum(path.read_bytes().count(b"\n") for path in lists if path.is_file())


def _find(data: DataArguments, files: list[str], split: str | None, streaming: bool = False) -> DataSource:
    same = ("dataset_config_name", "input_schema", "id_column", "caption_column", "image_column", "caption_separator")
    return find_source(
        files or None,
        dataset_name=None if files else data.dataset_name,
        split=split or "train",
        streaming=streaming,
        cache_dir=data.cache_dir,
        **{name: getattr(data, name) for name in same},
    )
