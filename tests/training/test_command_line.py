# SPDX-License-Identifier: Apache-2.0
"""Settings from files and flags, and one sentence for everything that is wrong with them."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from tiny_world import ROOT, launch
from torch.utils.data import DataLoader, Dataset

from pai_painter.training.arguments import (
    DataArguments,
    PainterModelArguments,
    PainterTrainingArguments,
    VQGANModelArguments,
    VQGANTrainingArguments,
)
from pai_painter.training.command_line import parse_arguments, run_from_command_line
from pai_painter.training.train_painter import main as train_painter_main
from pai_painter.training.train_vqgan import main as train_vqgan_main

PAINTER = (PainterModelArguments, DataArguments, PainterTrainingArguments)
VQGAN = (VQGANModelArguments, DataArguments, VQGANTrainingArguments)
ENOUGH = ["--model_name_or_path", "m", "--train_file", "t.tsv", "--output_dir", "o"]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], str]:
    def write(text: str, name: str = "settings.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def said(capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[int, str]]:
    """Runs a command line and gives its exit status and what it said."""

    def run(*words: str, types: tuple = PAINTER, train: Callable = lambda *_: None) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            run_from_command_line(types, train, list(words))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return stop.value.code, lines[0].partition(": ")[2]

    return run


def test_flags() -> None:
    model, data, training = parse_arguments(PAINTER, [*ENOUGH, "--learning_rate", "2e-5", "--use_ema"])
    assert (model.model_name_or_path, data.train_file, training.output_dir) == ("m", ["t.tsv"], "o")
    assert (training.learning_rate, training.use_ema, training.save_steps) == (2e-5, True, 1000)


def test_a_yaml_file_and_flags_behind_it(file: Callable) -> None:
    path = file(
        "# a comment\nconfig_name: c\ntrain_file: 训练.tsv\noutput_dir: o\nlearning_rate: 1.2e-3\nsave_steps: 5\n"
        "use_ema: true\nflip: no\nmixed_precision: no\nvalidation_file:\ncaption_separator: '- '\nseed: 010\n"
    )
    model, data, training = parse_arguments(VQGAN, [path, "--save_steps", "7"])
    assert (model.config_name, data.train_file, data.validation_file) == ("c", ["训练.tsv"], [])
    assert data.caption_separator == "- "
    assert (training.learning_rate, training.save_steps, training.mixed_precision) == (1.2e-3, 7, "no")
    assert (training.use_ema, training.flip, training.seed) == (True, False, 10)
    *_, training = parse_arguments(VQGAN, [path, "--use_ema", "false", "--mixed_precision=bf16"])
    assert (training.use_ema, training.mixed_precision) == (False, "bf16")


def test_a_tilde_is_the_home_folder_in_paths_alone(
    file: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = file(
        "model_name_or_path: ~/m\ntrain_file: [~/a.tsv, b.tsv]\noutput_dir: ~/out\ncache_dir: '~'\n"
        "caption_separator: '~'\nvalidation_prompts: ['~/红']\n"
    )
    model, data, training = parse_arguments(PAINTER, ["~/settings.yaml", "--resume_from_checkpoint=~/out/checkpoint-1"])
    assert path == str(tmp_path / "settings.yaml")
    assert (model.model_name_or_path, data.train_file) == (f"{tmp_path}/m", [f"{tmp_path}/a.tsv", "b.tsv"])
    assert (training.output_dir, data.cache_dir) == (f"{tmp_path}/out", str(tmp_path))
    assert training.resume_from_checkpoint == f"{tmp_path}/out/checkpoint-1"
    assert (data.caption_separator, training.validation_prompts) == ("~", ["~/红"])
    made = PainterModelArguments(config_name="~/c", vqgan="~/vqgan", tokenizer_name="~/words")
    assert (made.config_name, made.vqgan, made.tokenizer_name) == (
        f"{tmp_path}/c",
        f"{tmp_path}/vqgan",
        f"{tmp_path}/words",
    )


def test_lists(file: Callable) -> None:
    """In a file and as flags; flags replace the file's."""
    path = file("model_name_or_path: m\ntrain_file: [a.tsv, b.tsv]\nreport_to: tensorboard\noutput_dir: o\n")
    _, data, training = parse_arguments(PAINTER, [path])
    assert (data.train_file, training.report_to) == (["a.tsv", "b.tsv"], ["tensorboard"])
    _, data, training = parse_arguments(PAINTER, [path, "--train_file", "c.tsv", "--report_to", "trackio", "wandb"])
    assert (data.train_file, training.report_to) == (["c.tsv"], ["trackio", "wandb"])


