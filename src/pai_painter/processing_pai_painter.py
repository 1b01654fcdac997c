# SPDX-License-Identifier: Apache-2.0
"""Captions and pictures to model inputs: the caption rule lives here and nowhere else."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, BertTokenizer
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .configuration_pai_painter import PaiPainterConfig
from .image_processing_pai_painter import PaiPainterImageProcessor, Picture
from .model_files_pai_painter import (
    HUB_OPTIONS,
    find_model_file,
    read_json_object,
    refuse_git_lfs_pointer,
    resolve_hub_options,
)

logger = logging.get_logger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class PaiPainterProcessor(ProcessorMixin):
    r"""
    Turns captions into `input_ids` and pictures into `pixel_values`.

    The caption rule is that of the published models: BERT word pieces without [CLS] and [SEP], cut at
    `text_length`, padded on the right with [PAD], then `image_vocab_size` added to every id, pads included,
    because the ids below it are image codes. There is no attention mask: the models were trained with
    attention to the pads.

    Args:
        image_processor ([`PaiPainterImageProcessor`]): Prepares the pictures.
        tokenizer ([`~transformers.BertTokenizer`]): The plain tokenizer of the vocabulary, without offset.
        text_length (`int`, *optional*, defaults to 32): Caption ids in front of the image codes.
        image_vocab_size (`int`, *optional*, defaults to 16384): Number of image codes, added to the
            tokenizer's ids.

    Raises:
        ValueError: If `text_length` or `image_vocab_size` isn't a positive number.
    """

    def __init__(
        self,
        image_processor: PaiPainterImageProcessor,
        tokenizer: BertTokenizer,
        text_length: int = PaiPainterConfig.text_length,
        image_vocab_size: int = PaiPainterConfig.image_vocab_size,
    ) -> None:
        super().__init__(image_processor, tokenizer)
        for name, value in (("text_length", text_length), ("image_vocab_size", image_vocab_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be a positive whole number.")
        self.text_length = text_length
        self.image_vocab_size = image_vocab_size

    def __call__(
        self,
        images: Picture | Sequence[Picture] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        random_crop: bool | None = None,
        generator: torch.Generator | int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Prepares captions, pictures or both. A caption that is too long is cut with a warning.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                See [`PaiPainterImageProcessor.preprocess`], also for `random_crop` and `generator`.
            text (`str` or `list[str]`, *optional*): Captions. An empty one becomes pads only.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; lists without it.

        Returns:
            `BatchFeature`: with `input_ids`, int64 (batch, text_length), if `text` is given, and
            `pixel_values`, float32 (batch, 3, size, size) in [-1, 1], if `images` is given.

        Raises:
            ValueError: If neither is given, or if one of them holds something else than captions or pictures.
        """
        if text is None and images is None:
            raise ValueError("There is nothing to process: please pass text=, images= or both.")
        inputs: dict[str, Any] = {}
        if text is not None:
            captions = [text] if isinstance(text, str) else text
            if not isinstance(captions, (list, tuple)):
                raise ValueError(f"text is a {type(text).__name__}, but must be a caption or a list of captions.")
            if not captions:
                raise ValueError("text is an empty list: please give at least one caption.")
            inputs["input_ids"] = [self._caption_ids(caption) for caption in captions]
        if images is not None:
            inputs.update(self.image_processor(images, random_crop=random_crop, generator=generator))
        return BatchFeature(inputs, tensor_type=return_tensors)

    def word_pieces(self, caption: str) -> list[str]:
        """
        All word pieces of a caption, as the tokenizer cuts it. The model reads the first `text_length` of
        them; a caption that has none (spaces, control characters) says nothing to it.

        Raises:
            ValueError: If `caption` isn't a string or holds half a surrogate pair.
        """
        return self._tokenize(caption).tokens()

    def unknown_pieces(self, caption: str) -> list[str]:
        """
        What of a caption the model doesn't know: the characters or words, spelt as in the caption, that the
        vocabulary lacks and the model therefore reads as [UNK]. Pieces beyond `text_length` aren't counted.

        Raises:
            ValueError: If `caption` isn't a string or holds half a surrogate pair.
        """
        encoding = self._tokenize(caption)
        read = list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))[: self.text_length]
        return [caption[start:end] for token, (start, end) in read if token == self.tokenizer.unk_token_id]

    def decode(self, token_ids: Sequence[int] | torch.Tensor, **kwargs: Any) -> str:
        """
        The caption that stands at the beginning of a sequence of ids, without its pads.

        Args:
            token_ids (`list[int]` or `torch.Tensor` of shape (sequence,)):
                Caption ids with their offset, perhaps followed by image codes.
            kwargs: Options of the tokenizer's `decode`.

        Raises:
            ValueError: If an image code stands among the first `text_length` ids.
        """
        ids = [int(token) - self.image_vocab_size for token in token_ids[: self.text_length]]
        if ids and min(ids) < 0:
            raise ValueError(
                f"The first {self.text_length} ids hold the image code {min(ids) + self.image_vocab_size}, "
                f"but caption ids start at {self.image_vocab_size}."
            )
        pieces = [token for token in ids if token != self.tokenizer.pad_token_id]
        return self.tokenizer.decode(pieces, **kwargs)

    def batch_decode(self, sequences: Sequence[Sequence[int]] | torch.Tensor, **kwargs: Any) -> list[str]:
        """[`~PaiPainterProcessor.decode`] for each row of `sequences`, (batch, sequence)."""
        return [self.decode(sequence, **kwargs) for sequence in sequences]

    @property
    def model_input_names(self) -> list[str]:
        """What a call can return; the tokenizer's mask and segment ids aren't the model's."""
        return ["input_ids", "pixel_values"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "PaiPainterProcessor":
        """
        Loads a processor from a folder or a Hub repository, in the native layout (`processor_config.json` and
        the tokenizer's files) or in EasyNLP's (`config.json` with `model_type: "artist"` and `vocab.txt`).

        EasyNLP writes down neither the caption's length nor the pictures' size: with its layout they are 32
        and 256, as in all published models, unless given as `text_length` and `size`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): The folder's path or the repository's
                name.
            kwargs:
                Where to load from (`revision`, `token`, `cache_dir`, `local_files_only`, ... as everywhere in
                transformers), and `text_length`, `image_vocab_size`, `size`, `resample` or `random_crop` to
                use instead of the saved ones.

        Raises:
            OSError: If there is no such folder or repository, or if it has neither layout.
            ValueError: If one of its files is damaged, or if an option is out of range.
        """
        hub_options = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
        options = {key: value for key, value in kwargs.items() if key not in HUB_OPTIONS}
        hub_options = resolve_hub_options(pretrained_model_name_or_path, **hub_options)
        try:
            config_file = find_model_file(pretrained_model_name_or_path, "processor_config.json", **hub_options)
        except OSError as error:
            raise OSError(
                f"{pretrained_model_name_or_path} is neither a folder nor a Hub repository within reach: {error}"
            ) from error
        if config_file is not None:
            processor_dict = read_json_object(config_file, pretrained_model_name_or_path)
            if not isinstance(processor_dict.get("image_processor"), dict):
                raise OSError(
                    f"The processor_config.json of {pretrained_model_name_or_path} is another model's: "
                    "it has no image_processor."
                )
        else:
            processor_dict = cls._read_easynlp(pretrained_model_name_or_path, hub_options)
        # Asked for first: without a file BertTokenizer loads, too, with five special tokens.
        vocabularies = ("tokenizer.json", "vocab.txt")
        found = [find_model_file(pretrained_model_name_or_path, name, **hub_options) for name in vocabularies]
        if not any(found):
            raise OSError(
                f"{pretrained_model_name_or_path} has no vocabulary: it needs a vocab.txt or a tokenizer.json."
            )
        tokenizer = _load_tokenizer(pretrained_model_name_or_path, hub_options)
        try:
            image_processor = PaiPainterImageProcessor.from_dict(processor_dict["image_processor"], **options)
            return cls.from_args_and_dict([image_processor, tokenizer], processor_dict, **options)
        except (AttributeError, TypeError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"The processor of {pretrained_model_name_or_path} can't be made: {reason}.") from error

    def check_fits(self, config: PaiPainterConfig) -> None:
        """
        Raises:
            ValueError: if the processor was made for a model of other sizes.
        """
        sizes = {
            "text_length": (self.text_length, config.text_length),
            "image_vocab_size": (self.image_vocab_size, config.image_vocab_size),
            "image_processor.size": (self.image_processor.size["shortest_edge"], config.vq_config.resolution),  # type: ignore[union-attr]
        }
        for name, (own, wanted) in sizes.items():
            if own != wanted:
                raise ValueError(
                    f"The processor's `{name}` is {own}, but the model needs {wanted}: please take the processor that "
                    f"belongs to the model."
                )

    @classmethod
    def _read_easynlp(cls, name_or_path: str | os.PathLike, hub_options: dict[str, Any]) -> dict[str, Any]:
        config_file = find_model_file(name_or_path, "config.json", **hub_options)
        if hub_options.get("local_files_only"):
            name_or_path = f"{os.fspath(name_or_path)} (as far as it is in the cache)"
        if config_file is None:
            raise OSError(f"{name_or_path} has neither a processor_config.json nor a config.json: it holds no painter.")
        config = read_json_object(config_file, name_or_path)
        if not {"model_type", "img_vocab_size"} <= config.keys() or config["model_type"] != "artist":
            raise OSError(
                f"{name_or_path} holds no processor of a painter: it has neither a processor_config.json "
                "nor the config.json of an EasyNLP model (model_type 'artist' with its img_vocab_size)."
            )
        return {"image_processor": {}, "image_vocab_size": config["img_vocab_size"]}

    def _tokenize(self, caption: str) -> Any:
        if not isinstance(caption, str):
            raise ValueError(f"A caption must be a string, but {caption!r} is of type {type(caption).__name__}.")
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"The caption {caption!r} holds half a surrogate pair, which is no character.") from error
        return self.tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)

    def _caption_ids(self, caption: str) -> list[int]:
        ids = self._tokenize(caption)["input_ids"]
        lost = len(ids) - self.text_length
        if lost > 0:
            shown = caption if len(caption) <= 40 else f"{caption[:40]}…"
            logger.warning(
                f"The caption {shown!r} has {len(ids)} word pieces, but the model reads {self.text_length}: "
                f"the last {lost} are cut off."
            )
        padded = ids[: self.text_length] + [self.tokenizer.pad_token_id] * -lost
        return [token + self.image_vocab_size for token in padded]


def _load_tokenizer(name_or_path: str | os.PathLike, hub_options: dict[str, Any]) -> BertTokenizer:
    for name in _TOKENIZER_FILES:
        path = find_model_file(name_or_path, name, **hub_options)
        if path is not None:
            read_json_object(path, name_or_path)
    vocabulary = find_model_file(name_or_path, "vocab.txt", **hub_options)
    if vocabulary is not None:
        refuse_git_lfs_pointer(vocabulary)
    try:
        tokenizer = BertTokenizer.from_pretrained(name_or_path, **hub_options)
        tokenizer("一")  # odd settings are met only now
        return tokenizer
    except OSError:
        raise
    except Exception as error:  # `tokenizers` raises bare ones, transformers whatever the content leads to
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The tokenizer's files of {name_or_path} (tokenizer.json, tokenizer_config.json, vocab.txt) are damaged: "
            f"{reason}."
        ) from error


__all__ = ["PaiPainterProcessor"]
