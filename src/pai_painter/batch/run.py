# SPDX-License-Identifier: Apache-2.0
"""The loop over shards, and the end of it."""

import base64
import errno
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers.utils import logging

from ..data.tsv import BadRow
from ..imaging.grids import draw_grid
from ..model.pipeline_pai_painter import PaiPainterPipeline
from .batches import ShardPainter
from .captions import CaptionFile, CaptionRow
from .memory import is_out_of_memory
from .pictures import PaintedRow
from .plan import Plan, Survey, rows_of_shards
from .work import Manifest, ShardRecord, Work, naming_the_output

__all__ = ["Run", "Summary", "summary_of"]

logger = logging.get_logger(__name__)

_SHEET_PICTURES = 64
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


@dataclass(frozen=True)
class Summary:
    """
    Args:
        output (`Path`): The pictures.
        rows, pictures (`int`): In it, or, if it isn't complete, in all shards that are done.
        rejected (`int`): Rows that can't be used.
        rejects_file (`Path`, *optional*): The list of those.
        cut, unknown (`int`): Captions that were too long, and that have words unknown to the model.
        joined_lines (`int`): Captions in which line breaks became blanks, in a TSV.
        batch_size (`int`): At the end.
        complete (`bool`): Whether the output is there.
        missing_shards (`int`): What other processes still have to do.
    """

    output: Path
    rows: int
    pictures: int
    rejected: int
    rejects_file: Path | None
    cut: int
    unknown: int
    joined_lines: int
    batch_size: int
    complete: bool
    missing_shards: int = 0


