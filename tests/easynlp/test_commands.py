# SPDX-License-Identifier: Apache-2.0
"""`pai-painter easynlp`: the published commands run unchanged, and what they are natively."""

import base64
import io
import shlex
from pathlib import Path

import pytest
from PIL import Image
from published_commands import CAPTIONS, PREDICT, TRAIN, native_words, run, typed
from safetensors.torch import load_file

from pai_painter.easynlp.translation import NativeCommand, translate

LARGE = "alibaba-pai/pai-painter-large-zh"


def option(command: NativeCommand, name: str) -> str:
    return command.words[command.words.index(name) + 1]


def test_both_published_commands_word_for_word(place: Path, published_sizes: Path, no_gpu: None) -> None:
    """But for the model's name: what is trained paints."""
    trained = run("easynlp", *typed(TRAIN.replace(LARGE, str(published_sizes))))
    assert trained.exit_code == 0, trained.output
    assert "this machine has no GPU, so the CPU does the work" in trained.stderr
    painted = run("easynlp", *typed(PREDICT))
    assert painted.exit_code == 0, painted.output
    rows = [line.split("\t") for line in (place / "T2I_outputs.tsv").read_text("utf-8").splitlines()]
    assert [row[:2] for row in rows] == [[str(i), caption] for i, caption in enumerate(CAPTIONS, 1)]
    for _, _, picture in rows:
        with Image.open(io.BytesIO(base64.b64decode(picture, validate=True))) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (256, 256))


def test_the_train_command_natively(place: Path, published_sizes: Path, no_gpu: None) -> None:
    """Every word of it: what is written, and where nothing is, what EasyNLP's trainer does."""
    command = translate(typed(TRAIN.replace(LARGE, str(published_sizes))))
    table = "MUGE_val_text_imgbase64.tsv"
    expected = shlex.split(
        f"--model_name_or_path {shlex.quote(str(published_sizes))} "
        f"--train_file {table} --validation_file {table} "
        "--input_schema idx:str:1,text:str:1,imgbase64:str:1 --caption_column text --image_column imgbase64 "
        "--output_dir ./finetuned_model/ --learning_rate 4e-05 --lr_scheduler_type linear --warmup_steps 0 "
        "--weight_decay 0.0001 --adam_beta2 0.999 --adam_epsilon 1e-06 --max_grad_norm 1.0 --num_train_epochs 1.0 "
        "--per_device_train_batch_size 16 --gradient_accumulation_steps 1 --seed 42 --logging_steps 100 "
        "--save_steps 1000 --eval_steps 1000 --load_best_model_at_end true"
    )
    assert command.words[0] == "train"
    assert sorted(zip(*2 * [iter(command.words[1:])], strict=True)) == sorted(zip(*2 * [iter(expected)], strict=True))


def test_warm_up_and_checkpoints_follow_from_the_rows(place: Path, tiny_painter: Path) -> None:
    """4 rows in batches of 1, 5 epochs: 20 steps, of which a tenth warms up; one checkpoint an epoch."""
    words = ["--tables=MUGE_val_text_imgbase64.tsv", "--checkpoint_dir=o", "--epoch_num=5", "--micro_batch_size=1"]
    words += ["--user_defined_parameters", f"pretrain_model_name_or_path={tiny_painter}"]
    command = translate(words)
    assert option(command, "--warmup_steps") == "2"
    assert option(command, "--save_steps") == option(command, "--eval_steps") == "4"
    assert option(command, "--validation_file") == option(command, "--train_file")
    assert option(translate([*words, "--warmup_proportion=0.5"]), "--warmup_steps") == "10"
    assert option(translate([*words, "--save_checkpoint_steps=7", "--save_all_checkpoints"]), "--save_steps") == "7"


def test_the_first_table_trains_and_the_last_validates(place: Path, tiny_painter: Path) -> None:
    (place / "a.tsv").write_text("1\t红苹果\tpicture\n", encoding="utf-8")
    words = ["--tables=a.tsv,b.tsv", f"--user_defined_parameters=pretrain_model_name_or_path={tiny_painter}"]
    command = translate([*words, "--checkpoint_dir=o"])
    assert (option(command, "--train_file"), option(command, "--validation_file")) == ("a.tsv", "b.tsv")
    command = translate([*words, f"--checkpoint_dir={tiny_painter}", "--mode=evaluate"])
    assert option(command, "--file") == "b.tsv"
    assert command.notes == ["Without effect on --mode=evaluate: pretrain_model_name_or_path."]


