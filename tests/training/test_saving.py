# SPDX-License-Identifier: Apache-2.0
"""The best model, and folders that hold something already."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from pai_painter.training.arguments import DataArguments, PainterModelArguments
from pai_painter.training.painter import train_painter
from pai_painter.training.saving import BestModel, check_folder, save_whole


def test_patience(tmp_path: Path) -> None:
    """A model that is better, but could not be saved, is no reason to lose patience, nor what is kept."""
    best = BestModel(tmp_path, patience=2)
    seen = []
    for step, (loss, saved) in enumerate(
        [(3.0, True), (3.0, True), (2.0, False), (2.5, True), (2.5, True), (4.0, True)]
    ):
        best.take(loss, step, best.is_better(loss) and saved)
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
    assert not best.is_better(math.nan)
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
    check_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["", "best"])
@pytest.mark.parametrize(
    ("file", "lora_rank", "message"),
    [
        (
            "adapter_config.json",
            None,
            r"holds an adapter \(adapter_config\.json\), but this run ends with a whole model: ",
        ),
        (
            "config.json",
            2,
            r"holds a whole model \(config\.json\), but this run ends with an adapter: please take anot",
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
    with pytest.raises(
        ValueError, match=r"The best model so far, of step 4, isn't in \S+new/best: please copy it ther"
    ):
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
            with pytest.raises(ValueError, match=r"other settings, .*: eval_steps was 1 and is now 2\. Set"):
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