class Run:
    """
    One process's part of the work, and joining all parts if it is the last.

    Args:
        pipe ([`PaiPainterPipeline`]): The painter.
        painter ([`ShardPainter`]): Paints shards with it.
        captions, survey, plan, work, manifest: What is painted, and where.
        rejects (`Path`): The list of rows that can't be used.
        contact_sheet (`Path`, *optional*): The file of a sheet.
    """

    def __init__(
        self,
        pipe: PaiPainterPipeline,
        painter: ShardPainter,
        captions: CaptionFile,
        survey: Survey,
        plan: Plan,
        work: Work,
        manifest: Manifest,
        rejects: Path,
        contact_sheet: Path | None,
    ) -> None:
        self.pipe, self.painter, self.captions, self.survey = pipe, painter, captions, survey
        self.plan, self.work, self.manifest = plan, work, manifest
        self.rejects, self.contact_sheet = rejects, contact_sheet
        self.bar: tqdm = tqdm(disable=True)

    def paint(self, rank: int, processes: int, progress: bool) -> Summary:
        """
        Paints the shards of this process, and joins all if none is missing.

        Args:
            rank, processes (`int`): Which of several processes this is.
            progress (`bool`): Show a bar.
        """
        mine = self.plan.shards_of(rank, processes)
        todo = {shard for shard in mine if self.work.record_of(shard) is None}
        total = sum(self.plan.pictures_of(shard) for shard in mine)
        done = total - sum(self.plan.pictures_of(shard) for shard in todo)
        share = f"Painting ({rank + 1} of {processes})" if processes > 1 else "Painting"
        hidden = None if progress and rank == 0 else True  # None: hidden where no terminal is
        self.bar = tqdm(desc=share, total=total, initial=done, unit="image", disable=hidden, bar_format=_BAR)
        with self.bar:
            for shard, rows in rows_of_shards(self.captions, self.survey, self.plan, todo.__contains__):
                with self.work.lock(f"{shard:06d}") as is_free:
                    if self.work.read_manifest().complete is not None:
                        break
                    if is_free and self.work.record_of(shard) is None:
                        self._paint_shard(shard, rows)
        return self._join()

    def _paint_shard(self, shard: int, rows: Sequence[CaptionRow | BadRow]) -> None:
        before = self.bar.n
        size = self.work.kept_batch_size(self.manifest.fixed["batch_size"])
        while not self._has_written(shard, rows, size):
            self.bar.n = before
            size = self._smaller(size)

    def _has_written(self, shard: int, rows: Sequence[CaptionRow | BadRow], batch_size: int) -> bool:
        """Writes a shard; `False` if memory was full."""
        record = ShardRecord(batch_size=batch_size)
        checked = [self._checked(row, record) for row in rows]
        try:
            with naming_the_output(self.work.parts):
                part = self.work.format.open_part(self.work.partial(shard), shard)
                try:
                    for row in self.painter.paint(shard, checked, batch_size, self.bar.update):
                        part.write(row)
                        self._note(row, record)
                    part.close()
                    record.joined_lines = part.joined_lines
                    self.work.commit(shard, record)
                finally:
                    part.discard()
                    self.work.discard(shard)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _checked(self, row: CaptionRow | BadRow, record: ShardRecord) -> CaptionRow | BadRow:
        """Only the model knows which captions say nothing to it."""
        if isinstance(row, CaptionRow):
            try:
                self.pipe.check_inputs(row.caption)
            except ValueError as error:
                row = BadRow(self.captions.name, row.line, str(error), row.idx)
        if isinstance(row, BadRow):
            record.rejects.append({"line": row.line_number, "idx": _printable(row.idx), "reason": row.reason})
        else:
            processor = self.pipe.processor
            record.cut += len(processor.word_pieces(row.caption)) > processor.text_length
            record.unknown += bool(processor.unknown_pieces(row.caption))
        return row

    def _note(self, row: PaintedRow, record: ShardRecord) -> None:
        record.rows += 1
        record.pictures += len(row.pictures)
        for i, picture in enumerate(row.pictures):
            if row.number * self.plan.num_images + i < _SHEET_PICTURES:
                record.samples.append([row.text, base64.b64encode(picture.data).decode("ascii")])

    def _smaller(self, size: int) -> int:
        """
        Raises:
            OSError: if the batch size was given, or can't be smaller.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.manifest.options["batch_size"] != "auto" or size == 1:
            advice = "start over with a smaller batch size, or with auto" if size > 1 else "use a smaller model"
            raise OSError(errno.ENOMEM, f"Memory is full with {size} pictures at once: please {advice}.")
        size //= 2
        logger.warning(f"Memory was full: from now on {size} pictures are painted at once.")
        self.work.keep_batch_size(size)
        return size

    def _join(self) -> Summary:
        """If nothing is missing, makes the output; of several processes that see this at once, one does."""
        counts = {"rows": 0, "pictures": 0, "rejected": 0, "cut": 0, "unknown": 0, "joined_lines": 0}
        missing = 0
        samples: list[list[str]] = []
        for shard in range(self.plan.num_shards):
            record = self.work.record_of(shard)
            if record is None:
                missing += 1
                continue
            for name in counts:
                counts[name] += len(record.rejects) if name == "rejected" else getattr(record, name)
            samples += record.samples
        counts["batch_size"] = self.work.kept_batch_size(self.manifest.fixed["batch_size"])
        manifest = self.work.read_manifest()
        if manifest.complete is not None:  # by another process, which has removed the shards
            return summary_of(self.work, manifest.complete, self.rejects)
        unfinished = replace(summary_of(self.work, counts, self.rejects), complete=False, missing_shards=missing)
        if missing:
            return unfinished
        # Only who sees all shards takes the lock: so who finishes last finds it free, or another at the same work.
        with self.work.lock("join") as is_free:
            manifest = self.work.read_manifest()
            if manifest.complete is not None:
                return summary_of(self.work, manifest.complete, self.rejects)
            if not is_free:
                return unfinished
            if self.contact_sheet is not None and samples:
                _draw_sheet(samples, self.contact_sheet)
            self.work.write_rejects(self.rejects, self.plan.num_shards, self.captions.name)
            self.work.complete(manifest, self.plan.num_shards, counts)
        return summary_of(self.work, counts, self.rejects)


def summary_of(work: Work, counts: dict[str, Any], rejects: Path) -> Summary:
    """What is told in the end, from what the shards' records add up to."""
    return Summary(output=work.output, rejects_file=rejects if counts["rejected"] else None, complete=True, **counts)


def _draw_sheet(samples: list[list[str]], path: Path) -> None:
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in samples]
    page = draw_grid(images, [text for text, _ in samples])
    # A name that the next try takes, too: a run that is killed here leaves no second file.
    partial = path.with_name(f".{path.name}.partial")
    with naming_the_output(path):
        page.save(partial, "PNG")
        os.replace(partial, path)


def _printable(idx: str | None) -> str | None:
    """JSON can spell an id that no file can hold."""
    return None if idx is None else idx.encode("utf-8", "backslashreplace").decode("utf-8")
