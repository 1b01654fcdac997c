# SPDX-License-Identifier: Apache-2.0
"""Rows straight from their files, without end and in an order that can be found again."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from .picture_rows import DataSource, Record
from .pictures import BadPicture, open_picture
from .tsv import BadRow

__all__ = ["PictureStream", "StreamedRow", "list_of_process"]


@dataclass(frozen=True, slots=True)
class StreamedRow:
    """
    A checked row.

    Attributes:
        idx (`str`): Its id.
        captions (`list[str]`): One caption or several.
        picture (`PIL.Image.Image`): The picture, upright and opaque, in RGB.
        epoch (`int`): The epoch it belongs to, from 0.
        position (`int`): How many rows of the epoch lie behind it, itself and the other processes' included.
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
    which each next one is drawn. Of that order this process takes every `processes`-th row. It skips rows that can't
    be used, so processes that meet different numbers of those stand at different positions: each must keep its own.

    Args:
        source: from [`~pai_painter.data.sources.find_source`].
        seed: fixes the order.
        shuffle_buffer: rows, not yet unpacked, that are held to draw from; 1 for the files' order.
        rank, processes: this process and how many there are.
        max_bad_rows: if this process meets more different unusable rows than this, it is an error.
        rejects:
            JSON lines file for unusable rows (`file`, `line`, `idx`, `reason`), each once; of another process than the
            first, `-rank1` and so on is added to its name.

    Raises:
        ValueError: If a number is out of its range.
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
        if not 0 <= rank < processes:
            raise ValueError(f"rank is {rank}, but must be at least 0 and below the number of processes, {processes}.")
        self.source, self.seed, self.shuffle_buffer = source, seed, shuffle_buffer
        self.rank, self.processes, self.max_bad_rows = rank, processes, max_bad_rows
        if rejects is not None:
            rejects = Path(rejects)
            rejects = list_of_process(rejects, rank)
        self.rejects = rejects
        self._epoch = self._position = 0

    def start_at(self, epoch: int, position: int) -> None:
        """
        The next iteration goes on behind a row's `epoch` and `position` instead of at the beginning.

        What lies before in that epoch is read, but not unpacked.

        Raises:
            ValueError: If one of them is negative.
        """
        if epoch < 0 or position < 0:
            raise ValueError(f"epoch is {epoch} and position {position}, but neither may be negative.")
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
                try:
                    row = self._open(record, epoch, position + 1)
                except BadRow as bad:
                    rejected.add(bad)
                else:
                    usable += 1
                    yield row
            # Of an epoch that was joined in its middle nothing may be left.
            if not usable and not start:
                share = "" if self.processes == 1 else f" for process {self.rank + 1} of {self.processes}"
                raise ValueError(
                    f"{self.source.name} has no usable row{share} ({rejected.summary()}).{self.source.advice}"
                )
            start = 0

    def _open(self, record: Record, epoch: int, position: int) -> StreamedRow:
        row = self.source.read(record)
        try:
            picture = open_picture(row.picture)
        except BadPicture as error:
            raise BadRow(row.file, row.line, str(error), row.idx) from error
        return StreamedRow(row.idx, row.captions, picture, epoch, position)

    def _shuffled(self, epoch: int) -> Iterator[Record]:
        """
        All records of an epoch.

        Of Python's generators only the sequence of `random()` is promised never to change, so all is made of that.
        """
        draw = random.Random(f"{self.seed} {epoch}").random
        if self.shuffle_buffer == 1:
            yield from itertools.chain.from_iterable(map(self.source.records, range(len(self.source.parts))))
            return
        parts = sorted(range(len(self.source.parts)), key=lambda part: draw())
        buffer: list[Record] = []
        for record in itertools.chain.from_iterable(map(self.source.records, parts)):
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


class _Rejected:
    """The unusable rows that this process has met, each listed once, although it comes back in every epoch."""

    def __init__(self, source: DataSource, max_bad_rows: int, path: Path | None, goes_on: bool) -> None:
        self.source, self.max_bad_rows, self.path = source, max_bad_rows, path
        self.seen: set[tuple[str, int]] = set()
        self.first = ""
        if path is None:
            return
        if not goes_on:
            path.unlink(missing_ok=True)
        elif path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        """The list of the run that goes on here; its last line may have been cut off by its end."""
        whole = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
        records = [json.loads(line) for line in whole.split("\n") if line]
        self.seen = {(record["file"], record["line"]) for record in records}
        self.first = f"{records[0]['file']}, line {records[0]['line']}: {records[0]['reason']}" if records else ""
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        self._check_limit()

    def add(self, bad: BadRow) -> None:
        where = (str(bad.path), bad.line_number)
        if where in self.seen:
            return
        self.seen.add(where)
        self.first = self.first or str(bad)
        if self.path is not None:
            record = {"file": str(bad.path), "line": bad.line_number, "idx": bad.idx, "reason": bad.reason}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
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
        return f"{len(self.seen)} unusable rows so far, the first {self.first.rstrip('.')}"
