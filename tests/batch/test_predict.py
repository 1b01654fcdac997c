# SPDX-License-Identifier: Apache-2.0
"""Captions to pictures: what a run makes, goes on from, and refuses."""

import base64
import io
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from pai_painter import PaiPainterPipeline
from pai_painter.batch.memory import fitting_batch_size
from pai_painter.batch.predict import PredictOptions, find_captions, from_stream, predict_file, row_seed
from pai_painter.batch.work import Work

SMALL = {"batch_size": 4, "shard_size": 3}
CAPTIONS = ["红苹果", "熊猫", "黄色的香蕉", "", "大海", "一只猫", "山水画", "红苹果"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def captions(tmp_path: Path):
    path = tmp_path / "captions.tsv"
    path.write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(CAPTIONS)), encoding="utf-8")
    return find_captions(path)


def cells(path: Path) -> dict[str, str]:
    """Pictures by id."""
    return {line.split("\t")[0]: line.split("\t")[2] for line in path.read_text().splitlines()}


def picture(cell: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(cell, validate=True)))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_picture_is_the_one_that_paint_makes_from_its_seed(pipe: PaiPainterPipeline, captions, tmp_path) -> None:
    """For the same batch shape exactly; rounding of another shape may change a pixel by one."""
    options = PredictOptions(**SMALL, num_images_per_prompt=2, best_of=3, seed=5)
    done = predict_file(pipe, captions, tmp_path / "a.tsv", options, progress=False)
    assert (done.rows, done.pictures, done.rejected, done.complete) == (7, 14, 1, True)
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


def test_pictures_do_not_depend_on_which_rows_are_bad(pipe: PaiPainterPipeline, captions, tmp_path) -> None:
    predict_file(pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False)
    captions.path.write_text(
        captions.path.read_text().replace("3\t\n", "3\t狗\n").replace("大海", "\r").replace("熊猫", "🦄")
    )
    predict_file(pipe, captions, tmp_path / "b.tsv", PredictOptions(**SMALL), progress=False)
    before, after = cells(tmp_path / "a.tsv"), cells(tmp_path / "b.tsv")
    assert set(before) - set(after) == {"1", "4"}
    assert all(before[idx] == after[idx] for idx in set(before) & set(after))
    rejects = [json.loads(line) for line in (tmp_path / "b.tsv.rejected_rows.jsonl").read_text().splitlines()]
    assert [(reject["line"], reject["idx"]) for reject in rejects] == [(2, "1"), (5, "4")]
    assert "knows no word of the caption" in rejects[0]["reason"]


@pytest.mark.parametrize("name", ["a.tsv", "a.parquet", "a.tar", "a"])
def test_processes_one_after_another_make_the_same_bytes(pipe, captions, tmp_path, name) -> None:
    whole, shared = tmp_path / "one" / name, tmp_path / "two" / name
    predict_file(pipe, captions, whole, PredictOptions(**SMALL), progress=False)
    first = predict_file(pipe, captions, shared, PredictOptions(**SMALL), progress=False, rank=1, processes=2)
    assert (first.complete, first.missing_shards, shared.exists()) == (False, 2, False)
    last = predict_file(pipe, captions, shared, PredictOptions(**SMALL), progress=False, rank=0, processes=2)
    assert last.complete
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert one == two
    assert not any(".parts" in path for path in one)


def test_what_is_done_is_not_painted_again_and_the_end_is_remembered(pipe, captions, tmp_path) -> None:
    output = tmp_path / "a.tsv"
    sheet = tmp_path / "sheet.png"
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False, rank=0, processes=2)
    calls = []
    hook = pipe.model.vqgan.decoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False, contact_sheet=sheet)
    assert calls == [3]  # the one shard that was missing: a batch of fixed shape, though one caption is empty
    with Image.open(sheet) as image:
        assert image.width > 300
    stamp = output.stat().st_mtime_ns
    done = predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False)
    hook.remove()
    assert (len(calls), done.rows, done.rejected, output.stat().st_mtime_ns) == (1, 7, 1, stamp)


