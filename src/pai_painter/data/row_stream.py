# SPDX-License-Identifier: Apache-2.0
"""Rows straight from their files, without end and in an order that can be found again."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from .sources import DataSource, Record, open_row
from .table_files import BadRows


class StreamedRow(NamedTuple):
    """A checked row and where it is."""

    idx: str
    captions: list[str]
    picture: Image.Image
    epoch: int  # from 0
    position: int  # how many rows of the epoch lie behind it, itself and the other processes' included


class PictureStream(IterableDataset[StreamedRow]):
    """
    The rows of a source without end, shuffled anew in every epoch. Nothing is kept on the disk.

    The order is a function of the seed and the epoch alone: the files in random order, and a buffer of rows out of
    which each next one is drawn. Of that order each process takes every `processes`-th row. To resume, the rows before
    are read again, but their pictures are not opened. The datasets library's own shuffle can't be resumed: its
    `state_dict` loses the rows in the buffer, and its order depends on the number of workers and on its version.

    Args:
        shuffle_buffer: rows, not yet unpacked, that are held to draw from; 1 for the files' order.
        rank, processes: this process and how many there are.
        max_bad_rows, rejects: see [`~data.row_cache.load_rows`], but each process counts those it meets, and all but
            the first list them in a file of their own, `…-rank1.jsonl`.
    """

    def __init__(
        self,
        source: DataSource,
        seed: int,
        shuffle_buffer: int = 1000,
        rank: int = 0,
        processes: int = 1,
        max_bad_rows: int = 100,
        rejects: Path | None = None,
    ) -> None:
        super().__init__()
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}, but at least one row must be held.")
        self.source, self.seed, self.shuffle_buffer = source, seed, shuffle_buffer
        self.rank, self.processes, self.max_bad_rows = rank, processes, max_bad_rows
        self.rejects = rejects
        if rejects is not None and rank:
            self.rejects = rejects.with_name(f"{rejects.stem}-rank{rank}{rejects.suffix}")
        self._epoch = self._position = 0

    def start_at(self, epoch: int, position: int) -> None:
        """The next iteration starts behind the row with this `epoch` and `position` instead of at the beginning."""
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[StreamedRow]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"A stream is read by one worker, but there are {worker.num_workers}.")
        resumes, start = bool(self._epoch or self._position), self._position
        rejected = BadRows(self.source.name, self.max_bad_rows, self.rejects, resumes)
        for epoch in itertools.count(self._epoch):
            usable = 0
            for position, record in enumerate(self._shuffled(epoch)):
                if position < start or position % self.processes != self.rank:
                    continue
                row = self.source.read(record)
                picture = open_row(row)
                if picture is None:
                    rejected.add(self.source.bad_row(row))
                else:
                    usable += 1
                    yield StreamedRow(row["idx"], row["captions"], picture, epoch, position + 1)
            # Of an epoch that was joined in its middle nothing may be left.
            if not usable and not start:
                raise ValueError(f"{self.source.name} has no usable row for this process ({rejected}).")
            start = 0

    def _shuffled(self, epoch: int) -> Iterator[Record]:
        # Of Python's generators only the sequence of `random()` is promised never to change, so all is made of that.
        draw = random.Random(f"{self.seed} {epoch}").random
        buffer: list[Record] = []
        parts = range(len(self.source.parts))
        for record in self.source.records(sorted(parts, key=lambda part: draw()) if self.shuffle_buffer > 1 else parts):
            if len(buffer) < self.shuffle_buffer:
                buffer.append(record)
                continue
            place = int(draw() * len(buffer))
            drawn, buffer[place] = buffer[place], record
            yield drawn
        while buffer:
            place = int(draw() * len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
