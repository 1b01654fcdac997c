# SPDX-License-Identifier: Apache-2.0
"""The command that converts checkpoints of other programs, and to EasyNLP."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import command, echo


@command("Stopped; nothing was written.")
def convert(
    source: Annotated[
        Path, typer.Argument(help="EasyNLP's folder, .tgz or step file, taming's .ckpt, PaddleNLP's or our own folder.")
    ],
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[Literal["native", "easynlp"], typer.Option(help="The layout to write.")] = "native",
    vqgan: Annotated[Path | None, typer.Option(help="The folder of a whole VQGAN, if the model's can't.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="taming's YAML file, or a JSON file with PaddleNLP's num_attention_heads.")
    ] = None,
    vq_config: Annotated[Path | None, typer.Option(help="The VQGAN's sizes, if it isn't f16_16384.")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="The precision to save in; by default the checkpoint's."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model in the output folder.")] = False,
) -> None:
    """
    Convert a checkpoint from another program, without running anything in it.

    Examples:

    pai-painter convert pai-painter-base-zh.tgz painter

    pai-painter convert last.ckpt vqgan --config model.yaml

    pai-painter convert out easynlp-model --to easynlp
    """
    from ..convert import convert as convert_checkpoint

    echo(f"Converting {source} …", err=True)
    report = convert_checkpoint(
        source, output, to=to, vqgan=vqgan, config=config, vq_config=vq_config, dtype=dtype, force=force
    )
    for line in report.lines():
        echo(line)
