# SPDX-License-Identifier: Apache-2.0
"""Streams: every row once per epoch, in an order that a restart finds again."""

import itertools
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_files import WRITERS, line, picture, samples, write_csv_folder, write_parquet, write_shard, write_tsv
from torch.utils.data import DataLoader

from pai_painter.data import open_picture, streaming
from pai_painter.data.sources import DataSource, find_source
from pai_painter.data.streaming import PictureStream, StreamedRow

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


@pytest.mark.parametrize("buffer", [1, 8, 39, 40, 1000])
def test_every_row_once_per_epoch(buffer: int, tmp_path: Path) -> None:
    rows = first(stream_of(source_of(tmp_path), shuffle_buffer=buffer), 3 * len(GOOD))
    epochs = [[row for row in rows if row.epoch == epoch] for epoch in range(3)]
    assert all(set(names(epoch)) == GOOD and len(epoch) == len(GOOD) for epoch in epochs)
    assert all(len({row.position for row in epoch}) == len(GOOD) for epoch in epochs)
    if buffer == 1:
        files_order = [f"r{number}" for part in range(3) for number in range(part, ROWS, 3) if number not in BAD]
        assert all(names(epoch) == files_order for epoch in epochs)
    else:
        assert names(epochs[0]) != names(epochs[1]) != names(epochs[2])
    row = rows[0]
    assert row.captions == [f"红{row.idx[1:]}"]
    assert row.picture == open_picture(picture(int(row.idx[1:])))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_streams_alike(kind: str, tmp_path: Path) -> None:
    stream = stream_of(find_source([WRITERS[kind](tmp_path, samples(20, (3,)))]))
    rows = first(stream, 38)
    assert sorted(names(rows[:19])) == sorted(f"r{number}" for number in range(20) if number != 3)
    assert [row.epoch for row in rows] == [0] * 19 + [1] * 19
    stream.start_at(rows[24].epoch, rows[24].position)
    assert first(stream, 13) == rows[25:]


def test_data_sets_by_name_stream(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        write_parquet(tmp_path / "set", samples(5, first=5 * number), f"train-{number}.parquet")
    stream = stream_of(find_source(None, dataset_name=str(tmp_path / "set"), cache_dir=tmp_path / "cache"))
    rows = first(stream, 30)
    assert {row.idx for row in rows[:15]} == {row.idx for row in rows[15:]} == {f"r{number}" for number in range(15)}
    stream.start_at(rows[7].epoch, rows[7].position)
    assert first(stream, 22) == rows[8:]
    assert not list((tmp_path / "cache").rglob("*.arrow"))


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


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_an_epoch(processes: int, tmp_path: Path) -> None:
    source = source_of(tmp_path)
    shares = [first(stream_of(source, rank=rank, processes=processes), 60) for rank in range(processes)]
    epoch = [row for share in shares for row in share if row.epoch == 0]
    assert sorted(names(epoch)) == sorted(GOOD)
    whole = [row for row in first(stream_of(source), 36) if row.epoch == 0]
    assert sorted(epoch, key=lambda row: row.position) == whole


@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (0, 2), (1, 2)])
def test_stopped_anywhere_it_goes_on_with_the_same_rows(rank: int, processes: int, tmp_path: Path) -> None:
    source = source_of(tmp_path)
    options = {"rank": rank, "processes": processes}
    expected = first(stream_of(source, **options), 80)
    for stop in range(1, 80):
        again = stream_of(source, **options)
        again.start_at(expected[stop - 1].epoch, expected[stop - 1].position)
        assert first(again, 80 - stop) == expected[stop:], stop


def test_going_on_opens_no_picture_that_lies_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path, bad=())
    rows = first(stream_of(source), ROWS)
    read: list[int] = []
    inner = type(source).read
    monkeypatch.setattr(type(source), "read", lambda self, record: read.append(1) or inner(self, record))
    stream = stream_of(source)
    stream.start_at(0, rows[29].position)
    assert first(stream, 10) == rows[30:]
    assert len(read) == 10


