# SPDX-License-Identifier: Apache-2.0
"""Captions to pictures: what a run makes, goes on from, and refuses."""

import base64
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from pai_painter import PaiPainterPipeline
from pai_painter.batch.caption_files import CaptionFile
from pai_painter.batch.prediction import PredictOptions, Summary, find_captions, from_stream, predict_file, row_seed

CAPTIONS = ["红苹果", "熊猫", "黄色的香蕉", "", "大海", "一只猫", "山水画", "红苹果"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def captions(tmp_path: Path) -> CaptionFile:
    path = tmp_path / "captions.tsv"
    path.write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(CAPTIONS)), encoding="utf-8")
    return find_captions(path)


@pytest.fixture
def predict(pipe: PaiPainterPipeline, captions: CaptionFile, tmp_path: Path):
    """`predict_file` on the captions, in batches of 4 and shards of 3 unless told otherwise."""
    places = ("output_schema", "overwrite", "rank", "processes")

    def call(name: str = "a.tsv", source: CaptionFile = captions, shard_size: int = 3, **changes) -> Summary:
        where = {name: changes.pop(name) for name in places if name in changes}
        options = PredictOptions(**{"batch_size": 4, **changes})
        return predict_file(pipe, source, tmp_path / name, options, shard_size=shard_size, progress=False, **where)

    return call


def cells(path: Path) -> dict[str, str]:
    """Pictures by id."""
    return {line.split("\t")[0]: line.split("\t")[2] for line in path.read_text().splitlines()}


def picture(cell: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(cell, validate=True)))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_picture_is_the_one_that_paint_makes_from_its_seed(pipe, predict, tmp_path) -> None:
    """For the same batch shape exactly; rounding of another shape may change a pixel by one."""
    done = predict(num_images_per_prompt=2, best_of=3, seed=5)
    assert (done.rows, done.pictures, done.rejected, done.missing_shards) == (7, 14, 1, 0)
    there = cells(tmp_path / "a.tsv")
    assert list(there) == ["0", "1", "2", "4", "5", "6", "7"]
    for idx, caption in (("1", "熊猫"), ("7", "红苹果")):
        seed = row_seed(5, idx)
        images = [picture(cell) for cell in json.loads(there[idx])]
        alone = pipe(caption, 2, seed=seed, best_of=3)
        assert [image.text["seed"] for image in images] == [str(seed), str(seed + 3)]
        assert [image.text["candidate_seed"] for image in images] == [str(seed) for seed in alone.seeds]
        for image, other in zip(images, alone.images, strict=True):
            difference = [abs(a - b) for a, b in zip(image.tobytes(), other.tobytes(), strict=True)]
            assert max(difference) <= 1
    assert there["0"] != there["7"]  # one caption, two ids


def test_pictures_do_not_depend_on_which_rows_are_bad(predict, captions, tmp_path) -> None:
    predict("a.tsv")
    captions.path.write_text(
        captions.path.read_text().replace("3\t\n", "3\t狗\n").replace("大海", "\r").replace("熊猫", "🦄")
    )
    predict("b.tsv")
    before, after = cells(tmp_path / "a.tsv"), cells(tmp_path / "b.tsv")
    assert set(before) - set(after) == {"1", "4"}
    assert all(before[idx] == after[idx] for idx in set(before) & set(after))
    rejects = [json.loads(line) for line in (tmp_path / "b.tsv.rejected_rows.jsonl").read_text().splitlines()]
    assert [(reject["file"], reject["line"], reject["idx"]) for reject in rejects] == [
        (str(captions.path), 2, "1"),
        (str(captions.path), 5, "4"),
    ]
    assert "knows no word of the caption" in rejects[0]["reason"]


@pytest.mark.parametrize("name", ["a.tsv", "a.parquet", "a"])
def test_processes_one_after_another_make_the_same_bytes(predict, tmp_path, name) -> None:
    predict(f"one/{name}")
    first = predict(f"two/{name}", rank=1, processes=2)
    assert (first.missing_shards, (tmp_path / "two" / name).exists()) == (2, False)
    assert predict(f"two/{name}", rank=0, processes=2).missing_shards == 0
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert one == two
    assert not any(".parts" in path for path in one)


