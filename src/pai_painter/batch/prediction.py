# SPDX-License-Identifier: Apache-2.0
"""`predict_file`: the way from a file of captions to a file of pictures."""

import base64
import errno
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..model.pipeline_pai_painter import PaiPainterPipeline
from ..model_hash import hash_of_model
from .caption_files import CaptionFile, CaptionRow, Survey, find_captions, from_stream, survey_captions
from .output_formats import FormatName, PaintedRow, find_format
from .paint_captions import PaintCaptions, PredictOptions, row_seed
from .resumable_run import ResumableRun

__all__ = ["PredictOptions", "Summary", "find_captions", "from_stream", "predict_file", "row_seed"]

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_SMALLEST_SHARD, _LARGEST_SHARD, _USUAL_SHARDS = 32, 1024, 1000
_COUNTS = ("rows", "pictures", "rejected", "cut", "unknown")


@dataclass(frozen=True)
class Summary:
    """What was painted; while other processes have shards to paint, only how many these are."""

    output: Path
    missing_shards: int = 0  # 0 if the output is there
    rows: int = 0
    pictures: int = 0
    rejected: int = 0  # rows that can't be painted
    rejects_file: Path | None = None  # which lists them
    cut: int = 0  # captions that were too long
    unknown: int = 0  # captions with words unknown to the model