def test_a_json_file(file: Callable) -> None:
    path = file(
        '{"config_name": "c", "train_file": "t", "output_dir": "o", "learning_rate": 0.5, "validation_file": null}',
        "settings.json",
    )
    _, data, training = parse_arguments(VQGAN, [path])
    assert (training.learning_rate, data.validation_file) == (0.5, [])


@pytest.mark.parametrize("name", ["vqgan", "painter"])
def test_the_recipes_settings_are_valid(name: str) -> None:
    path = ROOT / "examples" / "emoji" / f"{name}.yaml"
    arguments = parse_arguments(VQGAN if name == "vqgan" else PAINTER, [str(path)])
    values = {key: value for part in arguments for key, value in vars(part).items()}
    for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert values[key] in (value, [value]) or float(values[key]) == float(value), key


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "The following arguments are required: --output_dir/--output-dir; --help"),
        ([*ENOUGH, "--learning_rate", "abc"], "Argument --learning_rate/--learning-rate: invalid float value: 'abc'"),
        ([*ENOUGH, "--save_steps", "yes"], "Argument --save_steps/--save-steps: invalid int value: 'yes'"),
        ([*ENOUGH, "--use_ema", "perhaps"], "Argument --use_ema/--use-ema: "),
        ([*ENOUGH, "--lerning_rate", "1"], "Unknown setting `lerning_rate`; did you mean `l"),
        (["--lerning_rate", "1"], "Unknown setting `lerning_rate`; did you mean `learning_"),
        (["--seed=1", "--output-dir=o", "--use-emma"], "Unknown setting `use_emma`"),
        ([*ENOUGH, "--lr_scheduler_type", "constant", "--warmup_steps", "9"], "The schedule `constant` has no `warmu"),
        ([*ENOUGH, "--learning", "1"], "Unknown setting `learning`; did you mean `learning_rate`?"),
        ([*ENOUGH, "settings.yaml"], "'settings.yaml' belongs to no setting; a settings file must be the first word."),
        (["nothing.yaml"], "There is no settings file nothing.yaml."),
        (ENOUGH[2:], "Please set one of `config_name` (a new model) and `model_name_or_path`"),
        ([*ENOUGH, "--config_name", "c"], "Please set one of `config_name`"),
        ([*ENOUGH[2:], "--config_name", "c"], "A new painter (`config_name`) needs a trained VQGAN"),
        ([*ENOUGH, "--vqgan", "c"], "A trained painter has its own: please leave out"),
        (
            [*ENOUGH, "--mixed_precision", "fp8"],
            "Argument --mixed_precision/--mixed-precision: invalid choice: 'fp8' ",
        ),
        (
            [*ENOUGH, "--lr_scheduler_type", "cosin"],
            "Argument --lr_scheduler_type/--lr-scheduler-type: invalid choice: 'cosin' ",
        ),
        ([*ENOUGH, "--save_steps", "0"], "`save_steps` must be at least 1, got 0."),
        ([*ENOUGH, "--warmup_steps", "-1"], "`warmup_steps` must be at least 0, got -1."),
        ([*ENOUGH, "--learning_rate", "nan"], "`learning_rate` must be a number above 0, got nan."),
        ([*ENOUGH, "--learning_rate", "inf"], "`learning_rate` must be a number above 0, got inf."),
        ([*ENOUGH, "--max_train_steps", "0"], "`max_train_steps` must be at least 1"),
        ([*ENOUGH, "--ema_decay", "1"], "`ema_decay` must lie in [0, 1), got 1.0."),
        ([*ENOUGH, "--pkeep", "0"], "`pkeep` must lie in (0, 1], got 0.0."),
        ([*ENOUGH, "--caption_dropout", "1"], "`caption_dropout` must lie in [0, 1)"),
        ([*ENOUGH, "--num_crops", "2"], "`num_crops` above 1 needs `random_crop`, `random_flip` or `max_shift`."),
        ([*ENOUGH, "--random_crop"], "`random_crop`, `random_flip` and `max_shift` make changed copies of pictures: p"),
        ([*ENOUGH, "--max_bad_rows", "-1"], "`max_bad_rows` must be at least 0, got -1."),
        ([*ENOUGH[:2], *ENOUGH[4:]], "Please set one of `train_file` (your files) and `dataset_name` (a dataset's"),
        ([*ENOUGH, "--dataset_name", "a/b"], "Please set one of `train_file` (your files) and `dataset_name`"),
        ([*ENOUGH, "--validation_split", "test"], "`dataset_config_name` and `validation_split` need `dataset_"),
        ([*ENOUGH, "--lora_alpha", "4"], "`lora_alpha`, `lora_dropout`, `lora_target_modules` need `lora_rank`"),
        ([*ENOUGH, "--lora_rank", "0"], "`lora_rank` must be at least 1, got 0."),
        (
            [*ENOUGH, "--hub_private"],
            "`hub_model_id`, `hub_private`, `hub_tag`, `hub_base_model` need `push_to_hub`",
        ),
        ([*ENOUGH, "--hub_tag", "v1"], "`hub_model_id`, `hub_private`, `hub_tag`, `hub_base_model` need `push_to_"),
        ([*ENOUGH, "--early_stopping_patience", "0"], "`early_stopping_patience` must be at least 1, got 0."),
        ([*ENOUGH, "--gradient_accumulation_steps", "0"], "`gradient_accumulation_steps` must be at least 1, got 0."),
        ([*ENOUGH, "--caption_separator", ""], "`caption_separator` must not be empty"),
    ],
)
def test_wrong_words(words: list[str], sentence: str, said: Callable) -> None:
    status, found = said(*words)
    assert status == 2
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("output_dir: o\nlerning_rate: 1\n", "Unknown setting `lerning_rate`; did you mean `learning_rate`?"),
        ("zzz: 1\n", "Unknown setting `zzz`; --help"),
        ("output_dir: o\nmodel_name_or_path: m\ntrain_file: t\nseed: [1, 2]\n", "'2' belongs to no setting"),
        ("train_file: [a, [b]]\n", "must be one value or a list of values."),
        ("output_dir: o\nmodel_name_or_path: m\ntrain_file: [a, -b]\n", "'-b' belongs to no setting"),
        ("- seed\n", "must hold settings such as `output_dir: out`, one per line."),
        ("", "must hold settings such as"),
        ("seed: 'x\n", "is no valid YAML or JSON: "),
        (
            "train_file: t\noutput_dir: o\nmodel_name_or_path: m\nseed: abc\n",
            "Argument --seed: invalid int value: 'abc'",
        ),
    ],
)
def test_wrong_files(text: str, sentence: str, file: Callable, said: Callable) -> None:
    status, found = said(file(text))
    assert status == 2
    assert sentence in found


