# SPDX-License-Identifier: Apache-2.0
"""Rows straight from their files, without end and in an order that can be found again."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from .open_picture import BadPicture, open_picture
from .sources import DataSource
from .table_files import BadRow

__all__ = ["PictureStream", "StreamedRow", "list_of_process"]


@dataclass(frozen=True, slots=True)
class StreamedRow:
    """
    A checked row, its epoch (from 0), and its `position`: how many rows of the epoch lie behind it, itself and the
    other processes' included.
    """

    idx: str
    captions: list[str]
    picture: Image.Image
    epoch: int
    position: int


def list_of_process(rejects: Path, rank: int) -> Path:
    """Where the process `rank` lists unusable rows, if the first one does so in `rejects`."""
    return rejects.with_name(f"{rejects.stem}-rank{rank}{rejects.suffix}") if rank else rejects


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
        max_bad_rows: if this process meets more different unusable rows than this, it is an error.
        rejects: JSON lines file for unusable rows, each once; see [`list_of_process`].
    """

    def __init__(
        self,
        source: DataSource,
        seed: int,
        shuffle_buffer: int = 1000,
        rank: int = 0,
        processes: int = 1,
        max_bad_rows: int = 100,
        rejects: str | Path | None = None,
    ) -> None:
        super().__init__()
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}, but at least one row must be held.")
        self.source, self.seed, self.shuffle_buffer = source, seed, shuffle_buffer
        self.rank, self.processes, self.max_bad_rows = rank, processes, max_bad_rows
        self.rejects = None if rejects is None else list_of_process(Path(rejects), rank)
        self._epoch = self._position = 0

    def start_at(self, epoch: int, position: int) -> None:
        """The next iteration starts behind the row with this `epoch` and `position` instead of at the beginning."""
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[StreamedRow]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"A stream is read by one worker, but there are {worker.num_workers}.")
        rejected = _Rejected(self.source, self.max_bad_rows, self.rejects, goes_on=bool(self._epoch or self._position))
        start = self._position
        for epoch in itertools.count(self._epoch):
            usable = 0
            for position, record in enumerate(self._shuffled(epoch)):
                if position < start or position % self.processes != self.rank:
                    continue
                row = self.source.read(record)
                picture = self._open(row)
                if picture is None:
                    rejected.add(self.source.bad_row(row))
                else:
                    usable += 1
                    yield StreamedRow(row["idx"], row["captions"], picture, epoch, position + 1)
            # Of an epoch that was joined in its middle nothing may be left.
            if not usable and not start:
                reason = f"no usable row for this process ({rejected.summary()}).{self.source.advice}"
                raise ValueError(f"{self.source.name} has {reason}")
            start = 0

    def _shuffled(self, epoch: int) -> Iterator[dict[str, Any]]:
        """
        All records of an epoch.

        Of Python's generators only the sequence of `random()` is promised never to change, so all is made of that.
        """
        draw = random.Random(f"{self.seed} {epoch}").random
        if self.shuffle_buffer == 1:
            yield from self.source.records()
            return
        buffer: list[dict[str, Any]] = []
        for record in self.source.records(sorted(range(len(self.source.parts)), key=lambda part: draw())):
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

    def _open(self, row: dict[str, Any]) -> Image.Image | None:
        if row["reason"] is None:
            try:
                return open_picture(row["picture"])
            except BadPicture as error:
                row["reason"] = str(error)
        return None


class _Rejected:
    """The unusable rows that this process has met, each listed once, although it comes back in every epoch."""

    def __init__(self, source: DataSource, max_bad_rows: int, path: Path | None, goes_on: bool) -> None:
        self.source, self.max_bad_rows, self.path = source, max_bad_rows, path
        self.seen: dict[tuple[str, int], str] = {}
        if path is not None and path.exists() and goes_on:
            # Its last line may have been cut off when the run ended.
            whole = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
            records = [json.loads(line) for line in whole.split("\n") if line]
            self.seen = {(record["file"], record["line"]): record["reason"] for record in records}
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            self._check_limit()
        elif path is not None:
            path.unlink(missing_ok=True)

    def add(self, bad: BadRow) -> None:
        if (bad.path, bad.line_number) in self.seen:
            return
        self.seen[bad.path, bad.line_number] = bad.reason
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(bad.as_json() + "\n")
        self._check_limit()

    def _check_limit(self) -> None:
        if len(self.seen) > self.max_bad_rows:
            raise ValueError(
                f"{self.source.name} has {self.summary()}; at most {self.max_bad_rows} are allowed (`max_bad_rows`)."
                f"{self.source.advice}"
            )

    def summary(self) -> str:
        if not self.seen:
            return "no unusable ones either"
        (path, line), reason = next(iter(self.seen.items()))
        return f"{len(self.seen)} unusable rows so far, the first {path}, line {line}: {reason.rstrip('.')}"
