# SPDX-License-Identifier: Apache-2.0
"""Which rows belong together follows from the captions alone."""

import tracemalloc
from pathlib import Path

import pytest

from pai_painter.batch.caption_files import find_captions, survey_captions
from pai_painter.batch.prediction import default_shard_size, row_seed


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


def test_repeated_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t\na\t2\nb\t3\nc\t4\na\t5\nb\t6\n")
    survey = survey_captions(find_captions(path))
    assert survey.rows == 7
    again = "An earlier row has the same id."
    shown = [[row.reason or row.text for row in rows] for rows in survey.shards(2)]
    assert shown == [["1", "The caption is empty."], [again, "3"], ["4", again], [again]]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t2\n")
    survey = survey_captions(find_captions(path))
    path.write_text("a\t1\nb\t2\nc\t3\n")
    with pytest.raises(ValueError, match="was changed while it was read"):
        list(survey.shards(1))


def test_without_a_usable_caption(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"idx": "\\u001b[31m\\t", "text": "x"}\n')
    with pytest.raises(ValueError, match=r"no caption that can be used. For example row 1: The id '\\x1b\[31m\\t' is"):
        survey_captions(find_captions(tmp_path / "a.jsonl"))
    (tmp_path / "a.tsv").write_text("1\t红\n")
    with pytest.raises(ValueError, match="For example row 1: There is no text in 'caption'"):
        survey_captions(find_captions(tmp_path / "a.tsv", caption_column="caption"))
    with pytest.raises(ValueError, match="For example row 1: The id in 'key' is neither text nor a whole number"):
        survey_captions(find_captions(tmp_path / "a.tsv", id_column="key"))


def test_memory_is_nine_bytes_per_row(tmp_path: Path) -> None:
    rows = 20_000
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{number}\t红苹果和绿苹果 {number}\n" for number in range(rows)))
    source = find_captions(path)
    tracemalloc.start()
    try:
        survey = survey_captions(source)
        for _ in survey.shards(1024):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows + 700_000  # a shard's rows, and the hash's buffer