def test_a_file_that_is_no_text(tmp_path: Path, said: Callable) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is no valid YAML or JSON: " in said(str(tmp_path / "x.yaml"))[1]


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("First line\n  second line."), 2, "First line second line."),
        (ValueError("row \x1b[2J\x07: no picture"), 2, "row \\x1b[2J\\x07: no picture"),
        (OSError(28, "No space left on device", "o/x"), 2, "[Errno 28] No space left on device: 'o/x'"),
        (ImportError("The package flash_attn is missing."), 2, "The package flash_attn is missing."),
        (SafetensorError("Error while deserializing header"), 2, "Error while deserializing header"),
        (torch.OutOfMemoryError("Tried to allocate 2 GiB. GPU 0 …"), 2, "The device is out of memory; a smaller `per_"),
        (RuntimeError("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), 2, "Another process of this run "),
        (KeyboardInterrupt(), 130, "Stopped; there is no checkpoint."),
    ],
)
def test_what_ends_a_run(error: BaseException, status: int, sentence: str, said: Callable) -> None:
    def train(*_: object) -> None:
        raise error

    found = said(*ENOUGH, train=train)
    assert found[0] == status
    assert found[1].startswith(sentence)


def test_who_stops_a_run_is_told_how_to_go_on(tmp_path: Path, said: Callable) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "manifest.json").write_text('{"files": {}}')

    def train(*_: object) -> None:
        raise KeyboardInterrupt

    status, sentence = said(*ENOUGH[:4], "--output_dir", str(tmp_path), train=train)
    assert status == 130
    assert sentence == f"Stopped; resume from {tmp_path / 'checkpoint-3'} with --resume_from_checkpoint latest."


