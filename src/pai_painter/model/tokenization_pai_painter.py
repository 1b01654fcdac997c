# SPDX-License-Identifier: Apache-2.0
"""Captions to the model's ids and back."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from transformers import BertTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from .configuration_pai_painter import EasyNLPArtistConfig, PaiPainterConfig, PaiPainterVQConfig
from .model_files_pai_painter import HUB_OPTIONS

__all__ = ["PaiPainterTokenizer"]


class PaiPainterTokenizer(BertTokenizer):
    r"""
    BERT's word pieces with the ids that the model reads.

    The ids below `image_vocab_size` are image tokens, so the piece in line `n` of the vocabulary, counted from 0, has
    the id `image_vocab_size + n`, and `[PAD]`, the first one, is `image_vocab_size`. A caption gets no [CLS] and no
    [SEP], and a call gives no attention mask and no segment ids: the model was trained with attention to the pads. What
    the model reads is

    ```python
    tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    ```

    Image tokens are not text: `decode` and `batch_decode` skip them, so that a whole sequence of `generate` gives back
    its caption; `convert_ids_to_tokens` gives `None` for them. `len(tokenizer)` and `vocab_size` are the number of
    caption tokens, the model's `text_vocab_size`.

    Args:
        vocab (`str`, `list[str]` or `dict[str, int]`): The word pieces: the path of a `vocab.txt`, a list, or a `dict`
            whose ids give their order.
        image_vocab_size (`int`, *optional*, defaults to 16384): Number of image tokens in front of the caption tokens.
        model_max_length (`int`, *optional*, defaults to 32): The model's `text_length`, to which
            `padding="max_length"` pads and `truncation=True` cuts.
        kwargs: Options of [`~transformers.BertTokenizer`], such as `do_lower_case` (`True` by default).

    Raises:
        ValueError: If a size isn't a positive number, if a word piece is there twice, if `[PAD]` isn't the first one,
            or if the vocabulary lacks a special token, which would get a new id that the model doesn't know.
    """

    model_input_names = ["input_ids"]

    def __init__(
        self,
        vocab: str | os.PathLike | list[str] | dict[str, int] | None = None,
        image_vocab_size: int = PaiPainterConfig.image_vocab_size,
        model_max_length: int = PaiPainterConfig.text_length,
        **kwargs: Any,
    ) -> None:
        for name, value in (("image_vocab_size", image_vocab_size), ("model_max_length", model_max_length)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}, but must be a positive whole number.")
        self.image_vocab_size = image_vocab_size
        origin = f" of {kwargs['name_or_path']}" if kwargs.get("name_or_path") else ""
        pieces = _ordered(vocab, origin)
        super().__init__(
            vocab={piece: image_vocab_size + line for line, piece in enumerate(pieces)},
            image_vocab_size=image_vocab_size,
            model_max_length=model_max_length,
            **kwargs,
        )
        self.update_post_processor()  # BERT's would add [CLS] and [SEP]
        if self.pad_token_id != image_vocab_size:
            raise ValueError(
                f"The first word piece of the vocabulary{origin} must be {self.pad_token}, with which captions are "
                f"padded, but it is {pieces[0]!r}."
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which piece of a caption gets which id, in hexadecimal."""
        vocabulary = self.get_vocab()
        settings = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "pad_token", "unk_token")
        content = [sorted(vocabulary, key=vocabulary.__getitem__), [getattr(self, name) for name in settings]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *init_inputs: Any,
        vq_config: PaiPainterVQConfig | dict | None = None,
        **kwargs: Any,
    ) -> "PaiPainterTokenizer":
        """
        As [`~transformers.PreTrainedTokenizerBase.from_pretrained`]. For an EasyNLP checkpoint (`vocab.txt`), its
        `config.json` tells `image_vocab_size` and `model_max_length`, the latter together with the length of a picture:
        `vq_config` is its VQGAN, if it isn't f16_16384.

        Raises:
            OSError: if there is no such folder or repository, or no vocabulary in it.
            ValueError: if its files are damaged, or if the vocabulary can't be a painter's.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub_options = {option: kwargs[option] for option in HUB_OPTIONS & kwargs.keys()}
        try:
            told = os.path.isfile(name) or {"image_vocab_size", "model_max_length"} <= kwargs.keys()
            if not told and "image_vocab_size" not in get_tokenizer_config(name, **hub_options):
                kwargs = _sizes_of_model(name, vq_config, hub_options) | kwargs
            return super().from_pretrained(name, *init_inputs, **kwargs)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"The tokenizer's files of {name} are damaged ({error!r}).") from error

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Called by `from_pretrained` with the files that were found: puts `vocab` in their place."""
        files = [kwargs.pop(name, None) for name in ("tokenizer_file", "vocab_file")]
        found = [_read_vocabulary(Path(file)) for file in files if file is not None]
        name = kwargs.get("name_or_path")
        if kwargs.get("vocab") is None:
            if not found:
                raise OSError(f"{name} has no vocabulary: it needs a vocab.txt or a tokenizer.json.")
            kwargs["vocab"] = _ordered(found[0], f" of {name}")
            if found[1:] and kwargs["vocab"] != found[1]:
                raise ValueError(
                    f"The tokenizer.json and the vocab.txt of {name} hold different vocabularies: please remove the "
                    "one that isn't the model's."
                )
        return kwargs

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        unknown = [str(token) for token in new_tokens if self._tokenizer.token_to_id(str(token)) is None]
        if unknown:
            origin = f" of {self.name_or_path}" if self.name_or_path else ""
            raise ValueError(
                f"The vocabulary{origin} lacks {', '.join(sorted(unknown))}, which can't be added: the model knows the "
                f"tokens that it was trained with and no others."
            )
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)


