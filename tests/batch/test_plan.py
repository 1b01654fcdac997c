# SPDX-License-Identifier: Apache-2.0
"""What is painted where follows from the captions alone."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pai_painter.batch.captions import find_captions
from pai_painter.batch.plan import Plan, default_shard_size, row_seed, rows_of_shards, survey_captions
from pai_painter.batch.processes import this_process
from pai_painter.data.tsv import BadRow


def test_seeds_never_change() -> None:
    """Golden: SHA-256, by another program (`printf '0\\x001' | sha256sum`, the first eight bytes, 63 bits)."""
    assert row_seed(0, "1") == 0x28578A6D4A77AB68
    assert row_seed(42, "猫") == 0x0F2454480631E5F3


def test_shards_and_batches_cover_every_place_once() -> None:
    plan = Plan(rows=23, shard_size=5, num_images=3)
    assert plan.num_shards == 5
    dealt = [shard for rank in range(3) for shard in plan.shards_of(rank, 3)]
    assert sorted(dealt) == list(range(5))
    assert [plan.pictures_of(shard) for shard in range(5)] == [15, 15, 15, 15, 9]
    assert [list(batch) for batch in plan.batches(4, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("rows", "batch_size", "size"),
    [
        *((1, 8, 32), (32_000, 8, 32), (32_001, 8, 64), (500_000, 8, 512), (10**7, 8, 1024)),
        *((1, 12, 36), (10**7, 12, 1008), (1, 2000, 2000), (1, None, 128), (10**7, None, 1024)),
    ],
)
def test_shards_are_whole_batches_and_grow_with_the_file(rows: int, batch_size: int | None, size: int) -> None:
    assert default_shard_size(rows, batch_size) == size


def test_repeated_ids_and_wanted_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t\na\t2\nb\t3\nc\t4\na\t5\nb\t6\n")
    source = find_captions(path)
    survey = survey_captions(source)
    assert (survey.rows, survey.bad, survey.first_bad.line_number) == (7, 1, 2)
    plan = Plan(7, 2, 1)

    def shown(wanted: set[int]) -> dict[int, list[str]]:
        return {
            shard: [row.reason if isinstance(row, BadRow) else row.text for row in rows]
            for shard, rows in rows_of_shards(source, survey, plan, wanted.__contains__)
        }

    again = "An earlier row has the same id."
    everything = {0: ["1", "The caption is empty."], 1: [again, "3"], 2: ["4", again], 3: [again]}
    assert shown({0, 1, 2, 3}) == everything
    assert shown({2}) == {2: everything[2]}


def test_an_id_is_not_taken_for_another_with_the_same_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t2\n")
    source = find_captions(path)
    survey = survey_captions(source)
    assert len(survey.repeated) == 0
    from pai_painter.batch.plan import RepeatWatch

    watch = RepeatWatch(np.array([7], dtype=np.uint64))
    watch.ids.add = lambda idx: watch.ids.hashes.append(7)  # all ids collide
    assert [watch.comes_again(idx) for idx in ("a", "b", "a")] == [False, False, True]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t2\n")
    source = find_captions(path)
    survey = survey_captions(source)
    path.write_text("a\t1\nb\t2\nc\t3\n")
    with pytest.raises(ValueError, match="was changed while it was being read"):
        list(rows_of_shards(source, survey, Plan(2, 1, 1), lambda shard: True))


def test_without_a_usable_caption(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"no caption that can be used. For example line 1: The row has 1 cells"):
        survey_captions(find_captions(tmp_path / "a.tsv"))


def test_memory_is_nine_bytes_a_row(tmp_path: Path) -> None:
    rows = 20_000
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{number}\t红苹果和绿苹果 {number}\n" for number in range(rows)))
    source = find_captions(path)
    tracemalloc.start()
    try:
        survey = survey_captions(source)
        for _ in rows_of_shards(source, survey, Plan(rows, 1024, 4), lambda shard: shard % 2 == 0):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows + 700_000  # a shard's rows, and the hash's buffer


@pytest.mark.parametrize(("given", "found"), [((None, None), (1, 4)), ((0, 1), (0, 1)), ((2, 3), (2, 3))])
def test_which_process_this_is(monkeypatch: pytest.MonkeyPatch, given, found) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert this_process(*given) == found


@pytest.mark.parametrize("given", [(1, None), (None, 2), (2, 2), (-1, 2)])
def test_impossible_processes(given) -> None:
    with pytest.raises(ValueError, match="rank"):
        this_process(*given)