def test_what_is_done_is_not_painted_again_and_the_end_is_remembered(pipe, predict, tmp_path) -> None:
    predict(rank=0, processes=2)
    calls = []
    pipe.model.vqgan.decoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    predict()
    assert calls == [3]  # the one shard that was missing: a batch of fixed shape, though one caption is empty
    stamp = (tmp_path / "a.tsv").stat().st_mtime_ns
    done = predict()
    assert (len(calls), done.rows, done.rejected, (tmp_path / "a.tsv").stat().st_mtime_ns) == (1, 7, 1, stamp)
    assert done.rejects_file == tmp_path / "a.tsv.rejected_rows.jsonl"


def test_other_options_captions_and_models_are_refused(pipe, predict, captions, tmp_path) -> None:
    predict(rank=0, processes=2)
    for change in ({"seed": 1}, {"batch_size": 2}, {"temperature": 0.5}, {"num_images_per_prompt": 2}):
        with pytest.raises(ValueError, match=rf"was started with different options \({next(iter(change))} .* instead"):
            predict(**change)
    with pytest.raises(ValueError, match="different options"):
        predict(output_schema="gen_imgbase64")
    text = captions.path.read_text()
    captions.path.write_text(text + "x\t狗\n")
    with pytest.raises(ValueError, match="was started with different input"):
        predict()
    with pytest.raises(ValueError, match="`overwrite` needs a single process"):
        predict(seed=1, overwrite=True, rank=0, processes=2)
    assert predict(seed=1, overwrite=True).rows == 8
    with torch.no_grad():
        pipe.model.lm_head.weight[3, 3] += 1e-3
    with pytest.raises(ValueError, match=r"different options \(model "):
        predict(seed=1)


def test_shards_of_another_run_do_not_count(predict, tmp_path) -> None:
    """As if a run had been killed while it started over."""
    predict("b.tsv", seed=4)
    predict(seed=3, rank=0, processes=2)
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "a.tsv.parts", kept)
    predict(seed=4, rank=1, processes=2, name="c.tsv")
    for shard in kept.glob("0*.jsonl"):
        assert not (tmp_path / "c.tsv.parts" / shard.name).exists()
        shutil.copy(shard, tmp_path / "c.tsv.parts")
    predict("c.tsv", seed=4)
    assert (tmp_path / "c.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("stranger", ["a.tsv", "a.tsv.parts/x", "a.tsv.rejected_rows.jsonl", "a.tsv/x"])
def test_strangers_are_neither_overwritten_nor_removed(predict, tmp_path, stranger, overwrite) -> None:
    (tmp_path / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / stranger).write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"please move it"):
        predict(overwrite=overwrite)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.rejected_rows.jsonl"])
def test_a_file_that_is_there_is_noticed_whenever_a_run_goes_on(predict, tmp_path, name, overwrite) -> None:
    predict(rank=0, processes=2)
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match=rf"{name} already exists"):
        predict(overwrite=overwrite)
    assert (tmp_path / name).read_text() == "precious"
    (tmp_path / name).unlink()
    assert predict(rank=1, processes=2).rows == 7  # nothing was lost


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("captions.tsv", "captions.tsv"),
        ("folder", "folder/captions.tsv"),
        ("a.tsv", "a.tsv.rejected_rows.jsonl"),
        ("folder/../a.tsv", "a.tsv.manifest.json"),
        ("a", "a.parts/captions.tsv"),
    ],
)
def test_no_file_takes_the_place_of_the_captions(predict, captions, tmp_path, output, name) -> None:
    """Not even when what is there may be removed: the captions would be gone."""
    (tmp_path / "folder").mkdir()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    captions = find_captions(captions.path.rename(tmp_path / name), kind="tsv")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"is in a place that this run writes to .*: please name another"):
        predict(output, captions, overwrite=True)
    assert tree(tmp_path) == before


