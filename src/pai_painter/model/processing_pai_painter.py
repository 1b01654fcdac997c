# SPDX-License-Identifier: Apache-2.0
"""Captions and pictures to model inputs: the caption rule lives here and nowhere else."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature
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
from .tokenization_pai_painter import PaiPainterTokenizer

logger = logging.get_logger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER_OPTIONS = {"text_length": "model_max_length", "image_vocab_size": "image_vocab_size"}
# What AutoProcessor adds to what it was given, once the class is found.
_OF_AUTO_PROCESSOR = {"_commit_hash", "_from_auto", "code_revision", "trust_remote_code"}


class PaiPainterProcessor(ProcessorMixin):
    r"""
    Turns captions into `input_ids` and pictures into `pixel_values`.

    The caption rule is that of the published models: the ids of [`PaiPainterTokenizer`], cut at `text_length` and
    padded to it on the right with [PAD]. There is no attention mask: the models were trained with attention to the
    pads.

    Args:
        image_processor ([`PaiPainterImageProcessor`]): Prepares the pictures.
        tokenizer ([`PaiPainterTokenizer`]): Gives the ids, and says how many a caption has and where they begin.

    Raises:
        TypeError: If one of them is of another class.
    """

    def __init__(self, image_processor: PaiPainterImageProcessor, tokenizer: PaiPainterTokenizer) -> None:
        if not isinstance(tokenizer, PaiPainterTokenizer):
            raise TypeError(
                f"The tokenizer must be a PaiPainterTokenizer, whose ids are the model's, got a "
                f"{type(tokenizer).__name__}."
            )
        super().__init__(image_processor, tokenizer)

    @property
    def text_length(self) -> int:
        """Caption ids in front of the image tokens."""
        return self.tokenizer.model_max_length

    @property
    def image_vocab_size(self) -> int:
        """Number of image tokens, and the id of [PAD], the first caption token."""
        return self.tokenizer.image_vocab_size

    def check_model(self, config: PaiPainterConfig) -> None:
        """
        Makes sure that this processor belongs to a model, and notes the vocabulary's fingerprint in the model's
        configuration if there is none, so that a saved model says which vocabulary is its own.

        Args:
            config: the model's configuration.

        Raises:
            ValueError: If the vocabulary, the number of image tokens, the length of a caption or the size of pictures
                isn't the model's.
        """
        sizes = {
            "text_length": (self.text_length, config.text_length),
            "image_vocab_size": (self.image_vocab_size, config.image_vocab_size),
            "image_processor.size": (self.image_processor.size["shortest_edge"], config.vq_config.resolution),  # type: ignore[union-attr]
        }
        for name, (own, wanted) in sizes.items():
            if own != wanted:
                raise ValueError(
                    f"The processor's `{name}` is {own}, but the model needs {wanted}: please use the model's own."
                )
        origin = f" of {self.tokenizer.name_or_path}" if self.tokenizer.name_or_path else ""
        if len(self.tokenizer) != config.text_vocab_size:
            raise ValueError(
                f"The vocabulary{origin} has {len(self.tokenizer):,} tokens, but the model reads "
                f"{config.text_vocab_size:,} (`text_vocab_size`): please use the model's own vocabulary."
            )
        fingerprint = self.tokenizer.fingerprint
        if config.vocabulary_fingerprint not in (None, fingerprint):
            raise ValueError(
                f"The vocabulary{origin} isn't the one that the model was trained with: its fingerprint is "
                f"{fingerprint[:12]}…, but the model's `vocabulary_fingerprint` is "
                f"{str(config.vocabulary_fingerprint)[:12]}…; please use the model's own tokenizer files."
            )
        config.vocabulary_fingerprint = fingerprint

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
        All word pieces of a caption. The model reads the first `text_length` of them; a caption that has none (spaces,
        control characters) says nothing to it.

        Raises:
            ValueError: If `caption` isn't a string or holds half a surrogate pair.
        """
        return self._tokenize(caption).tokens()

    def unknown_pieces(self, caption: str) -> list[str]:
        """
        The characters or words of a caption, spelt as there, that the vocabulary lacks and the model reads as [UNK].
        Pieces beyond `text_length` aren't counted.

        Raises:
            ValueError: If `caption` isn't a string or holds half a surrogate pair.
        """
        encoding = self._tokenize(caption)
        read = list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))[: self.text_length]
        return [caption[start:end] for token, (start, end) in read if token == self.tokenizer.unk_token_id]

    def decode(self, token_ids: Sequence[int] | torch.Tensor, **kwargs: Any) -> str:
        """
        The caption at the beginning of a sequence of ids, without its pads.

        Raises:
            ValueError: If there is an image token among the first `text_length` ids.
        """
        ids = [int(token) for token in token_ids[: self.text_length]]
        if ids and min(ids) < self.image_vocab_size:
            raise ValueError(
                f"The first {self.text_length} ids hold the image token {min(ids)}, "
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
        Loads a processor from a folder or a Hub repository, in the native layout (`processor_config.json` and the
        tokenizer's files) or in EasyNLP's (`config.json` with `model_type: "artist"` and `vocab.txt`), which stores
        neither the pictures' size (256, as in all published models, unless given as `size`) nor the caption's length
        (the positions that the picture leaves, unless given as `text_length`).

        Args:
            pretrained_model_name_or_path: the folder's path or the repository's name.
            kwargs: where to load from (`revision`, `token`, `cache_dir`, `local_files_only`, …), and `text_length`,
                `image_vocab_size`, `size`, `resample` or `random_crop` to use instead of the saved ones.

        Raises:
            OSError: If there is no such folder or repository, or if it has neither layout.
            TypeError: If there are other keyword arguments.
            ValueError: If one of its files is damaged, if the vocabulary can't be a painter's, or if an option is out
                of range.
        """
        image_options = kwargs.keys() & PaiPainterImageProcessor.valid_kwargs.__annotations__.keys()
        unknown = sorted(kwargs.keys() - HUB_OPTIONS - _TOKENIZER_OPTIONS.keys() - image_options - _OF_AUTO_PROCESSOR)
        if unknown:
            raise TypeError(
                f"PaiPainterProcessor.from_pretrained has no option {', '.join(unknown)}: beside where to load from, "
                "the options are text_length, image_vocab_size, size, resample and random_crop."
            )
        hub_options = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
        hub_options = resolve_hub_options(pretrained_model_name_or_path, **hub_options)
        config_file = find_model_file(pretrained_model_name_or_path, "processor_config.json", **hub_options)
        if config_file is not None:
            processor_dict = read_json_object(config_file, pretrained_model_name_or_path)
            if not isinstance(processor_dict.get("image_processor"), dict):
                raise OSError(
                    f"The processor_config.json of {pretrained_model_name_or_path} is another model's: "
                    "it has no image_processor."
                )
        else:
            cls._require_easynlp(pretrained_model_name_or_path, hub_options)
            processor_dict = {"image_processor": {}}
        sizes = {ours: kwargs[name] for name, ours in _TOKENIZER_OPTIONS.items() if name in kwargs}
        tokenizer = _load_tokenizer(pretrained_model_name_or_path, sizes, hub_options)
        try:
            image_processor = PaiPainterImageProcessor.from_dict(
                processor_dict["image_processor"], **{name: kwargs[name] for name in image_options}
            )
        except (AttributeError, TypeError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"The processor of {pretrained_model_name_or_path} can't be made: {reason}.") from error
        return cls(image_processor, tokenizer)

    @classmethod
    def _require_easynlp(cls, name_or_path: str | os.PathLike, hub_options: dict[str, Any]) -> None:
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

    def _tokenize(self, caption: str) -> Any:
        if not isinstance(caption, str):
            raise ValueError(f"A caption must be a string, but {caption!r} is of type {type(caption).__name__}.")
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"The caption {caption!r} holds half a surrogate pair, which is no character.") from error
        return self.tokenizer(caption, return_offsets_mapping=True, verbose=False)  # `__call__` warns of what is cut

    def _caption_ids(self, caption: str) -> list[int]:
        ids = self._tokenize(caption)["input_ids"]
        lost = len(ids) - self.text_length
        if lost > 0:
            shown = caption if len(caption) <= 40 else f"{caption[:40]}…"
            logger.warning(
                f"The caption {shown!r} has {len(ids)} word pieces, but the model reads {self.text_length}: "
                f"the last {lost} are cut off."
            )
        return ids[: self.text_length] + [self.tokenizer.pad_token_id] * -lost


def _load_tokenizer(
    name_or_path: str | os.PathLike, sizes: dict[str, Any], hub_options: dict[str, Any]
) -> PaiPainterTokenizer:
    for name in _TOKENIZER_FILES:
        path = find_model_file(name_or_path, name, **hub_options)
        if path is not None:
            read_json_object(path, name_or_path)
    vocabulary = find_model_file(name_or_path, "vocab.txt", **hub_options)
    if vocabulary is not None:
        refuse_git_lfs_pointer(vocabulary)
    try:
        tokenizer = PaiPainterTokenizer.from_pretrained(name_or_path, **hub_options, **sizes)
        tokenizer("一")  # odd settings are met only now
        return tokenizer
    except OSError:
        raise
    except Exception as error:  # `tokenizers` raises bare ones, transformers whatever the content leads to
        reason = " ".join(str(error).split()).rstrip(".")
        what = "can't be made" if isinstance(error, ValueError) else "is damaged (tokenizer.json or its settings)"
        raise ValueError(f"The tokenizer of {name_or_path} {what}: {reason}.") from error


__all__ = ["PaiPainterProcessor"]
