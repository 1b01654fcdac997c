# SPDX-License-Identifier: Apache-2.0
"""How well a trained painter predicts the image tokens of pictures, without training it."""

import math
from dataclasses import dataclass

from accelerate import Accelerator

from ..data.image_tokens import ImageTokenCache
from ..data.row_cache import load_rows
from ..lora import load_painter
from ..training.arguments import DataArguments
from ..training.painter_objective import PainterObjective, validation_loss
from ..training.painter_rows import CaptionedRows
from ..training.rows import encode_together, find_rows


@dataclass(frozen=True)
class Likelihood:
    """What was measured."""

    rows: int
    loss: float  # mean cross-entropy in nats per token
    perplexity: float  # the number of equally likely tokens that the loss stands for
    chance: int  # the perplexity of a painter that knows nothing: the number of image tokens there are


def evaluate_painter(
    model: str,
    data: DataArguments,
    batch_size: int = 16,
    revision: str = "main",
    accelerator: Accelerator | None = None,
) -> Likelihood:
    """
    Mean loss over all rows, each with its first caption. Several processes each compute their share.

    Args:
        model: a folder or a name on the Hub; an adapter brings its base along.
        data: `train_file` (or `dataset_name` and `train_split`) names the rows.
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
    source = find_rows(data)
    painter, processor = load_painter(model, revision=revision)
    painter.to(accelerator.device)
    with accelerator.local_main_process_first():
        rows = load_rows(source, data.max_bad_rows, data.cache_dir)
    table = ImageTokenCache(rows, painter.vqgan, processor.image_processor, cache_dir=data.cache_dir)
    encoded = CaptionedRows(encode_together(table, accelerator), processor)
    loss = validation_loss(PainterObjective(painter).eval(), encoded, accelerator, batch_size)["validation_loss"]
    if not math.isfinite(loss):
        raise ValueError(f"The loss of {model} is {loss}: its weights are damaged.")
    return Likelihood(len(encoded), loss, math.exp(loss), painter.config.image_vocab_size)