def test_bad_rows_are_listed_once_by_who_meets_them(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    rejects = tmp_path / "out" / "rejected_train_rows.jsonl"
    met = set()
    for rank in range(2):
        rows = first(stream_of(source, rank=rank, processes=2, rejects=rejects), 200)
        own = rejects if rank == 0 else tmp_path / "out" / "rejected_train_rows-rank1.jsonl"
        records = [json.loads(record) for record in own.read_text(encoding="utf-8").splitlines()]
        assert len({record["idx"] for record in records}) == len(records) <= len(BAD)
        met |= {record["idx"] for record in records}
        assert rows[-1].epoch > 5
    assert met == {f"r{number}" for number in BAD}
    assert records[0]["file"] in source.parts
    assert "none of PNG" in records[0]["reason"]


def test_the_list_of_bad_rows_goes_on_with_the_run(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    rejects = tmp_path / "rejected.jsonl"
    rows = first(stream_of(source, rejects=rejects), 36)
    whole = rejects.read_text(encoding="utf-8")
    assert whole.count("\n") == 4
    for content in (whole, whole + '{"file": "cut o', whole[:-9], ""):
        rejects.write_text(content, encoding="utf-8")
        stream = stream_of(source, rejects=rejects, max_bad_rows=4)
        stream.start_at(rows[4].epoch, rows[4].position)
        first(stream, 80)
        assert sorted(rejects.read_text(encoding="utf-8").splitlines()) == sorted(whole.splitlines())
    # The limit is one of the whole run, and a run from the beginning begins its list anew.
    stream = stream_of(source, rejects=rejects, max_bad_rows=3)
    stream.start_at(*next((row.epoch, row.position) for row in rows if row.position > 30))
    with pytest.raises(ValueError, match=r"has 4 unusable rows"):
        first(stream, 80)
    first(stream_of(source_of(tmp_path, bad=()), rejects=rejects), 40)
    assert not rejects.exists()


def test_too_many_bad_rows(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    assert len(first(stream_of(source, max_bad_rows=4), 100)) == 100  # the same four in every epoch
    with pytest.raises(ValueError, match=r"has 4 unusable rows so far, the first \S+\.tsv, line \d+: .*at most 3 are"):
        first(stream_of(source, max_bad_rows=3), 100)
    wrong = find_source([tmp_path / "0.tsv"], input_schema="idx,x,text,imgbase64")
    with pytest.raises(ValueError, match=r"has 3 unusable rows so far.*Is `input_schema` \(idx,x,text,imgbase64\)"):
        first(stream_of(wrong, max_bad_rows=2), 1)


def test_no_usable_row_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no usable row \(3 unusable rows so far, the first"):
        first(stream_of(source_of(tmp_path, 3, (0, 1, 2))), 1)
    (tmp_path / "one").mkdir()
    one = source_of(tmp_path / "one", 1, (), files=1)
    assert names(first(stream_of(one), 3)) == ["r0"] * 3
    with pytest.raises(ValueError, match=r"no usable row for process 2 of 2 \(no unusable ones either\)"):
        first(stream_of(one, rank=1, processes=2), 1)
    # Behind the last row of an epoch none is left, which is no error.
    stream = stream_of(one)
    stream.start_at(0, 1)
    assert [(row.epoch, row.position) for row in first(stream, 2)] == [(1, 1), (2, 1)]


def test_a_damaged_file_stops_it(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, samples(30))
    stream = stream_of(find_source([shard]))
    shard.write_bytes(shard.read_bytes()[:30_500])
    with pytest.raises(ValueError, match=r"shard\.tar is damaged after sample"):
        first(stream, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
        ({"rank": 2, "processes": 2}, "rank is 2"),
        ({"rank": -1}, "rank is -1"),
    ],
)
def test_numbers_out_of_range(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        stream_of(source_of(tmp_path), **options)


def test_starts_out_of_range(tmp_path: Path) -> None:
    for place in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="neither may be negative"):
            stream_of(source_of(tmp_path)).start_at(*place)


def test_in_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path)
    loader = DataLoader(stream_of(source), batch_size=4, collate_fn=list)
    batches = itertools.islice(loader, 3)
    assert [row for batch in batches for row in batch] == first(stream_of(source), 12)
    monkeypatch.setattr(streaming, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with pytest.raises(ValueError, match="read by one worker, but there are 2"):
        first(stream_of(source), 1)


def test_memory_stays_flat(tmp_path: Path) -> None:
    row = line("1", "红", picture(1)).rstrip("\n")
    padded = row.replace("\t红\t", "\t红" + "红" * 15_000 + "\t")
    (tmp_path / "x.tsv").write_text(f"{padded}\n" * 60, encoding="utf-8")  # 3 MB
    first(stream_of(find_source([tmp_path / "x.tsv"])), 1)  # what is imported on the way
    stream = stream_of(find_source([tmp_path / "x.tsv"]))
    tracemalloc.start()
    assert sum(len(row.captions) for row in itertools.islice(stream, 80)) == 80
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000


def test_a_picture_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(streaming, "open_picture", lambda data: opened.append(data) or open_picture(data))
    rows = first(stream_of(source_of(tmp_path, bad=())), ROWS)
    assert sorted(opened) == sorted(picture(number) for number in range(ROWS))
    assert {row.picture.mode for row in rows} == {"RGB"}


def test_pictures_of_a_folder_are_read_one_at_a_time(tmp_path: Path) -> None:
    """What waits in the buffer is a line of the table, not a picture."""
    folder = write_csv_folder(tmp_path, samples(20))
    stream = stream_of(find_source([folder]), shuffle_buffer=20)
    rows = iter(stream)
    next(rows)
    (folder / "sub" / "r7.png").write_bytes(picture(250))
    assert open_picture(picture(250)) in [row.picture for row in itertools.islice(rows, 19)]
