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
    PainterFolder,
    find_model_file,
    read_json_object,
    refuse_git_lfs_pointer,
    resolve_hub_options,
)
from .tokenization_pai_painter import PaiPainterTokenizer

logger = logging.get_logger(__name__)

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "vocab.txt",
)
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
        Makes sure that this processor belongs to the model with this configuration, and notes the vocabulary's
        fingerprint there if there is none, so that a saved model says which vocabulary is its own.

        Raises:
            ValueError: If the vocabulary, the number of image tokens, the length of a caption or the size of pictures
                isn't the model's.
        """
        fingerprint = self.tokenizer.fingerprint
        sizes = {
            "text_length": (self.text_length, config.text_length),
            "image_vocab_size": (self.image_vocab_size, config.image_vocab_size),
            "image_processor.size": (self.image_processor.size["shortest_edge"], config.vq_config.resolution),  # type: ignore[union-attr]
            "text_vocab_size": (len(self.tokenizer), config.text_vocab_size),
            "vocabulary_fingerprint": (fingerprint, config.vocabulary_fingerprint or fingerprint),
        }
        for name, (own, wanted) in sizes.items():
            if own != wanted:
                origin = f" of {self.tokenizer.name_or_path}" if self.tokenizer.name_or_path else ""
                raise ValueError(
                    f"The processor{origin} isn't the model's: the `{name}` of its vocabulary and settings is "
                    f"{own!s:.12} instead of {wanted!s:.12}; please use the model's own tokenizer and processor files."
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
            if not isinstance(captions, (list, tuple)) or not captions:
                raise ValueError(f"text must be a caption or a list of captions, got {text!r}.")
            inputs["input_ids"] = [self._caption_ids(caption) for caption in captions]
        if images is not None:
            inputs.update(self.image_processor(images, random_crop=random_crop, generator=generator))
        return BatchFeature(inputs, tensor_type=return_tensors)

    def word_pieces(self, caption: str) -> list[str]:
        """
        All word pieces of a caption, of which the model reads the first `text_length`. A caption of spaces or control
        characters has none. A `ValueError` if `caption` isn't a string or holds half a surrogate pair.
        """
        return self._tokenize(caption).tokens()

    def unknown_pieces(self, caption: str) -> list[str]:
        """
        The characters or words of a caption, spelt as there, that the model reads as [UNK]: those among the first
        `text_length` pieces that the vocabulary lacks. Errors as in [`~PaiPainterProcessor.word_pieces`].
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
        Loads a processor from a folder or a Hub repository, native or EasyNLP's, which stores neither the pictures'
        size (256 by default, as published) nor the caption's length (by default the positions that the picture leaves).

        Args:
            pretrained_model_name_or_path: the folder's path or the repository's name.
            kwargs: where to load from (`revision`, `token`, `cache_dir`, `local_files_only`, …), and `text_length`,
                `image_vocab_size`, `size`, `resample` or `random_crop` to use instead of the saved ones.

        Raises:
            OSError: If there is no such folder or repository, or if it holds no painter.
            TypeError: If there are other keyword arguments.
            ValueError: If a file is damaged, if the vocabulary can't be a painter's, or if an option is out of range.
        """
        name = os.fspath(pretrained_model_name_or_path)
        image_options = kwargs.keys() & PaiPainterImageProcessor.valid_kwargs.__annotations__.keys()
        unknown = sorted(kwargs.keys() - HUB_OPTIONS - _TOKENIZER_OPTIONS.keys() - image_options - _OF_AUTO_PROCESSOR)
        if unknown:
            raise TypeError(
                f"PaiPainterProcessor.from_pretrained has no option {', '.join(unknown)}: beside where to load from, "
                "the options are text_length, image_vocab_size, size, resample and random_crop."
            )
        hub_options = resolve_hub_options(name, **{key: kwargs[key] for key in HUB_OPTIONS & kwargs.keys()})
        settings = _image_settings(name, hub_options)
        sizes = {ours: kwargs[option] for option, ours in _TOKENIZER_OPTIONS.items() if option in kwargs}
        tokenizer = _load_tokenizer(name, sizes, hub_options)
        try:
            image_processor = PaiPainterImageProcessor(**{**settings, **{key: kwargs[key] for key in image_options}})
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"The processor of {name} can't be made: {str(error).rstrip('.')}.") from error
        return cls(image_processor, tokenizer)

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
                f"the last {lost} are truncated."
            )
        return ids[: self.text_length] + [self.tokenizer.pad_token_id] * -lost


def load_processor(folder: PainterFolder) -> PaiPainterProcessor:
    """The processor of a painter or of an adapter's base; an error if it isn't there, is damaged or another model's."""
    sizes: dict[str, int] = {}
    if folder.layout == "EasyNLP":  # whose files say nothing of them
        sizes = {"text_length": folder.config.text_length, "size": folder.vq_config.resolution}
    processor = PaiPainterProcessor.from_pretrained(folder.name, **sizes, **folder.hub_options)
    processor.check_model(folder.config)
    return processor


def _image_settings(name: str, hub_options: dict[str, Any]) -> dict[str, Any]:
    """The image processor's settings in a native folder; EasyNLP's has none."""
    for file in ("processor_config.json", "config.json"):
        path = find_model_file(name, file, **hub_options)
        found = {} if path is None else read_json_object(path, name)
        if isinstance(found.get("image_processor"), dict):
            return found["image_processor"]
        if found.get("model_type") == "artist" and "img_vocab_size" in found:
            return {}
    where = " (as far as it is in the cache)" if hub_options.get("local_files_only") else ""
    raise OSError(
        f"{name}{where} contains no processor of a painter: it has no processor_config.json with an image_processor "
        "and no config.json of an EasyNLP model (model_type 'artist' with its img_vocab_size)."
    )


def _load_tokenizer(name: str, sizes: dict[str, Any], hub_options: dict[str, Any]) -> PaiPainterTokenizer:
    for file in _TOKENIZER_FILES:
        path = find_model_file(name, file, **hub_options)
        if path is not None and file.endswith(".json"):
            read_json_object(path, name)
        elif path is not None:
            refuse_git_lfs_pointer(path)
    try:
        tokenizer = PaiPainterTokenizer.from_pretrained(name, **hub_options, **sizes)
        tokenizer("一")  # odd settings are met only now
        return tokenizer
    except OSError:
        raise
    except Exception as error:  # `tokenizers` raises bare ones, transformers whatever the content leads to
        reason = " ".join(str(error).split()).rstrip(".")
        what = "can't be made" if isinstance(error, ValueError) else "is damaged (tokenizer.json or its settings)"
        raise ValueError(f"The tokenizer of {name} {what}: {reason}.") from error


__all__ = ["PaiPainterProcessor", "load_processor"]
