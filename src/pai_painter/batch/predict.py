# SPDX-License-Identifier: Apache-2.0
"""
A file of captions → a file of pictures, for ten rows or ten million.

The way: `captions` reads rows, `plan` says what is painted where, `batches` paints, `formats` writes a shard, `work`
keeps what is done and joins it in the end; `run` is the loop over all.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from ..cpu.speed import SpeedName
from ..imaging.painting import PaintingOptions
from ..model.pipeline_pai_painter import PaiPainterPipeline
from ..model_hash import hash_of_model
from .batches import ShardPainter
from .captions import CaptionFile, find_captions, from_stream
from .formats import FormatName, find_format
from .memory import fitting_batch_size
from .pictures import PictureEncoder
from .plan import Plan, Survey, default_shard_size, row_seed, survey_captions
from .processes import this_process
from .run import Run, Summary, summary_of
from .work import Manifest, Work

__all__ = ["PredictOptions", "Summary", "find_captions", "from_stream", "predict_file", "row_seed"]


@dataclass(frozen=True)
class PredictOptions:
    """
    What decides about the pictures besides model and captions.

    Args:
        num_images_per_prompt (`int`): Pictures of each caption.
        seed (`int`): Of the run; a row's pictures start from [`row_seed`] of it and the row's id.
        temperature, top_k, top_p, best_of (*optional*): See [`PaiPainterPipeline`]; by default what the model
            recommends.
        speed (`str`): See [`~speed.find_speed`].
        batch_size (`int` or `"auto"`): Pictures painted at once. `"auto"` finds what memory allows, and takes half of
            it when memory is full after all.
        shard_size (`int`, *optional*): Rows that are kept or lost together when a run is stopped; by default 32 to
            1024, by the number of rows.

    Raises:
        ValueError: if one of them is out of range.
    """

    num_images_per_prompt: int = 1
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    best_of: int | None = None
    speed: SpeedName = "exact"
    batch_size: int | Literal["auto"] = 8
    shard_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_images_per_prompt", "batch_size", "shard_size"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"`batch_size` must be a whole number or 'auto', got {self.batch_size!r}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {self.seed}.")


def predict_file(
    pipe: PaiPainterPipeline,
    captions: CaptionFile,
    output: Path,
    options: PredictOptions = PredictOptions(),
    *,
    format: FormatName | None = None,
    output_schema: str | None = None,
    overwrite: bool = False,
    rejects: Path | None = None,
    contact_sheet: Path | None = None,
    model_name: str | None = None,
    progress: bool = True,
    rank: int | None = None,
    processes: int | None = None,
) -> Summary:
    """
    Paints a file of captions.

    What has been painted is kept shard by shard beside the output, in `OUTPUT.parts`; called again with the same
    arguments after whatever interruption, it goes on there. The bytes of the result depend on model, captions and
    options alone: not on interruptions, nor on how many processes share the work, if these compute alike (on the CPU:
    with the same number of threads, which a run keeps).

    Args:
        pipe ([`PaiPainterPipeline`]): The painter.
        captions ([`CaptionFile`]): From [`find_captions`] or [`from_stream`].
        output (`Path`): The file, or a folder for pictures.
        options ([`PredictOptions`]): How it paints.
        format (`str`, *optional*): `"tsv"`, `"parquet"`, `"png"`, `"webp"` (folders) or `"webdataset"`; by default as
            `output` ends: .tsv, .parquet, .tar, or nothing for a folder of PNG.
        output_schema (`str`, *optional*): Columns of a TSV: `idx,text,gen_imgbase64`, also `seed` and `score`.
        overwrite (`bool`): Start over, whatever is there.
        rejects (`Path`, *optional*): Where rows that can't be used are listed; by default
            `OUTPUT.rejected_rows.jsonl`.
        contact_sheet (`Path`, *optional*): A .png file for the first pictures with their captions.
        model_name (`str`, *optional*): What the pictures' metadata calls the model.
        progress (`bool`): Show a bar, if anybody is there to watch.
        rank, processes (`int`, *optional*): Which of several processes this is; by default as the launcher says. Each
            paints its own shards, and the last to finish joins all.

    Returns:
        [`Summary`].

    Raises:
        ValueError: if something else was begun there, or if no caption can be used.
        OSError: if the disk or the memory is full.
        KeyboardInterrupt: at Ctrl-C and SIGTERM.
    """
    rank, processes = this_process(rank, processes)
    if processes > 1 and (overwrite or not captions.resumable):
        what = "start over (please remove what is there first)" if overwrite else "share standard input"
        raise ValueError(f"Several processes can't {what}.")
    if output.name in ("", ".."):
        raise ValueError(f"The output {output} has no name of its own: please name a new file or folder.")
    if contact_sheet is not None and contact_sheet.suffix.lower() != ".png":
        raise ValueError(f"The contact sheet is saved as PNG: please let {contact_sheet} end in .png.")
    painting = PaintingOptions.for_model(
        pipe, options.best_of, options.temperature, options.top_k, options.top_p, speed=options.speed
    )
    survey = survey_captions(captions)
    batch_size = None if isinstance(options.batch_size, str) else options.batch_size
    shard_size = options.shard_size or default_shard_size(survey.rows, batch_size)
    plan = Plan(survey.rows, shard_size, options.num_images_per_prompt)
    work = Work(output, find_format(output, format, output_schema, captions))
    rejects = output.with_name(f"{output.name}.rejected_rows.jsonl") if rejects is None else rejects
    _check_places(captions, work, rejects, contact_sheet)
    name = model_name or Path(pipe.model.name_or_path).name
    new = _new_manifest(pipe, captions, survey, plan, work, options, painting, name)
    others = [rejects] if contact_sheet is None else [rejects, contact_sheet]
    manifest = work.begin(new, overwrite, others)
    if manifest.complete is not None:
        if contact_sheet is not None and not contact_sheet.exists():
            raise ValueError(f"{output} was finished without a contact sheet: for one, please start over with --force.")
        return summary_of(work, manifest.complete, rejects)
    encoder = PictureEncoder(work.format.picture_kind, painting, name)
    painter = ShardPainter(pipe, plan, painting, options.seed, encoder)
    run = Run(pipe, painter, captions, survey, plan, work, manifest, rejects, contact_sheet)
    try:
        with _sigterm_as_ctrl_c(), _threads(manifest.fixed["threads"]):
            return run.paint(rank, processes, progress)
    finally:
        if not captions.resumable and work.read_manifest().complete is None:
            work.abandon()


def _check_places(captions: CaptionFile, work: Work, rejects: Path, contact_sheet: Path | None) -> None:
    """No file may take the place of another, least of all of the captions."""
    places = {
        "the captions": captions.path,
        "the output": work.output,
        "its manifest": work.manifest_file,
        "the list of rejected rows": rejects,
    }
    if contact_sheet is not None:
        places["the contact sheet"] = contact_sheet
    taken: dict[Path, str] = {}
    for what, path in places.items():
        other = taken.setdefault(path.resolve(), what)
        if other != what:
            raise ValueError(f"{path} can't be both {other} and {what}: please give one of them another name.")


def _new_manifest(
    pipe: PaiPainterPipeline,
    captions: CaptionFile,
    survey: Survey,
    plan: Plan,
    work: Work,
    options: PredictOptions,
    painting: PaintingOptions,
    name: str,
) -> Manifest:
    batch_size = options.batch_size
    if batch_size == "auto":
        batch_size = fitting_batch_size(pipe.model.config, painting.best_of, pipe.model.device, pipe.model.dtype)
    wanted = {
        "seed": options.seed,
        "num_images_per_prompt": options.num_images_per_prompt,
        **vars(painting),
        **work.format.options,
        "batch_size": options.batch_size,
        "shard_size": plan.shard_size,
        "model_name": name,
        **_identity_of(pipe),
    }
    return Manifest(
        input={"rows": survey.rows, "sha256": survey.sha256, **captions.options},
        options=wanted,
        # A shard with less pictures than a batch needs no more places.
        fixed={
            "batch_size": min(batch_size, plan.pictures_of(0)),
            "threads": torch.get_num_threads(),
        },
        resumable=captions.resumable,
    )


def _identity_of(pipe: PaiPainterPipeline) -> dict[str, Any]:
    """What a run must find again to go on: model and vocabulary, wherever they were loaded from, and the arithmetic."""
    return {
        "model": hash_of_model(pipe.model),
        "vocabulary": pipe.processor.tokenizer.fingerprint,
        "device": pipe.model.device.type,
        "dtype": str(pipe.model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("pai-painter", "torch", "transformers", "pillow")},
    }


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Sums are rounded in another way by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
