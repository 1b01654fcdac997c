# SPDX-License-Identifier: Apache-2.0
"""How well a trained painter predicts the codes of pictures, without training it."""

import math
from dataclasses import dataclass

from accelerate import Accelerator

from ..data.image_tokens import ImageTokenCache
from ..data.row_cache import load_rows
from ..lora import load_painter
from .arguments import DataArguments
from .objective import PainterObjective
from .painter_rows import CaptionedTokens
from .rows import encode_together, find_training_source
from .validation import validation_loss

__all__ = ["Evaluation", "evaluate_painter"]


@dataclass(frozen=True)
class Evaluation:
    """
    Args:
        rows (`int`): Rows that were looked at.
        loss (`float`): Mean cross-entropy of a code, in nats.
        perplexity (`float`): Among how many equally likely codes the painter would choose.
        chance (`int`): The perplexity of a painter that knows nothing: the number of codes there are.
    """

    rows: int
    loss: float
    perplexity: float
    chance: int


def evaluate_painter(
    model: str,
    data: DataArguments,
    batch_size: int = 16,
    revision: str = "main",
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """
    Mean loss over all rows, each with its first caption. Several processes each compute their share.

    Args:
        model: a folder or a name on the Hub; an adapter brings its base along.
        data: `train_file` (or `dataset_name` and `train_split`) is what is looked at.
        batch_size: rows of a forward; it changes nothing but memory and time.
        revision: branch, tag or commit of a model on the Hub.
        accelerator: accelerate's handle on the processes; a new one by default.

    Raises:
        ValueError: if the rows can't be used or the model is damaged.
        OSError: if the model isn't there.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    accelerator = accelerator or Accelerator()
    source = find_training_source(data)
    painter, processor = load_painter(model, revision=revision)
    painter.to(accelerator.device)
    with accelerator.local_main_process_first():
        rows = load_rows(source, data.max_bad_rows, data.cache_dir)
    table = ImageTokenCache(rows, painter.vqgan, processor.image_processor, cache_dir=data.cache_dir)
    codes = CaptionedTokens(encode_together(table, accelerator), processor)
    figures = validation_loss(PainterObjective(painter).eval(), codes, accelerator, batch_size)
    loss = figures["validation_loss"]
    if not math.isfinite(loss):
        raise ValueError(f"The loss of {model} is {loss}: its weights are damaged.")
    return Evaluation(len(codes), loss, figures["validation_perplexity"], painter.config.image_vocab_size)
