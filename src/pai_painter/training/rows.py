# SPDX-License-Identifier: Apache-2.0
"""The rows that a run's arguments name."""

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
    "load_training_rows",
    "load_validation_rows",
    "open_stream",
    "rejected_rows",
]

_REJECTED_TRAIN, _REJECTED_VALIDATION = "rejected_rows.jsonl", "rejected_validation_rows.jsonl"


def find_training_source(data: DataArguments) -> DataSource:
    """What to train on; a `ValueError` says why it can't be used."""
    return _find(data, data.train_file, data.train_split, data.streaming)


def load_training_rows(
    data: DataArguments, source: DataSource, output_dir: str, accelerator: Accelerator
) -> datasets.Dataset:
    """
    Checked training rows. The first process of a machine builds the cache. What can't be used is listed in
    rejected_rows.jsonl. Raises `ValueError` if a file can't be used, holds no usable row or too many unusable ones.
    """
    return _load(data, source, Path(output_dir) / _REJECTED_TRAIN, accelerator)


def load_validation_rows(data: DataArguments, output_dir: str, accelerator: Accelerator) -> datasets.Dataset | None:
    """Checked rows to validate on, if there are any; see [`load_training_rows`]."""
    if not data.validates:
        return None
    source = _find(data, data.validation_file, data.validation_split)
    return _load(data, source, Path(output_dir) / _REJECTED_VALIDATION, accelerator)


def open_stream(
    data: DataArguments, source: DataSource, output_dir: str, accelerator: Accelerator, seed: int
) -> PictureStream:
    """This process's share of the training rows, as they come."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    rejects = Path(output_dir) / _REJECTED_TRAIN
    return PictureStream(source, seed, data.shuffle_buffer, rank, processes, data.max_bad_rows, rejects)


def encode_together(cache: ImageTokenCache, accelerator: Accelerator) -> datasets.Dataset:
    """Each process encodes its share, and then all find the whole."""
    cache.encode_share(accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    with accelerator.local_main_process_first():  # another machine's share may be on that machine's disk
        return cache.load()


def rejected_rows(output_dir: Path, processes: int) -> int:
    """How many training rows couldn't be used, by the lists of all processes in the output folder."""
    lists = [list_of_process(output_dir / _REJECTED_TRAIN, rank) for rank in range(processes)]
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


def _load(data: DataArguments, source: DataSource, rejects: Path, accelerator: Accelerator) -> datasets.Dataset:
    with accelerator.local_main_process_first():
        listed = rejects if accelerator.is_main_process else None
        return load_rows(source, data.max_bad_rows, data.cache_dir, listed)
