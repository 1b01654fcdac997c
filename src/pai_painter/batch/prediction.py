# SPDX-License-Identifier: Apache-2.0
"""`predict_file`: the way from a file of captions to a file of pictures."""

import base64
import errno
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..model.pipeline_pai_painter import PaiPainterPipeline
from ..model_hash import hash_of_model
from .caption_files import CaptionFile, CaptionRow, find_captions, from_stream
from .output_formats import FormatName, PaintedRow, find_format
from .paint_captions import PaintCaptions, PredictOptions
from .resumable_run import ResumableRun
from .sharding import Survey, default_shard_size, read_shards, row_seed, survey_captions

__all__ = ["PredictOptions", "Summary", "find_captions", "from_stream", "predict_file", "row_seed"]

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_COUNTS = ("rows", "pictures", "rejected", "cut", "unknown")


@dataclass(frozen=True)
class Summary:
    """What was painted: of the whole file, or, while other processes have shards to paint, of all that are done."""

    output: Path
    rows: int
    pictures: int
    rejected: int  # rows that can't be painted
    cut: int  # captions that were too long
    unknown: int  # captions with words unknown to the model
    rejects_file: Path | None = None
    missing_shards: int = 0  # 0 if the output is there


def predict_file(
    pipe: PaiPainterPipeline,
    captions: CaptionFile,
    output: Path,
    options: PredictOptions | None = None,
    *,
    format: FormatName | None = None,
    output_schema: str | None = None,
    overwrite: bool = False,
    rejects: Path | None = None,
    shard_size: int | None = None,
    model_name: str | None = None,
    progress: bool = True,
    rank: int = 0,
    processes: int = 1,
) -> Summary:
    """
    Paints a file of captions.

    What has been painted is kept shard by shard beside the output, in `OUTPUT.parts`; called again with the same
    arguments after any interruption, it goes on there. The bytes of the result depend on model, captions and options
    alone: not on interruptions, nor on how many processes share the work, if these compute alike (on the CPU: with the
    same number of threads, which a run keeps).

    Args:
        pipe ([`PaiPainterPipeline`]): The painter.
        captions ([`CaptionFile`]): From [`find_captions`] or [`from_stream`].
        output (`Path`): The file, or a folder for pictures.
        options ([`PredictOptions`], *optional*): How it paints.
        format (`str`, *optional*): `"tsv"`, `"parquet"` or `"png"` (a folder); by default as `output` ends: .tsv,
            .parquet, or nothing for a folder.
        output_schema (`str`, *optional*): Columns of a TSV: `idx,text,gen_imgbase64`, also `seed` and `score`.
        overwrite (`bool`): Remove what another run made there, and start over.
        rejects (`Path`, *optional*): Where rows that can't be painted are listed; by default
            `OUTPUT.rejected_rows.jsonl`.
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
        raise ValueError("Several processes can't start over: please remove what is there first.")
    if shard_size is not None and shard_size < 1:
        raise ValueError(f"`shard_size` must be at least 1, got {shard_size}.")
    painter = PaintCaptions(pipe, options, model_name=model_name)
    aliases = {captions.id_column: "idx", captions.caption_column: "text"}
    written_as = find_format(output, format, output_schema, aliases)
    run = ResumableRun(output, rejects, written_as, f"{rank}-of-{processes}")
    run.check_places(captions.path)
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
                _paint(run, painter, captions, survey, shard_size, shards[rank::processes], progress and rank == 0)
                return _join(run, shards)
    except FileNotFoundError:
        if run.finished() is None:  # otherwise another process has finished, and has removed the shards
            raise
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        reason = f"{output} can't be written ({os.strerror(error.errno)}): fix this and rerun to resume"
        raise OSError(error.errno, reason) from error
    finally:
        torch.set_num_threads(before)
    return _join(run, shards)


def _paint(
    run: ResumableRun,
    painter: PaintCaptions,
    captions: CaptionFile,
    survey: Survey,
    shard_size: int,
    mine: range,
    progress: bool,
) -> None:
    """Paints those of some shards that aren't there yet."""
    rows_of = {shard: min(shard_size, survey.rows - shard * shard_size) for shard in mine}
    todo = {shard for shard in mine if run.ending_of(shard) is None}
    done = sum(rows for shard, rows in rows_of.items() if shard not in todo)
    hidden = None if progress else True  # None: hidden unless on a terminal
    with tqdm(desc="Painting", total=sum(rows_of.values()), initial=done, unit="row", disable=hidden) as bar:
        for shard, rows in read_shards(captions, survey, shard_size, todo.__contains__):
            if run.finished() is None and run.ending_of(shard) is None:
                counts = dict.fromkeys(_COUNTS, 0)
                painted = _rows_of(painter, captions.name, rows, shard * shard_size, counts, bar)
                run.write_shard(shard, painted, counts)


def _rows_of(
    painter: PaintCaptions, name: str, rows: Sequence[CaptionRow], first: int, counts: dict[str, int], bar: tqdm
) -> Iterator[PaintedRow | dict[str, Any]]:
    """The rejected rows of a shard, then the painted ones; they are counted on the way."""
    good: list[tuple[str, str] | None] = []
    processor = painter.pipe.processor
    for row in rows:
        reason = row.reason or painter.reason_against(row.text)
        good.append(None if reason else (str(row.idx), row.text.strip()))
        if reason:
            counts["rejected"] += 1
            yield {"file": name, "line": row.line, "idx": row.idx, "reason": reason}
        else:
            counts["cut"] += len(processor.word_pieces(row.text.strip())) > processor.text_length
            counts["unknown"] += bool(processor.unknown_pieces(row.text.strip()))
    for number, (row, pictures) in enumerate(zip(rows, painter.paint(good), strict=True), first):
        bar.update()
        if pictures:
            counts["rows"] += 1
            counts["pictures"] += len(pictures)
            pngs = [base64.b64encode(each.png).decode("ascii") for each in pictures]
            facts = [each.seed for each in pictures], [each.score for each in pictures]
            yield PaintedRow(number, str(row.idx), row.text, pngs, *facts)


def _join(run: ResumableRun, shards: range) -> Summary:
    """If nothing is missing, makes the output; of several processes that see this at once, one does."""
    endings = [run.ending_of(shard) for shard in shards]
    counts: dict[str, Any] = {name: sum(ending[name] for ending in endings if ending is not None) for name in _COUNTS}
    if None in endings and run.finished() is None:
        return Summary(run.output, **counts, missing_shards=endings.count(None))
    made = run.finished()
    if made is None:
        with run.lock("join", wait=True):
            made = run.finished() or run.join(len(shards), counts)
    rejects = run.output.parent / made["rejects"] if made["rejects"] else None
    return Summary(run.output, **{name: made[name] for name in _COUNTS}, rejects_file=rejects)


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
