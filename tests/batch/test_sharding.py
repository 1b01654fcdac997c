# SPDX-License-Identifier: Apache-2.0
"""Which rows belong together follows from the captions alone."""

import tracemalloc
from pathlib import Path

import pytest

from pai_painter.batch.caption_files import find_captions
from pai_painter.batch.sharding import default_shard_size, read_shards, row_seed, survey_captions


def test_seeds_never_change() -> None:
    """Golden: SHA-256, by another program (`printf '0\\x001' | sha256sum`, the first eight bytes, 63 bits)."""
    assert row_seed(0, "1") == 0x28578A6D4A77AB68
    assert row_seed(42, "猫") == 0x0F2454480631E5F3


@pytest.mark.parametrize(
    ("rows", "batch_size", "size"),
    [
        *((1, 8, 32), (32_000, 8, 32), (32_001, 8, 64), (500_000, 8, 512), (10**7, 8, 1024)),
        *((1, 12, 36), (10**7, 12, 1008), (1, 2000, 2000)),
    ],
)
def test_shards_are_whole_batches_and_grow_with_the_file(rows: int, batch_size: int, size: int) -> None:
    assert default_shard_size(rows, batch_size) == size


def test_repeated_ids_and_wanted_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t\na\t2\nb\t3\nc\t4\na\t5\nb\t6\n")
    source = find_captions(path)
    survey = survey_captions(source)
    assert survey.rows == 7

    def shown(wanted: set[int]) -> dict[int, list[str]]:
        shards = read_shards(source, survey, 2, wanted.__contains__)
        return {shard: [row.reason or row.text for row in rows] for shard, rows in shards}

    again = "An earlier row has the same id."
    everything = {0: ["1", "The caption is empty."], 1: [again, "3"], 2: ["4", again], 3: [again]}
    assert shown({0, 1, 2, 3}) == everything
    assert shown({2}) == {2: everything[2]}


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t2\n")
    source = find_captions(path)
    survey = survey_captions(source)
    path.write_text("a\t1\nb\t2\nc\t3\n")
    with pytest.raises(ValueError, match="was changed while it was being read"):
        list(read_shards(source, survey, 1, lambda shard: True))


def test_without_a_usable_caption(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"idx": "\\u001b[31m\\t", "text": "x"}\n')
    with pytest.raises(ValueError, match=r"no caption that can be used. For example row 1: The id '\\x1b\[31m\\t' is"):
        survey_captions(find_captions(tmp_path / "a.jsonl"))


def test_memory_is_nine_bytes_per_row(tmp_path: Path) -> None:
    rows = 20_000
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{number}\t红苹果和绿苹果 {number}\n" for number in range(rows)))
    source = find_captions(path)
    tracemalloc.start()
    try:
        survey = survey_captions(source)
        for _ in read_shards(source, survey, 1024, lambda shard: shard % 2 == 0):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows + 700_000  # a shard's rows, and the hash's buffer
