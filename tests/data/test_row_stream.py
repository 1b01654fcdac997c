# SPDX-License-Identifier: Apache-2.0
"""Streams: every row once per epoch, in an order that a restart finds again."""

import itertools
import json
import tracemalloc
from pathlib import Path

import pytest
from sample_files import WRITERS, line, picture, samples, write_csv_folder, write_parquet, write_tsv
from torch.utils.data import DataLoader

from pai_painter.data import open_picture, sources
from pai_painter.data.row_stream import PictureStream, StreamedRow
from pai_painter.data.sources import DataSource, find_source

ROWS, BAD = 40, (3, 4, 17, 38)
GOOD = {f"r{number}" for number in range(ROWS) if number not in BAD}


def source_of(folder: Path, count: int = ROWS, bad: tuple[int, ...] = BAD, files: int = 3) -> DataSource:
    rows = samples(count, bad)
    for number in range(files):
        write_tsv(folder, rows[number::files], f"{number}.tsv")
    return find_source([str(folder / "[0-9].tsv")])


def stream_of(source: DataSource, **options: object) -> PictureStream:
    return PictureStream(source, **{"seed": 1, "shuffle_buffer": 8, **options})


def first(stream: PictureStream, count: int) -> list[StreamedRow]:
    return list(itertools.islice(stream, count))


def names(rows: list[StreamedRow]) -> list[str]:
    return [row.idx for row in rows]


@pytest.mark.parametrize("buffer", [1, 8, 1000])
def test_every_row_once_per_epoch(buffer: int, tmp_path: Path) -> None:
    rows = first(stream_of(source_of(tmp_path), shuffle_buffer=buffer), 3 * len(GOOD))
    epochs = [[row for row in rows if row.epoch == epoch] for epoch in range(3)]
    assert all(set(names(epoch)) == GOOD and len(epoch) == len(GOOD) for epoch in epochs)
    if buffer == 1:
        files_order = [f"r{number}" for part in range(3) for number in range(part, ROWS, 3) if number not in BAD]
        assert all(names(epoch) == files_order for epoch in epochs)
    else:
        assert names(epochs[0]) != names(epochs[1]) != names(epochs[2])
    row = rows[0]
    assert row.captions == [f"红{row.idx[1:]}"]
    assert row.picture == open_picture(picture(int(row.idx[1:])))


@pytest.mark.parametrize("kind", [*WRITERS, "named"])
def test_every_kind_streams_alike(kind: str, tmp_path: Path) -> None:
    if kind == "named":
        (tmp_path / "set").mkdir()
        for number in range(2):
            write_parquet(tmp_path / "set", samples(10, (3,), first=10 * number), f"train-{number}.parquet")
        source = find_source(None, dataset_name=str(tmp_path / "set"), streaming=True)
    else:
        source = find_source([WRITERS[kind](tmp_path, samples(20, (3,)))])
    stream = stream_of(source)
    rows = first(stream, 38)
    assert sorted(names(rows[:19])) == sorted(f"r{number}" for number in range(20) if number != 3)
    assert [row.epoch for row in rows] == [0] * 19 + [1] * 19
    stream.start_at(rows[24].epoch, rows[24].position)
    assert first(stream, 13) == rows[25:]


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    one = first(stream_of(source), 100)
    assert first(stream_of(source), 100) == one
    assert names(first(stream_of(source, seed=2), 36)) != names(one[:36])
    # Written down once: a new version must go on where an old one stopped.
    assert names(one[:8]) == ["r1", "r13", "r28", "r19", "r10", "r31", "r34", "r25"]
    later = stream_of(source)
    later.start_at(2, 0)
    assert first(later, 100 - 72) == one[72:]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_an_epoch(processes: int, tmp_path: Path) -> None:
    source = source_of(tmp_path)
    shares = [first(stream_of(source, rank=rank, processes=processes), 60) for rank in range(processes)]
    epoch = [row for share in shares for row in share if row.epoch == 0]
    assert sorted(names(epoch)) == sorted(GOOD)


@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_stopped_anywhere_it_resumes_with_the_same_rows(rank: int, processes: int, tmp_path: Path) -> None:
    source = source_of(tmp_path)
    options = {"rank": rank, "processes": processes}
    expected = first(stream_of(source, **options), 60)
    for stop in range(1, 60, 3):
        again = stream_of(source, **options)
        again.start_at(expected[stop - 1].epoch, expected[stop - 1].position)
        assert first(again, 60 - stop) == expected[stop:], stop