def _read_vocabulary(file: Path) -> list[str] | dict[str, int]:
    """The word pieces of a vocab.txt in their order, or those of a tokenizer.json with the ids that they have there."""
    if file.suffix == ".json":
        return json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    try:
        pieces = file.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no vocabulary: it isn't in UTF-8 ({error}).") from error
    return [piece.rstrip("\r") for piece in pieces]


def _ordered(vocab: str | os.PathLike | list[str] | dict[str, int] | None, origin: str) -> list[str]:
    """The word pieces in the order of their ids."""
    if isinstance(vocab, (str, os.PathLike)):
        vocab = _read_vocabulary(Path(vocab))
    if not vocab:
        raise ValueError(f"A tokenizer needs a vocabulary, but `vocab`{origin} is missing or empty.")
    if isinstance(vocab, list):
        twice = [piece for piece, times in Counter(vocab).items() if times > 1]
        if twice:
            raise ValueError(f"The vocabulary{origin} holds {twice[0]!r} twice; word pieces must be different.")
        return vocab
    pieces = sorted(vocab, key=vocab.__getitem__)
    first, last = vocab[pieces[0]], vocab[pieces[-1]]
    if [vocab[piece] for piece in pieces] != list(range(first, last + 1)):
        raise ValueError(
            f"The ids of the vocabulary{origin} must follow each other without a gap, but its {len(pieces):,} word "
            f"pieces have ids from {first} to {last}."
        )
    return pieces


def _sizes_of_model(
    name: str, vq_config: PaiPainterVQConfig | dict | None, hub_options: dict[str, Any]
) -> dict[str, int]:
    """What the model's config.json says of its ids; nothing if it isn't there or another program's."""
    file = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False, **hub_options)
    if file is None:
        return {}
    config_dict = json.loads(Path(file).read_text(encoding="utf-8"))
    if config_dict.get("model_type") == PaiPainterConfig.model_type:
        names = {"image_vocab_size": "image_vocab_size", "text_length": "model_max_length"}
        return {ours: config_dict[name] for name, ours in names.items() if name in config_dict}
    if config_dict.get("model_type") != EasyNLPArtistConfig.model_type:
        return {}
    config = EasyNLPArtistConfig.from_dict(config_dict, vq_config=vq_config)
    if not isinstance(config, PaiPainterConfig):  # which VQGAN isn't known
        return {"image_vocab_size": config_dict["img_vocab_size"]}
    return {"image_vocab_size": config.image_vocab_size, "model_max_length": config.text_length}