def test_errors_of_ours_are_not_hidden() -> None:
    for mistake in (KeyError("a mistake in the program"), RuntimeError("another")):

        def train(*_: object, mistake: Exception = mistake) -> None:
            raise mistake

        with pytest.raises(type(mistake)):
            run_from_command_line(PAINTER, train, ENOUGH)


def test_sigterm_stops_like_ctrl_c(said: Callable) -> None:
    before = signal.getsignal(signal.SIGTERM)
    status, sentence = said(*ENOUGH, train=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert (status, sentence) == (143, "Stopped; there is no checkpoint.")
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        run_from_command_line(PAINTER, lambda *_: None, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err == ""


def test_cut_captions_are_warned_about_once(caplog: pytest.LogCaptureFixture, said: Callable) -> None:
    logger = logging.getLogger("pai_painter.model.processing_pai_painter")

    def train(*_: object) -> None:
        for caption in "abc":
            logger.warning(f"The caption {caption} is cut.")
        raise ValueError("The end.")

    said(*ENOUGH, train=train)
    assert caplog.messages == ["The caption a is cut."]


def test_another_process_speaks_if_the_first_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("pai_painter.training.command_line._HEAD_START", 0.3)

    def train(*_: object) -> None:
        raise ValueError("Only my share is bad.")

    before = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        run_from_command_line(PAINTER, train, ENOUGH)
    assert time.monotonic() - before >= 0.3
    assert stop.value.code == 2
    assert capsys.readouterr().err == "train.py: process 1: Only my share is bad.\n"


class Spoilt(Dataset[torch.Tensor]):
    """The second row can't be used."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> torch.Tensor:
        if row:
            raise ValueError("rows.tsv, line 2: no picture (a ValueError: yes).")
        return torch.zeros(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_stack_is_not_told(workers: int, said: Callable) -> None:
    status, sentence = said(*ENOUGH, train=lambda *_: list(DataLoader(Spoilt(), num_workers=workers)))
    assert (status, sentence) == (2, "rows.tsv, line 2: no picture (a ValueError: yes).")


def test_what_was_called_is_named(capsys: pytest.CaptureFixture) -> None:
    for words in (["nothing.yaml"], ["--help"]):
        with pytest.raises(SystemExit):
            train_painter_main(words, program="pai-painter train")
    said = capsys.readouterr()
    assert said.err == "pai-painter train: There is no settings file nothing.yaml.\n"
    assert said.out.startswith("usage: pai-painter train ")


@pytest.mark.parametrize(("main", "setting"), [(train_painter_main, "--pkeep PKEEP"), (train_vqgan_main, "--no_flip")])
def test_help(main: Callable, setting: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_something.py"])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert setting in said.out
    assert "train_something.py settings.yaml --learning_rate 2e-5" in said.out
    assert "Fixes new weights, the order of rows and all noise. (default: 42)" in said.out
    assert said.err == ""


@pytest.mark.parametrize("script", ["train.py", pytest.param("train_vqgan.py", marks=pytest.mark.slow)])
def test_the_script_says_one_sentence(script: str) -> None:
    result = launch(script, "nothing.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"{script}: There is no settings file nothing.yaml.\n"