def test_random_crops_are_new_in_each_step_unless_false(place: Path, tiny_painter: Path) -> None:
    words = ["--tables=MUGE_val_text_imgbase64.tsv", "--checkpoint_dir=o", "--user_defined_parameters"]
    painter = f"pretrain_model_name_or_path={tiny_painter}"
    cropped = translate([*words, f"{painter} random_crop=True"])
    assert (option(cropped, "--random_crop"), option(cropped, "--num_crops")) == ("true", "0")
    assert "--random_crop" not in translate([*words, f"{painter} random_crop=False"]).words
    with pytest.raises(ValueError, match="True or False"):
        translate([*words, f"{painter} random_crop=yes"])


def test_the_native_commands_do_the_same(place: Path, tiny_painter: Path, no_gpu: None) -> None:
    """Each is typed into a shell as it was shown, but for the place of the result."""
    sizes = {"sequence_length": "24", "user_defined_parameters": f"pretrain_model_name_or_path={tiny_painter}"}
    trained = run("easynlp", *typed(TRAIN, **sizes, micro_batch_size="2", save_checkpoint_steps="1"))
    assert trained.exit_code == 0, trained.output
    natively = native_words(trained).replace("./finetuned_model/", "native_model")
    done = run(*shlex.split(natively)[1:])
    assert done.exit_code == 0, done.output
    weights = [load_file(f"{folder}/model.safetensors") for folder in ("finetuned_model", "native_model")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not all(
        weights[0][name].equal(there) for name, there in load_file(tiny_painter / "model.safetensors").items()
    )

    four = {"sequence_length": "24", "user_defined_parameters": "max_generated_num=4 text_len=8", "random_seed": "5"}
    painted = run("easynlp", *typed(PREDICT, **four))
    assert painted.exit_code == 0, painted.output
    done = run(*shlex.split(native_words(painted).replace("./T2I_outputs.tsv", "native.tsv"))[1:])
    assert done.exit_code == 0, done.output
    assert Path("T2I_outputs.tsv").read_bytes() == Path("native.tsv").read_bytes()
    cell = Path("native.tsv").read_text("utf-8").splitlines()[0].split("\t")[2]
    assert cell.count('"') == 8

    measured = run("easynlp", *typed(TRAIN, mode="evaluate", **sizes))
    assert measured.exit_code == 0, measured.output
    assert "Perplexity" in measured.stdout
    assert "--epoch_num, --random_seed, --logging_steps, --save_checkpoint_steps" in measured.stderr
    again = run(*shlex.split(native_words(measured))[1:])
    assert again.stdout.splitlines() == measured.stdout.splitlines()[2:]


@pytest.mark.parametrize(
    "parameters",
    [
        "a=1 text_len=8",
        "'\ntext_len=8\n'",
        '"text_len=8"',
        "\r\n\ttext_len=8\r\n",
        "text_len=9\ntext_len=8",
        "text_len='8'",
    ],
)
def test_parameters_in_quotes_and_lines(place: Path, tiny_painter: Path, parameters: str) -> None:
    parameters = parameters.replace("a=1", "size=16")
    words = [f"--user_defined_parameters={parameters}", f"--checkpoint_dir={tiny_painter}"]
    command = translate(["--mode=predict", "--tables=t.tsv", "--outputs=o.tsv", *words])
    assert command.words[:4] == ["predict", "t.tsv", "--model", str(tiny_painter)]


def test_a_flag_and_its_value_may_be_two_words_and_the_last_of_equals_counts(place: Path, tiny_painter: Path) -> None:
    words = ["--mode", "predict", "--tables", "t.txt", "--outputs", "o.txt", "--checkpoint_path", str(tiny_painter)]
    command = translate([*words, "--micro_batch_size=3", "--train_batch_size", "5"])
    assert option(command, "--batch_size") == "5"
    assert option(command, "--input_format") == option(command, "--format") == "tsv"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user_defined_parameters": "text_len=64"}, "text_len=64 contradicts the model"),
        ({"user_defined_parameters": "size=512"}, "which has 16"),
        ({"user_defined_parameters": "img_vocab_size=16384"}, "which has 64"),
        ({"user_defined_parameters": "img_len=256"}, "which has 16"),
        ({"sequence_length": "288"}, "which has 24"),
        ({"user_defined_parameters": "vqgan_ckpt_path=vqgan.bin"}, "--config_name CONFIG --vqgan VQGAN"),
        ({"user_defined_parameters": "max_generated_nun=4"}, "did you mean `max_generated_num`?"),
        ({"user_defined_parameters": "max_generated_num=0"}, "at least 1"),
        ({"user_defined_parameters": "text_len"}, "list of name=value"),
        ({"user_defined_parameters": "text_len='8"}, "not closed"),
        ({"micro_batchsize": "4"}, "did you mean `micro_batch_size`?"),
        ({"micro_batch_size": "four"}, "invalid int value"),
        ({"mode": "serve"}, "invalid choice: 'serve' (choose from 'train', 'evaluate', 'predict')"),
        ({"app_name": "text_classify"}, "(choose from 'text2image_generation')"),
        ({"tables": "a.tsv,b.tsv"}, "at most 1 files"),
        ({"predict_queue_size": "1024"}, "has no effect here"),
        ({"outputs": ""}, "needs --outputs"),
        ({"skip_first_line": ""}, "tail -n +2"),
        ({"append_cols": "price"}, "in --output_schema"),
        ({"buckets": "oss://bucket"}, "download the files"),
        ({"worker_cpu": "4"}, "OMP_NUM_THREADS"),
        ({"worker_count": "2"}, "torchrun --no-python --nnodes 2"),
        ({"checkpoint_dir": "pai-painter-base-zh"}, "alibaba-pai/pai-painter-base-zh is not in the cache"),
    ],
)
def test_what_cant_be_honoured_is_refused(
    place: Path, tiny_painter: Path, changes: dict[str, str], words: str, no_gpu: None
) -> None:
    plain = {"sequence_length": "24", "checkpoint_dir": str(tiny_painter), "user_defined_parameters": ""}
    result = run("easynlp", *typed(PREDICT, **{**plain, **changes}))
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--optimizer_type=SGD"], "trained by AdamW"),
        (["--warmup_proportion=1.5"], "[0, 1)"),
        (["--epoch_num=0"], "above 0"),
        (["--micro_batch_size=0"], "above 0"),
        (["--user_defined_parameters=size=16"], "pretrain_model_name_or_path=MODEL"),
        (["size=16"], "check quotes"),
        ([" "], "spaces after backslashes"),
    ],
)
def test_what_cant_be_trained_is_refused(
    place: Path, tiny_painter: Path, words: list[str], reason: str, no_gpu: None
) -> None:
    sizes = {"sequence_length": "24", "user_defined_parameters": f"pretrain_model_name_or_path={tiny_painter}"}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are looked at below
        translate([*typed(TRAIN, **sizes), *words])
    assert reason in str(caught.value)