def test_other_options_and_other_files_are_refused(pipe, captions, tmp_path) -> None:
    output = tmp_path / "a.tsv"
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False, rank=0, processes=2)
    for change in ({"seed": 1}, {"batch_size": 2}, {"temperature": 0.5}, {"num_images_per_prompt": 2}):
        with pytest.raises(ValueError, match=rf"was begun with other options \({next(iter(change))} .* instead of"):
            predict_file(pipe, captions, output, PredictOptions(**{**SMALL, **change}), progress=False)
    with pytest.raises(ValueError, match="other options"):
        predict_file(pipe, captions, output, PredictOptions(**SMALL), output_schema="gen_imgbase64", progress=False)
    captions.path.write_text(captions.path.read_text() + "x\t狗\n")
    with pytest.raises(ValueError, match="was begun with other captions"):
        predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False)
    again = PredictOptions(**{**SMALL, "seed": 1})
    with pytest.raises(ValueError, match="Several processes can't start over"):
        predict_file(pipe, captions, output, again, overwrite=True, progress=False, rank=0, processes=2)
    assert predict_file(pipe, captions, output, again, overwrite=True, progress=False).rows == 8


def test_another_model_is_refused(pipe, captions, tmp_path) -> None:
    predict_file(pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False)
    with torch.no_grad():
        pipe.model.lm_head.weight[3, 3] += 1e-3
    with pytest.raises(ValueError, match=r"other options \(model "):
        predict_file(pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False)


def test_strangers_are_not_overwritten(pipe, captions, tmp_path) -> None:
    (tmp_path / "a.tsv").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        predict_file(pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="a folder with something in it"):
            predict_file(
                pipe, captions, tmp_path / "folder", PredictOptions(**SMALL), overwrite=overwrite, progress=False
            )
    assert (tmp_path / "a.tsv").read_text() == (tmp_path / "folder" / "precious").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv", "captions.tsv", "folder"]


@pytest.mark.parametrize(
    ("output", "rejects", "sheet"),
    [
        ("captions.tsv", "r.jsonl", None),
        ("a.tsv", "captions.tsv", None),
        ("a.tsv", "a.tsv", None),
        ("a.tsv", "a.tsv.manifest.json", None),
        ("a.tsv", "folder/../sheet.png", "sheet.png"),
    ],
)
def test_no_file_takes_the_place_of_another(pipe, captions, tmp_path, output, rejects, sheet) -> None:
    """Not even when whatever is there may be overwritten: the captions would be gone."""
    before = captions.path.read_bytes()
    (tmp_path / "folder").mkdir()
    files = {"rejects": tmp_path / rejects, "contact_sheet": None if sheet is None else tmp_path / sheet}
    with pytest.raises(ValueError, match=r"can't be both .* and .*: please give one of them another name"):
        predict_file(
            pipe, captions, tmp_path / output, PredictOptions(**SMALL), overwrite=True, progress=False, **files
        )
    assert captions.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.tsv", "folder"]


@pytest.mark.parametrize("name", [".", ".."])
def test_an_output_without_a_name(pipe, captions, name) -> None:
    with pytest.raises(ValueError, match="has no name of its own"):
        predict_file(pipe, captions, Path(name), PredictOptions(**SMALL), progress=False)


def test_a_folder_can_be_painted_anew(pipe, captions, tmp_path) -> None:
    output = tmp_path / "a"
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False)
    before = tree(output)
    predict_file(pipe, captions, output, PredictOptions(**SMALL, seed=1), progress=False, overwrite=True)
    assert before.keys() == tree(output).keys()
    assert before != tree(output)


def test_an_output_that_is_gone(pipe, captions, tmp_path) -> None:
    predict_file(pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False)
    (tmp_path / "a.tsv").unlink()
    with pytest.raises(ValueError, match="was finished, but it is gone: please give --force"):
        predict_file(pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False)


def test_a_damaged_manifest(pipe, captions, tmp_path) -> None:
    (tmp_path / "a.tsv.manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .* please give --force to start over"):
        predict_file(pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False)
    assert predict_file(
        pipe, captions, tmp_path / "a.tsv", PredictOptions(**SMALL), progress=False, overwrite=True
    ).complete


