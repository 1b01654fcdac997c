# SPDX-License-Identifier: Apache-2.0
"""Opens the pictures of rows, in several processes if asked, and keeps the rows in their order."""

import io
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from PIL import Image

from .picture_rows import PictureRow
from .pictures import BadPicture, open_picture, picture_format
from .tsv import BadRow

__all__ = ["check_rows"]

_JPEG_QUALITY = 95
# What a worker gets at once: enough to be worth the way, little enough to hold several.
_CHUNK_ROWS, _CHUNK_BYTES = 16, 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Checked:
    """What became of a picture: another file, the reason why it can't be used, or neither."""

    picture: bytes | None = None
    reason: str | None = None


def check_rows(
    rows: Iterator[PictureRow | BadRow], size: int | None, workers: int
) -> Generator[PictureRow | BadRow, None, None]:
    """
    Gives the rows in their order; those whose picture can't be opened come as bad rows.

    Args:
        rows (`Iterator[PictureRow | BadRow]`): See [`~data.picture_rows.DataSource.good_and_bad_rows`].
        size (`int`, *optional*): Pictures whose shorter side is longer are shrunk to this.
        workers (`int`): Processes; 1 for none but this one.

    Raises:
        ChildProcessError: if a worker was killed.
    """
    chunks = _chunks(rows)
    if workers == 1:
        for chunk in chunks:
            yield from _with_results(chunk, _check_pictures(_pictures(chunk), size))
        return
    # Forking this process could copy a lock that another thread holds; a fork server has no other thread.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    waiting: deque[tuple[list[PictureRow | BadRow], Future[list[_Checked]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_check_pictures, _pictures(chunk), size)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield from _with_results(first, future.result())
        while waiting:
            first, future = waiting.popleft()
            yield from _with_results(first, future.result())
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "A worker process was killed, perhaps because memory was full: the same command with fewer --workers goes "
            "on."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(rows: Iterator[PictureRow | BadRow]) -> Iterator[list[PictureRow | BadRow]]:
    chunk: list[PictureRow | BadRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.picture) if isinstance(row, PictureRow) else 0
        if len(chunk) == _CHUNK_ROWS or size > _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _pictures(chunk: list[PictureRow | BadRow]) -> list[bytes]:
    return [row.picture for row in chunk if isinstance(row, PictureRow)]


def _with_results(chunk: list[PictureRow | BadRow], results: list[_Checked]) -> Iterator[PictureRow | BadRow]:
    remaining = iter(results)
    for row in chunk:
        if isinstance(row, BadRow):
            yield row
            continue
        result = next(remaining)
        if result.reason is not None:
            yield BadRow(row.file, row.line, result.reason, row.idx)
        elif result.picture is not None:
            yield replace(row, picture=result.picture)
        else:
            yield row


def _begin_worker() -> None:
    """Ctrl-C is for the parent to handle; and if that is killed, its workers end, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()


def _check_pictures(pictures: list[bytes], size: int | None) -> list[_Checked]:
    return [_check_picture(picture, size) for picture in pictures]


def _check_picture(data: bytes, size: int | None) -> _Checked:
    try:
        picture = open_picture(data)
    except BadPicture as error:
        return _Checked(reason=str(error))
    shorter = min(picture.size)
    if size is None or shorter <= size:
        return _Checked()
    sides = tuple(max(1, round(side * size / shorter)) for side in picture.size)
    shrunk = picture.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    was_lossy = picture_format(data) in ("JPEG", "WEBP")
    file = io.BytesIO()
    if was_lossy:
        shrunk.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        shrunk.save(file, "PNG")
    return _Checked(picture=file.getvalue())