def predict_file(
    pipe: PaiPainterPipeline,
    captions: CaptionFile,
    output: Path,
    options: PredictOptions | None = None,
    *,
    format: FormatName | None = None,
    output_schema: str | None = None,
    overwrite: bool = False,
    shard_size: int | None = None,
    model_name: str | None = None,
    progress: bool = True,
    rank: int = 0,
    processes: int = 1,
) -> Summary:
    """
    Paints a file of captions. Called again with the same arguments after any interruption, it goes on behind the shards
    that are complete.

    The bytes of the result depend on model, captions and options alone: not on interruptions, nor on how many processes
    share the work, if these compute alike (on the CPU: with the same number of threads, which a run keeps).

    Args:
        pipe ([`PaiPainterPipeline`]): The painter.
        captions ([`CaptionFile`]): From [`find_captions`] or [`from_stream`].
        output (`Path`): The file, or a folder for pictures.
        options ([`PredictOptions`], *optional*): How it paints.
        format (`str`, *optional*): `"tsv"`, `"parquet"` or `"png"` (a folder); by default as `output` ends: .tsv,
            .parquet, or nothing for a folder.
        output_schema (`str`, *optional*): Columns of a TSV: `idx,text,gen_imgbase64`, also `seed` and `score`.
        overwrite (`bool`): Remove what another run made there, and start over.
        shard_size (`int`, *optional*): Rows that are kept or lost together when a run is stopped; by default 32 to
            1024, by the number of rows.
        model_name (`str`, *optional*): What the pictures' metadata calls the model.
        progress (`bool`): Show a bar, on a terminal.
        rank, processes (`int`): Which of several processes this is. Each paints its own shards, and the last to finish
            joins all.

    Raises:
        ValueError: if something else was begun there, if another process is at the same work, or if no caption can be
            used.
        OSError: if the disk or the memory is full, or if something is in the output's place.
    """
    if not 0 <= rank < processes:
        raise ValueError(f"With {processes} processes `rank` goes from 0 to {processes - 1}, got {rank}.")
    if processes > 1 and overwrite:
        raise ValueError("`overwrite` needs a single process: please remove the earlier output first.")
    if shard_size is not None and shard_size < 1:
        raise ValueError(f"`shard_size` must be at least 1, got {shard_size}.")
    painter = PaintCaptions(pipe, options, model_name=model_name)
    aliases = {captions.id_column: "idx", captions.caption_column: "text"}
    written_as = find_format(output, format, output_schema, aliases)
    run = ResumableRun(captions.path, output, written_as, f"{rank}-of-{processes}")
    survey = survey_captions(captions)
    shard_size = shard_size or default_shard_size(survey.rows, painter.options.batch_size)
    shards = range(math.ceil(survey.rows / shard_size))
    wanted = {
        "input": {"rows": survey.rows, "sha256": survey.sha256, **captions.options},
        "options": {**_identity_of(painter), "written_as": [*written_as], "shard_size": shard_size},
        "threads": torch.get_num_threads(),
    }
    threads = run.begin(wanted, overwrite)["threads"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # sums are rounded in another way by another number of threads
    try:
        if run.finished() is None:
            with run.lock(run.process):
                _paint(run, painter, survey, shard_size, shards[rank::processes], progress and rank == 0)
        return _join(run, shards)
    except FileNotFoundError:
        if run.finished() is None:  # otherwise another process has finished, and has removed the shards
            raise
        return _join(run, shards)
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        reason = f"{output} can't be written ({os.strerror(error.errno)}): fix this and rerun to resume"
        raise OSError(error.errno, reason) from error
    finally:
        torch.set_num_threads(before)


def default_shard_size(rows: int, batch_size: int) -> int:
    """Rows of a shard: whole batches, 32 to 1024 rows, and not many more than a thousand shards."""
    unit = math.ceil(_SMALLEST_SHARD / batch_size) * batch_size
    wished = math.ceil(rows / _USUAL_SHARDS / unit) * unit
    return max(min(wished, _LARGEST_SHARD // unit * unit), unit)


def _paint(
    run: ResumableRun, painter: PaintCaptions, survey: Survey, shard_size: int, mine: range, progress: bool
) -> None:
    """Paints those of some shards that aren't there yet."""
    total = sum(min(shard_size, survey.rows - shard * shard_size) for shard in mine)
    with tqdm(desc="Painting", total=total, unit="row", disable=None if progress else True) as bar:  # on a terminal
        for shard, rows in enumerate(survey.shards(shard_size)):
            if shard in mine and run.finished() is None and not run.path_of(shard).exists():
                run.write_shard(shard, _rows_of(painter, survey.source.name, rows, shard * shard_size, bar))
            elif shard in mine:
                bar.update(len(rows))


def _rows_of(
    painter: PaintCaptions, name: str, rows: list[CaptionRow], first: int, bar: tqdm
) -> Iterator[PaintedRow | dict[str, Any]]:
    """The rejected rows of a shard, then the painted ones, and what was counted."""
    counts = dict.fromkeys(_COUNTS, 0)
    processor = painter.pipe.processor
    good: list[tuple[str, str] | None] = []
    for row in rows:
        reason, text = row.reason or painter.reason_against(row.text), row.text.strip()
        good.append(None if reason else (str(row.idx), text))
        if reason:
            counts["rejected"] += 1
            yield {"file": name, "line": row.line, "idx": row.idx, "reason": reason}
        else:
            counts["cut"] += len(processor.word_pieces(text)) > processor.text_length
            counts["unknown"] += bool(processor.unknown_pieces(text))
    for number, (row, pictures) in enumerate(zip(rows, painter.paint(good), strict=True), first):
        bar.update()
        if pictures:
            counts["rows"] += 1
            counts["pictures"] += len(pictures)
            encoded = [(base64.b64encode(png).decode("ascii"), seed, score) for png, seed, score in pictures]
            yield PaintedRow(number, str(row.idx), row.text, encoded)
    yield counts


def _join(run: ResumableRun, shards: range) -> Summary:
    """If nothing is missing, makes the output; of several processes that see this at once, one does."""
    missing = sum(not run.path_of(shard).exists() for shard in shards)
    made = run.finished()
    if made is None and missing:
        return Summary(run.output, missing)
    if made is None:
        with run.lock("join", wait=True):
            made = run.finished() or run.join(shards)
    rejects = run.rejects if made["rejected"] else None
    return Summary(run.output, rejects_file=rejects, **{name: made[name] for name in _COUNTS})


def _identity_of(painter: PaintCaptions) -> dict[str, Any]:
    """What a run must find again to go on: options, model and vocabulary, wherever they are, and the arithmetic."""
    model = painter.pipe.model
    return {
        **vars(painter.options),
        **vars(painter.painting),
        "model_name": painter.model_name,
        "model": hash_of_model(model),
        "vocabulary": painter.pipe.processor.tokenizer.fingerprint,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("pai-painter", "torch", "transformers", "pillow")},
    }