def test_pictures_are_opened_once_and_none_that_lies_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bytes] = []
    monkeypatch.setattr(sources, "open_picture", lambda data: opened.append(data) or open_picture(data))
    source = source_of(tmp_path, bad=())
    rows = first(stream_of(source), ROWS)
    assert sorted(opened) == sorted(picture(number) for number in range(ROWS))
    stream = stream_of(source)
    stream.start_at(0, rows[29].position)
    assert first(stream, 10) == rows[30:]
    assert len(opened) == ROWS + 10


def test_bad_rows_are_listed_once_by_who_meets_them(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    rejects = tmp_path / "out" / "rejected_rows.jsonl"
    met = set()
    for rank in range(2):
        first(stream_of(source, rank=rank, processes=2, rejects=rejects), 200)
        own = rejects if rank == 0 else tmp_path / "out" / "rejected_rows-rank1.jsonl"
        records = [json.loads(record) for record in own.read_text(encoding="utf-8").splitlines()]
        assert len({record["idx"] for record in records}) == len(records) <= len(BAD)
        met |= {record["idx"] for record in records}
    assert met == {f"r{number}" for number in BAD}
    assert records[0]["file"] in source.parts
    assert "none of PNG" in records[0]["reason"]


def test_the_list_of_bad_rows_goes_on_with_the_run(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    rejects = tmp_path / "rejected.jsonl"
    rows = first(stream_of(source, rejects=rejects), 37)
    whole = rejects.read_text(encoding="utf-8")
    assert whole.count("\n") == 4
    for content in (whole, whole + '{"file": "cut o', whole[:-9], ""):
        rejects.write_text(content, encoding="utf-8")
        stream = stream_of(source, rejects=rejects, max_bad_rows=4)
        stream.start_at(rows[4].epoch, rows[4].position)
        first(stream, 80)
        assert sorted(rejects.read_text(encoding="utf-8").splitlines()) == sorted(whole.splitlines())
    first(stream_of(source_of(tmp_path, bad=()), rejects=rejects), 40)  # a run from the beginning begins its list anew
    assert not rejects.exists()


def test_too_many_bad_rows_and_none_that_is_usable(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    assert len(first(stream_of(source, max_bad_rows=4), 100)) == 100  # the same four in every epoch
    with pytest.raises(ValueError, match=r"has 4 unusable rows, the first \S+\.tsv, line \d+: .*at most 3 are"):
        first(stream_of(source, max_bad_rows=3), 100)
    with pytest.raises(ValueError, match=r"has no usable row for this process \(3 unusable rows, the first"):
        first(stream_of(source_of(tmp_path, 3, (0, 1, 2))), 1)
    (tmp_path / "one").mkdir()
    one = source_of(tmp_path / "one", 1, (), files=1)
    assert names(first(stream_of(one), 3)) == ["r0"] * 3
    with pytest.raises(ValueError, match=r"no usable row for this process \(no unusable rows either\)"):
        first(stream_of(one, rank=1, processes=2), 1)
    stream = stream_of(one)
    stream.start_at(0, 1)  # behind the last row of an epoch none is left, which is no error
    assert [(row.epoch, row.position) for row in first(stream, 2)] == [(1, 1), (2, 1)]


def test_in_a_loader(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    for workers in (0, 1):
        loader = DataLoader(stream_of(source), batch_size=4, collate_fn=list, num_workers=workers)
        batches = itertools.islice(loader, 3)
        assert [row for batch in batches for row in batch] == first(stream_of(source), 12)
    with pytest.raises(ValueError, match="shuffle_buffer is 0"):
        stream_of(source, shuffle_buffer=0)


def test_memory_stays_flat(tmp_path: Path) -> None:
    padded = line("1", "红" * 15_000, picture(1))
    (tmp_path / "x.tsv").write_text(padded * 60, encoding="utf-8")  # 3 MB
    first(stream_of(find_source([tmp_path / "x.tsv"])), 1)  # what is imported on the way
    stream = stream_of(find_source([tmp_path / "x.tsv"]))
    tracemalloc.start()
    assert sum(len(row.captions) for row in itertools.islice(stream, 80)) == 80
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_pictures_of_a_folder_are_read_one_at_a_time(tmp_path: Path) -> None:
    """What waits in the buffer is a line of the table, not a picture."""
    folder = write_csv_folder(tmp_path, samples(20))
    rows = iter(stream_of(find_source([folder]), shuffle_buffer=20))
    name = next(rows).idx
    other = "r7" if name != "r7" else "r8"
    (folder / "sub" / f"{other}.png").write_bytes(picture(250))
    assert open_picture(picture(250)) in [row.picture for row in itertools.islice(rows, 19)]
