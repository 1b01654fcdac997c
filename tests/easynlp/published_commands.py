# SPDX-License-Identifier: Apache-2.0
"""The published commands as they stand in the blog post, and a way to type them."""

import base64
import io
import subprocess
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner, Result

from pai_painter.cli import app

TRAIN = r"""
easynlp \
--mode=train \
--worker_gpu=1 \
--tables=MUGE_val_text_imgbase64.tsv,MUGE_val_text_imgbase64.tsv \
--input_schema=idx:str:1,text:str:1,imgbase64:str:1 \
--first_sequence=text \
--second_sequence=imgbase64 \
--checkpoint_dir=./finetuned_model/ \
--learning_rate=4e-5 \
--epoch_num=1 \
--random_seed=42 \
--logging_steps=100 \
--save_checkpoint_steps=1000 \
--sequence_length=288 \
--micro_batch_size=16 \
--app_name=text2image_generation \
--user_defined_parameters='
pretrain_model_name_or_path=alibaba-pai/pai-painter-large-zh
size=256
text_len=32
img_len=256
img_vocab_size=16384
'
"""
PREDICT = r"""
easynlp \
--mode=predict \
--worker_gpu=1 \
--tables=MUGE_test.text.tsv \
--input_schema=idx:str:1,text:str:1 \
--first_sequence=text \
--outputs=./T2I_outputs.tsv \
--output_schema=idx,text,gen_imgbase64 \
--checkpoint_dir=./finetuned_model/ \
--sequence_length=288 \
--micro_batch_size=8 \
--app_name=text2image_generation \
--user_defined_parameters='
size=256
text_len=32
img_len=256
img_vocab_size=16384
'
"""
CAPTIONS = ("红苹果", "一只熊猫", "宽松T恤")


def typed(command: str, **changes: str) -> list[str]:
    """The words that a shell makes of a command of EasyNLP; `changes` give other values to its flags."""
    script = f'easynlp() {{ printf "%s\\0" "$@"; }}\n{command}'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    kept = [word for word in words if word.partition("=")[0].lstrip("-") not in changes]
    return kept + [f"--{name}={value}" for name, value in changes.items()]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def native_words(result: Result) -> str:
    """The native command that was shown."""
    return result.stdout.partition("The native command:\n")[2].splitlines()[0]


def as_base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_tables(folder: Path, side: int) -> None:
    """The files of the published commands."""
    pictures = [as_base64(Image.new("RGB", (side, side), (60 * i, 0, 99))) for i in range(4)]
    rows = [f"{i}\t红苹果{i}\t{picture}\n" for i, picture in enumerate(pictures)]
    (folder / "MUGE_val_text_imgbase64.tsv").write_text("".join(rows), encoding="utf-8")
    captions = [f"{i}\t{caption}\n" for i, caption in enumerate(CAPTIONS, 1)]
    (folder / "MUGE_test.text.tsv").write_text("".join(captions), encoding="utf-8")
