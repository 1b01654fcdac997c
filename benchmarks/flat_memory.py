# SPDX-License-Identifier: Apache-2.0
"""Trains on a TSV larger than the memory it may take: preparing and training must not read it whole."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from measuring import GB, MeasuringFailed
from PIL import Image
from reporting import run_script, write_json
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from pai_painter import (
    DEMO_MODEL,
    PaiPainterConfig,
    PaiPainterForImageGeneration,
    PaiPainterTokenizer,
    PaiPainterVQConfig,
)

_ROOT = Path(__file__).resolve().parents[1]
_UNITS = {"MB": 10**6, "GB": GB}
# The TSV, its pictures as a table, and a little for tokens, checkpoints and the model.
_DISK_SHARE, _DISK_REST = 1.75, GB // 2


def main(
    size: Annotated[str, typer.Option(help="Of the TSV that is made, such as 200MB or 2GB.")] = "2GB",
    limit: Annotated[str, typer.Option(help="Anonymous memory that must not be exceeded.")] = "2GB",
    side: Annotated[int, typer.Option(min=32, help="Side of its pictures in pixels.")] = 384,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 20,
    folder: Annotated[Path | None, typer.Option(help="For all files; removed in the end. The system's /tmp.")] = None,
    tiny: Annotated[bool, typer.Option(help="Try the script out: 1 MB and two steps, results mean nothing.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """
    Makes a TSV of noisy pictures, each another, and trains a tiny painter on it with train.py, twice: the first run
    prepares rows and tokens, the second finds them. Exits with 1 if a run's processes together held more anonymous
    memory than the limit. (Pages of the TSV and of the tables aren't counted: the system takes them back when it
    needs them.)
    """
    size_bytes, limit_bytes = 2**20 if tiny else _bytes_of(size), _bytes_of(limit)
    with tempfile.TemporaryDirectory(prefix="flat-memory-", dir=folder) as scratch:
        work = Path(scratch)
        free, needed = shutil.disk_usage(work).free, int(_DISK_SHARE * size_bytes) + _DISK_REST
        if free < needed:
            raise typer.BadParameter(
                f"{work.parent} has {free / GB:.1f} GB free, but {needed / GB:.1f} GB are needed; please name another "
                f"`--folder` or a smaller `--size`."
            )
        rows = _write_rows(work / "rows.tsv", size_bytes, side)
        _write_models(work)
        runs = [_train(work, name, 2 if tiny else steps) for name in ("first", "second")]
    preparing = runs[0]["seconds"] - runs[1]["seconds"]
    figures = {
        "size_gb": size_bytes / GB,
        "rows": rows,
        "runs": runs,
        "rows_per_second_of_preparing": rows / preparing if preparing > 1 else None,
        "limit_gb": limit_bytes / GB,
    }
    _show(figures)
    write_json(json_file, figures)
    if max(run["peak_gb"] for run in runs) * GB > limit_bytes:
        typer.echo(f"More than {limit_bytes / GB:g} GB of anonymous memory were in use.", err=True)
        raise typer.Exit(1)


def _bytes_of(words: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB)", words.strip(), re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"a size is a number and MB or GB, such as 200MB, got {words!r}.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _write_rows(path: Path, size: int, side: int) -> int:
    """Rows of JPEG noise until the file has its size: nothing in it compresses, and no two are alike."""
    generator, rows = np.random.default_rng(0), 0
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < size:
            pixels = generator.integers(256, size=(side, side, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="JPEG", quality=75)
            file.write(f"{rows}\t第{rows}张图\t{base64.b64encode(buffer.getvalue()).decode()}\n")
            rows += 1
    return rows


def _write_models(work: Path) -> None:
    """A painter with random weights and its vocabulary: 32×32 pixels, 8×8 tokens."""
    vqgan = PaiPainterVQConfig(
        resolution=32,
        base_channels=8,
        channel_multiplier=[1, 2, 2],
        num_res_blocks=1,
        attn_resolutions=[],
        latent_channels=8,
        embed_dim=8,
        num_embeddings=64,
        norm_num_groups=4,
    )
    logging.disable_progress_bar()
    tokenizer = PaiPainterTokenizer.from_pretrained(DEMO_MODEL, image_vocab_size=64, model_max_length=32)
    config = PaiPainterConfig(
        vq_config=vqgan,
        image_vocab_size=64,
        text_vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    painter = PaiPainterForImageGeneration(config)
    painter.vqgan.save_pretrained(work / "vqgan")
    config.save_pretrained(work / "painter")
    tokenizer.save_pretrained(work / "painter")


def _train(work: Path, name: str, steps: int) -> dict[str, float]:
    """One run of train.py on the rows; both share a cache."""
    words = ["--config_name", "painter", "--vqgan", "vqgan", "--train_file", "rows.tsv", "--cache_dir", "cache"]
    words += ["--output_dir", name, "--max_train_steps", str(steps), "--logging_steps", "1"]
    command = [sys.executable, str(_ROOT / "train.py"), *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with open(work / f"{name}.log", "w+", encoding="utf-8") as log:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
        with watch_anonymous_memory(process.pid) as peak:
            status = process.wait()
        seconds = time.monotonic() - start
        if status != 0:
            log.seek(0)
            raise MeasuringFailed(f"train.py ended with status {status}:\n{log.read()[-4000:]}")
    lines = (work / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    done = max(json.loads(line)["step"] for line in lines)
    return {"seconds": seconds, "steps": done, "peak_gb": max(peak) / GB}


@contextmanager
def watch_anonymous_memory(pid: int, interval: float = 0.05) -> Iterator[list[int]]:
    """A list that grows by the anonymous memory of a process and its children, in bytes, as long as it runs."""
    samples, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(interval):
            samples.append(_anonymous(pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield samples
    finally:
        over.set()
        watcher.join()


def _anonymous(pid: int) -> int:
    total = 0
    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    for member in family:
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))
    return total


def _show(figures: dict[str, Any]) -> None:
    speed = figures["rows_per_second_of_preparing"]
    table = Table(
        title=f"Training on a TSV of {figures['size_gb']:.2f} GB, {figures['rows']:,} rows",
        caption=f"Preparing: {'too quick to tell' if speed is None else f'{speed:,.0f} rows/s'}. "
        f"Allowed: {figures['limit_gb']:g} GB.",
    )
    for heading in ("run", "seconds", "steps", "peak anonymous memory"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for name, run in zip(("first, prepares", "second, from the cache"), figures["runs"], strict=True):
        table.add_row(name, f"{run['seconds']:.1f}", str(run["steps"]), f"{run['peak_gb']:.2f} GB")
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
