# SPDX-License-Identifier: Apache-2.0
"""The best model, one run per folder, and folders that hold something already."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pai_painter.training.arguments import DataArguments, PainterModelArguments, TrainingArguments
from pai_painter.training.output_folder import BestModel, check_folder, held_folder, save_whole
from pai_painter.training.train_painter import train_painter

HOLDER = """
import sys, time
from pathlib import Path
from pai_painter.training.output_folder import held_folder
with held_folder(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


def check(folder: Path, **options: object) -> None:
    check_folder(TrainingArguments(output_dir=str(folder), **options), adapter=False)


def test_patience(tmp_path: Path) -> None:
    """A model that is better, but could not be saved, is no reason to lose patience, nor what is kept."""
    best = BestModel(tmp_path, patience=2)
    seen = []
    for step, (loss, saved) in enumerate(
        [(3.0, True), (3.0, True), (2.0, False), (2.5, True), (2.5, True), (4.0, True)]
    ):
        best.take(loss, step, loss < best.loss and saved)
        seen.append((best.loss, best.step, best.worse, best.exhausted))
    assert seen == [
        (3.0, 0, 0, False),
        (3.0, 0, 1, False),
        (3.0, 0, 0, False),
        (2.5, 3, 0, False),
        (2.5, 3, 1, False),
        (2.5, 3, 2, True),
    ]
    again = BestModel(tmp_path, patience=2)
    again.load_state_dict(best.state_dict())
    assert again.state_dict() == best.state_dict()
    best.patience = None
    assert not best.exhausted


def test_no_number_is_never_better(tmp_path: Path) -> None:
    best = BestModel(tmp_path, patience=1)
    best.take(math.nan, 1, kept=False)
    assert (best.loss, best.exhausted) == (math.inf, True)


def test_weights_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, order = Path.replace, []
    monkeypatch.setattr(Path, "replace", lambda self, place: order.append(place.name) or replace(self, place))

    def save(folder: Path) -> None:
        for name in ("a.safetensors", "config.json", "z.json"):
            (folder / name).write_text(name)

    save_whole(save, tmp_path / "model")
    assert order[2:] == ["a.safetensors"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(order)


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    check(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "out", "Not a directory")):
        with pytest.raises(ValueError, match=rf"^Nothing can be written to {folder} \(`output_dir`\): {reason}\.$"):
            check(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_model_without_a_checkpoint_is_overwritten_only_if_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(ValueError, match=rf"holds a model \({name}\) and no checkpoint .* set `overwrite_output_dir`"):
        check(tmp_path)
    check(tmp_path, overwrite_output_dir=True)
    (tmp_path / "checkpoint-3").mkdir()
    check(tmp_path, resume_from_checkpoint="latest")  # this run's own


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    """The second is refused as long as the first one lives, and no longer."""
    (tmp_path / ".checkpoint-3.partial").mkdir()
    with held_folder(tmp_path):
        assert not (tmp_path / ".checkpoint-3.partial").exists()
        (tmp_path / ".checkpoint-4.partial").mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "holds\n"
        assert not (tmp_path / ".checkpoint-4.partial").exists()
        (tmp_path / ".checkpoint-5.partial").mkdir()
        with pytest.raises(ValueError, match=r"^Another run is using "), held_folder(tmp_path):
            pass
        assert (tmp_path / ".checkpoint-5.partial").exists()
        first.kill()
    with held_folder(tmp_path):
        assert not (tmp_path / ".checkpoint-5.partial").exists()


@pytest.mark.parametrize("place", ["", "best"])
@pytest.mark.parametrize(
    ("file", "lora_rank", "message"),
    [
        (
            "adapter_config.json",
            None,
            r"holds an adapter \(adapter_config\.json\) already: ",
        ),
        (
            "config.json",
            2,
            r"holds a whole model \(config\.json\) already: please take anot",
        ),
    ],
)
def test_a_whole_model_and_an_adapter_do_not_share_a_folder(
    place: str,
    file: str,
    lora_rank: int | None,
    message: str,
    trained_painter: Path,
    data: DataArguments,
    painter_arguments: Callable,
    tmp_path: Path,
) -> None:
    (tmp_path / "out" / place).mkdir(parents=True)
    (tmp_path / "out" / place / file).write_text("{}")
    model = PainterModelArguments(model_name_or_path=str(trained_painter), lora_rank=lora_rank)
    with pytest.raises(ValueError, match=message):
        train_painter(model, data, painter_arguments(tmp_path / "out"))


def test_the_best_model_must_be_where_the_run_goes_on(
    trained_painter: Path, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    model = PainterModelArguments(model_name_or_path=str(trained_painter))
    options = {"load_best_model_at_end": True, "eval_steps": 4, "gradient_accumulation_steps": 1}
    folder = train_painter(model, data, painter_arguments(tmp_path / "out", **options))
    # Killed while the best model was saved.
    (folder / "best" / ".model-half").mkdir()
    elsewhere = painter_arguments(
        tmp_path / "new", **options, resume_from_checkpoint=str(folder / "checkpoint-4"), max_shift=1
    )
    with pytest.raises(ValueError, match=r"The best model, of step 4, isn't in \S+new/best: please copy it ther"):
        train_painter(model, data, elsewhere)
    again = painter_arguments(tmp_path / "out", **options, resume_from_checkpoint="latest")
    assert train_painter(model, data, again) == folder


def test_other_rows_to_validate_on_are_named_if_they_decide(
    trained_painter: Path, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    model = PainterModelArguments(model_name_or_path=str(trained_painter))
    rows = Path(data.train_file[0]).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "other.tsv").write_text("".join(rows[:5]), encoding="utf-8")
    options = {"max_train_steps": 3, "save_steps": 2, "eval_steps": 1, "gradient_accumulation_steps": 1}
    for name, best in (("plain", {}), ("best", {"load_best_model_at_end": True})):
        train_painter(model, data, painter_arguments(tmp_path / name, **options, **best))
        again = painter_arguments(tmp_path / name, **options, **best, resume_from_checkpoint="latest")
        other = DataArguments(**{**vars(data), "validation_file": [str(tmp_path / "other.tsv")]})
        if best:
            with pytest.raises(ValueError, match=r": validation_data was '\w+' and is now '\w+'\. Set"):
                train_painter(model, other, again)
        else:
            train_painter(model, other, again)


def test_when_it_is_validated_counts_if_that_decides(
    trained_painter: Path, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    model = PainterModelArguments(model_name_or_path=str(trained_painter))
    options = {"max_train_steps": 3, "save_steps": 2, "gradient_accumulation_steps": 1}
    for name, best in (("plain", {}), ("best", {"load_best_model_at_end": True})):
        train_painter(model, data, painter_arguments(tmp_path / name, **options, **best, eval_steps=1))
        again = painter_arguments(
            tmp_path / name, **options, **best, eval_steps=2, resume_from_checkpoint="latest", logging_steps=2
        )
        if best:
            with pytest.raises(ValueError, match=r"other settings: eval_steps was 1 and is now 2\. Set"):
                train_painter(model, data, again)
        else:
            train_painter(model, data, again)


def test_another_order_of_a_stream_is_named(
    trained_painter: Path, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    model = PainterModelArguments(model_name_or_path=str(trained_painter))
    data = DataArguments(**{**vars(data), "streaming": True, "shuffle_buffer": 5})
    options = {"max_train_steps": 3, "save_steps": 2, "gradient_accumulation_steps": 1, "num_crops": 0}
    train_painter(model, data, painter_arguments(tmp_path / "out", **options))
    data.shuffle_buffer = 6
    with pytest.raises(ValueError, match=r": data was '\w+' and is now '\w+'\. Set"):
        train_painter(model, data, painter_arguments(tmp_path / "out", **options, resume_from_checkpoint="latest"))


def test_another_vocabulary_is_named(
    shapes: Path, vqgan_folder: Path, data: DataArguments, painter_arguments: Callable, tmp_path: Path
) -> None:
    words = (shapes / "painter" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    options = {"max_train_steps": 3, "save_steps": 2, "gradient_accumulation_steps": 1}
    for number, vocabulary in enumerate((words, [*words[:5], *reversed(words[5:])])):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        model = PainterModelArguments(
            config_name=str(shapes / "painter"), vqgan=str(vqgan_folder), tokenizer_name=str(tmp_path / str(number))
        )
        if number:
            options["resume_from_checkpoint"] = "latest"
            with pytest.raises(ValueError, match=r": vocabulary was '\w+' and is now '\w+'\. Set"):
                train_painter(model, data, painter_arguments(tmp_path / "out", **options))
        else:
            train_painter(model, data, painter_arguments(tmp_path / "out", **options))
