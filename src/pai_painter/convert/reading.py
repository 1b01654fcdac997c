# SPDX-License-Identifier: Apache-2.0
"""What every reader of a checkpoint gives back, and the vocabulary that two of them share."""

from dataclasses import dataclass, field
from pathlib import Path

from ..model.configuration_pai_painter import PaiPainterConfig
from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_pai_painter import PaiPainterForImageGeneration
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model.processing_pai_painter import PaiPainterProcessor
from ..model.tokenization_pai_painter import PaiPainterTokenizer

__all__ = ["ReadModel", "read_vocabulary"]


@dataclass
class ReadModel:
    """
    Args:
        origin (`str`): The program that made the checkpoint.
        model ([`PaiPainterForImageGeneration`] or [`PaiPainterVQModel`]): The painter, or the VQGAN alone.
        processor ([`PaiPainterProcessor`] or [`PaiPainterImageProcessor`]): Its processor.
        read (`list[str]`): The files that were read.
        ignored (`list[str]`): The names of weights and entries that the model has no use for.
    """

    origin: str
    model: PaiPainterForImageGeneration | PaiPainterVQModel
    processor: PaiPainterProcessor | PaiPainterImageProcessor
    read: list[str]
    ignored: list[str] = field(default_factory=list)


def read_vocabulary(path: Path, config: PaiPainterConfig) -> PaiPainterProcessor:
    """
    The processor of a painter whose vocabulary is a `vocab.txt`, a word piece a line.

    Raises:
        OSError: if there is none.
        ValueError: if it isn't the model's.
    """
    if not path.is_file():
        raise OSError(f"{path.parent} has no vocab.txt: please put the model's vocabulary there.")
    tokenizer = PaiPainterTokenizer(
        str(path), image_vocab_size=config.image_vocab_size, model_max_length=config.text_length, name_or_path=str(path)
    )
    processor = PaiPainterProcessor(PaiPainterImageProcessor(size=config.vq_config.resolution), tokenizer)  # type: ignore[union-attr]
    processor.check_model(config)
    return processor