def test_what_can_not_be_renamed_in_the_end_is_refused_at_the_start(predict, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link or a mount point"):
        predict("a")
    for name in ("..", "-"):
        with pytest.raises(ValueError, match="has no name of its own"):
            predict(name)
    assert {path.name for path in tmp_path.iterdir()} == {"captions.tsv", "elsewhere", "a"}


def test_starting_over_removes_what_the_manifest_names_and_nothing_else(predict, tmp_path) -> None:
    predict("a")
    before = tree(tmp_path / "a")
    (tmp_path / "a" / "000000" / "mine.png").write_text("precious")
    with pytest.raises(FileExistsError, match=r"mine.png isn't what this command wrote"):
        predict("a", seed=1, overwrite=True)
    (tmp_path / "a" / "000000" / "mine.png").unlink()
    assert tree(tmp_path / "a") == before
    predict("a", seed=1, overwrite=True)
    assert before.keys() == tree(tmp_path / "a").keys()
    assert before != tree(tmp_path / "a")
    predict("a.tsv")
    (tmp_path / "a.tsv.rejected_rows.jsonl").write_text("precious")
    with pytest.raises(FileExistsError, match=r"rejected_rows.jsonl isn't what this command wrote"):
        predict("a.tsv", seed=1, overwrite=True)
    (tmp_path / "a.tsv").write_text("precious")
    with pytest.raises(FileExistsError, match=r"a.tsv isn't what this command wrote"):
        predict(overwrite=True)
    with pytest.raises(ValueError, match="was finished, but is gone or changed"):
        predict()


def test_a_damaged_manifest_and_an_output_that_is_gone(predict, tmp_path) -> None:
    (tmp_path / "a.tsv.manifest.json").write_text("{")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"is not a manifest of this command .*: please move it away"):
            predict(overwrite=overwrite)
    predict("b.tsv")
    (tmp_path / "b.tsv").unlink()
    with pytest.raises(ValueError, match="was finished, but is gone"):
        predict("b.tsv")
    assert predict("b.tsv", overwrite=True).rows == 7


def test_a_process_that_is_at_work_is_named_and_one_that_joins_is_waited_for(predict, tmp_path, caplog) -> None:
    predict(rank=1, processes=2)
    with FileLock(tmp_path / "a.tsv.parts" / "0-of-1.lock"):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=r"Another process has locked .*0-of-1.lock; if none runs"):
                predict(overwrite=overwrite)
    started = threading.Event()

    def join_slowly() -> None:
        with FileLock(tmp_path / "a.tsv.parts" / "join.lock"):
            started.set()
            time.sleep(2)

    other = threading.Thread(target=join_slowly)
    other.start()
    started.wait()
    assert predict().rows == 7
    other.join()
    assert "Waiting: Another process has locked" in caplog.text
    assert not (tmp_path / "a.tsv.parts").exists()


def test_left_overs_of_a_killed_run_are_removed(predict, tmp_path) -> None:
    predict("whole.tsv")
    predict(rank=1, processes=2)
    (tmp_path / "a.tsv.parts" / "0-of-7.writing").write_text("half")
    (tmp_path / "a.tsv.parts" / "joined").write_text("half")
    (tmp_path / "a.tsv.parts" / "mine").write_text("precious")
    predict()
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert [path.name for path in (tmp_path / "a.tsv.parts").iterdir()] == ["mine"]


def test_memory_that_is_full(pipe, predict) -> None:
    """A batch of more than two doesn't fit, as on a small accelerator."""

    def refuse(module, arguments, options) -> None:
        if options["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    pipe.model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(OSError, match="Memory is full with 4 pictures at once: please set a smaller batch size"):
        predict(shard_size=4)
    assert predict(shard_size=4, batch_size=2, overwrite=True).rows == 7


def test_standard_input_goes_on_if_the_same_captions_come_again(pipe, predict, tmp_path) -> None:
    def stop(module, inputs) -> None:
        raise KeyboardInterrupt

    hook = pipe.model.vqgan.decoder.register_forward_pre_hook(stop)
    captions = "红苹果\n熊猫\n".encode()
    with pytest.raises(KeyboardInterrupt):
        predict(source=from_stream(io.BytesIO(captions)))
    hook.remove()
    assert not list(tmp_path.glob("a.tsv.parts/*.writing"))
    with pytest.raises(ValueError, match="was started with different input"):
        predict(source=from_stream(io.BytesIO(captions * 2)))
    assert predict(source=from_stream(io.BytesIO(captions))).rows == 2


def test_captions_with_every_control_character(predict, tmp_path) -> None:
    lines = [{"idx": str(code), "text": f"红{chr(code)}苹果"} for code in range(0xA0)]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = predict(source=find_captions(path), batch_size=16, shard_size=64)
    assert (done.rows, done.rejected) == (0xA0, 0)
    again = find_captions(tmp_path / "a.tsv", input_schema="idx:str:1,text:str:1,gen_imgbase64:str:1")
    assert [row.idx for row in again.rows() if row.reason is None] == [str(code) for code in range(0xA0)]


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"shard_size": 0}, {"seed": -1}, {"rank": 2, "processes": 2}, {"top_k": 0}]
)
def test_impossible_options(predict, tmp_path, wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        predict(**wrong)
    assert os.listdir(tmp_path) == ["captions.tsv"]
