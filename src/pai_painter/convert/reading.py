# SPDX-License-Identifier: Apache-2.0
"""What every reader of a checkpoint gives back, and the vocabulary that two of them share."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import BertTokenizer

from ..configuration_pai_painter import PaiPainterConfig
from ..image_processing_pai_painter import PaiPainterImageProcessor
from ..modeling_pai_painter import PaiPainterForImageGeneration
from ..modeling_vqgan import PaiPainterVQModel
from ..processing_pai_painter import PaiPainterProcessor
from .safe_pickle import CheckpointError

__all__ = ["ReadModel", "read_vocabulary"]


@dataclass
class ReadModel:
    """
    Args:
        origin (`str`): The program that made the checkpoint.
        model ([`PaiPainterForImageGeneration`] or [`PaiPainterVQModel`]): The painter, or the codec alone.
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
    try:
        pieces = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no vocabulary: it isn't in UTF-8 ({error}).") from error
    pieces = [piece.rstrip("\r") for piece in (pieces[:-1] if pieces[-1] == "" else pieces)]
    if len(pieces) != config.text_vocab_size or len(set(pieces)) != len(pieces) or "[PAD]" not in pieces:
        raise CheckpointError(
            f"{path} has {len(pieces):,} word pieces ({len(set(pieces)):,} different), but the model reads "
            f"{config.text_vocab_size:,}, [PAD] among them."
        )
    return PaiPainterProcessor(
        PaiPainterImageProcessor(size=config.vq_config.resolution),  # type: ignore[union-attr]
        BertTokenizer.from_pretrained(str(path.parent)),
        text_length=config.text_length,
        image_vocab_size=config.image_vocab_size,
    )