def test_gpus(place: Path, tiny_painter: Path, two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--mode=predict", "--tables=t.tsv", "--outputs=o.tsv", f"--checkpoint_dir={tiny_painter}"]
    assert translate([*words, "--worker_gpu=1"]).notes == []
    with pytest.raises(ValueError, match="torchrun --no-python --nproc_per_node 2"):
        translate([*words, "--worker_gpu=2"])
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES="):
        translate([*words, "--worker_gpu=0"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert translate([*words, "--worker_gpu=2"]).notes == []


def test_without_a_gpu_several_processes_need_a_launcher_too(place: Path, tiny_painter: Path, no_gpu: None) -> None:
    words = ["--mode=predict", "--tables=t.tsv", "--outputs=o.tsv", f"--checkpoint_dir={tiny_painter}"]
    assert translate([*words, "--worker_gpu=0"]).notes == []
    assert "the CPU does the work" in translate([*words, "--worker_gpu=1"]).notes[0]
    with pytest.raises(ValueError, match="torchrun --no-python --nproc_per_node 2"):
        translate([*words, "--worker_gpu=2"])


def test_the_help_lists_the_flags() -> None:
    result = run("easynlp", "--help")
    assert result.exit_code == 0
    for word in ("--tables", "--user_defined_parameters", "--checkpoint_dir"):
        assert word in result.stdout