def test_a_shard_that_another_process_paints_is_left_to_it(pipe, captions, tmp_path) -> None:
    output = tmp_path / "a.tsv"
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False, rank=1, processes=4)
    with Work(output, None).lock("000002"):
        done = predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False)
    assert (done.complete, done.missing_shards) == (False, 1)
    assert predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False).complete


def test_joining_is_left_to_the_process_that_is_at_it(pipe, captions, tmp_path) -> None:
    output = tmp_path / "a.tsv"
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False, rank=1, processes=2)
    with Work(output, None).lock("join"):
        done = predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False)
    assert (done.complete, done.missing_shards, output.exists()) == (False, 0, False)
    assert predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False).complete


def test_a_shard_whose_file_is_not_whole_is_painted_again(pipe, captions, tmp_path) -> None:
    predict_file(pipe, captions, tmp_path / "whole.tsv", PredictOptions(**SMALL), progress=False)
    output = tmp_path / "a.tsv"
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False, rank=0, processes=2)
    (tmp_path / "a.tsv.parts" / "000000.tsv").write_text("half")
    predict_file(pipe, captions, output, PredictOptions(**SMALL), progress=False)
    assert output.read_bytes() == (tmp_path / "whole.tsv").read_bytes()


def test_memory_that_is_full(pipe, captions, tmp_path, caplog) -> None:
    """A batch of more than two doesn't fit, as on a small accelerator."""

    def refuse(module, arguments, options) -> None:
        if options["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    pipe.model.register_forward_pre_hook(refuse, with_kwargs=True)
    fixed, auto = PredictOptions(batch_size=4, shard_size=4), PredictOptions(batch_size="auto", shard_size=4)
    with pytest.raises(OSError, match="Memory is full with 4 pictures at once: please start over with a smaller batch"):
        predict_file(pipe, captions, tmp_path / "a.tsv", fixed, progress=False)
    done = predict_file(pipe, captions, tmp_path / "b.tsv", auto, progress=False, rank=0, processes=2)
    assert done.batch_size == 2
    assert "Memory was full: from now on 2 pictures" in caplog.text
    record = json.loads((tmp_path / "b.tsv.parts" / "000000.json").read_text())
    assert record["batch_size"] == 2
    caplog.clear()
    done = predict_file(pipe, captions, tmp_path / "b.tsv", auto, progress=False)
    assert (done.rows, caplog.text) == (7, "")  # the other shard begins with the new size
    predict_file(pipe, captions, tmp_path / "c.tsv", PredictOptions(batch_size=2, shard_size=4), progress=False)
    assert (tmp_path / "b.tsv").read_bytes() == (tmp_path / "c.tsv").read_bytes()


def test_a_fitting_batch_is_a_power_of_two(pipe) -> None:
    config = pipe.model.config
    size = fitting_batch_size(config, 1, torch.device("cpu"), torch.float32)
    assert 1 <= size <= 16
    assert size & (size - 1) == 0
    assert fitting_batch_size(config, 10**9, torch.device("cpu"), torch.float32) == 1


def test_standard_input_leaves_nothing_when_it_is_stopped(pipe, tmp_path) -> None:
    output = tmp_path / "a.tsv"

    def stop(module, inputs) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    hook = pipe.model.vqgan.decoder.register_forward_pre_hook(stop)
    before = signal.getsignal(signal.SIGTERM)
    with from_stream(io.BytesIO("红苹果\n熊猫\n".encode())) as source, pytest.raises(KeyboardInterrupt):
        predict_file(pipe, source, output, PredictOptions(**SMALL), progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []
    hook.remove()
    with from_stream(io.BytesIO("红苹果\n熊猫\n".encode())) as source:
        with pytest.raises(ValueError, match="Several processes can't share standard input"):
            predict_file(pipe, source, output, PredictOptions(**SMALL), progress=False, rank=0, processes=2)
        assert predict_file(pipe, source, output, PredictOptions(**SMALL), progress=False).rows == 2


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": "all"}, {"shard_size": 0}, {"seed": -1}])
def test_impossible_options(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PredictOptions(**options)
