# SPDX-License-Identifier: Apache-2.0
"""
`push_to_hub` of models, processors and pipelines, under transformers' and diffusers' options but by this package's way:
as one commit, with the code that loads them anywhere, and without touching anything else in the repository.

The classes themselves travel to the Hub with the models and can't name this package, so the methods are given to them
here. Where the package isn't installed, transformers' and diffusers' own `push_to_hub` is what remains.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .hub.folder import planned_files
from .hub.push import push_files
from .hub.remote_code import add_remote_code
from .lora import has_lora
from .model.image_processing_pai_painter import PaiPainterImageProcessor
from .model.modeling_pai_painter import PaiPainterForImageGeneration, PaiPainterModel
from .model.modeling_vqgan import PaiPainterVQModel
from .model.processing_pai_painter import PaiPainterProcessor

__all__ = ["DEFAULT_SHARD_SIZE", "push_pipeline", "register_push_to_hub"]

DEFAULT_SHARD_SIZE = "5GB"


def push_pipeline(
    pipeline: Any,
    repo_id: str,
    *,
    commit_message: str | None,
    commit_description: str | None,
    tags: list[str] | None,
    private: bool | None,
    token: str | bool | None,
    create_pr: bool,
    revision: str | None,
    max_shard_size: int | str,
) -> str:
    """
    Pushes a pipeline's model and processor in one commit.

    Raises:
        ValueError: if the model has an adapter, or see [`~hub.push_folder`].
        OSError: if the Hub refuses or can't be reached.
    """
    _refuse_lora(pipeline.model, "The pipeline")
    return _push_model_as(
        lambda folder: pipeline.save_pretrained(folder, max_shard_size=max_shard_size),
        repo_id,
        max_shard_size,
        private=bool(private),
        revision=revision,
        pull_request=create_pr,
        commit_message=commit_message or "Upload a PAI-Painter model",
        commit_description=commit_description,
        tags=tags,
        token=_as_text(token),
    )


def _push_model(
    self: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    tags: list[str] | None = None,
) -> str:
    """
    Pushes the model alone, as one commit. What else is in the repository, such as its processor and its card, stays.

    Args:
        repo_id (`str`): `owner/name`; a name alone is the token's owner's. Made if there is none.
        commit_message (`str`, *optional*): Its first line.
        private (`bool`, *optional*): Make the repository private; one that is public already is refused.
        token (`bool` or `str`, *optional*): That may write; `HF_TOKEN` or the login of `hf auth login` by default.
        revision (`str`, *optional*): Branch; made from `main` if there is none.
        create_pr (`bool`, *optional*, defaults to `False`): Ask by a pull request instead.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): Larger weights are split.
        commit_description (`str`, *optional*): What follows the message's first line.
        tags (`list[str]`, *optional*): Are added to those in the repository's card, which is made if there is none.

    Returns:
        `str`: the address of the repository at the commit, or of the pull request.

    Raises:
        ValueError: if the model has an adapter, if an option isn't supported, or if the name or the token can't be
            right.
        OSError: if the Hub refuses or can't be reached.
    """
    _refuse_lora(self, "The model")
    return _push_model_as(
        lambda folder: self.save_pretrained(folder, max_shard_size=max_shard_size),
        repo_id,
        max_shard_size,
        private=bool(private),
        revision=revision,
        pull_request=create_pr,
        commit_message=commit_message or "Upload a PAI-Painter model",
        commit_description=commit_description,
        tags=tags,
        token=_as_text(token),
    )


def _push_processor(
    self: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = None,
    tags: list[str] | None = None,
) -> str:
    """
    Pushes the processor alone, as one commit. What else is in the repository, such as its model, stays.

    Args:
        max_shard_size: of weights, of which a processor has none.
        others: as a model's `push_to_hub` takes them.

    Returns:
        `str`: the address of the repository at the commit, or of the pull request.

    Raises:
        ValueError: if an option isn't supported, or if the name or the token can't be right.
        OSError: if the Hub refuses or can't be reached.
    """
    with tempfile.TemporaryDirectory(prefix="pai-painter-push-") as folder:
        self.save_pretrained(folder)
        return push_files(
            add_remote_code({path.name: path for path in Path(folder).iterdir()}),
            repo_id,
            private=bool(private),
            revision=revision,
            pull_request=create_pr,
            commit_message=commit_message or "Upload a PAI-Painter processor",
            commit_description=commit_description,
            tags=tags,
            token=_as_text(token),
        )


def _push_part(self: Any, repo_id: str, **options: Any) -> str:
    """
    The bare transformer isn't pushed: in a repository it would be taken for a painter.

    Raises:
        ValueError: always, with what to push instead.
    """
    raise ValueError(
        f"{type(self).__name__} is a part of a painter and can't be loaded as one: please push the whole, a "
        f"PaiPainterForImageGeneration."
    )


def register_push_to_hub() -> None:
    """Called once by `import pai_painter`; calling it again changes nothing."""
    for model in (PaiPainterForImageGeneration, PaiPainterVQModel):
        model.push_to_hub = _push_model
    for processor in (PaiPainterProcessor, PaiPainterImageProcessor):
        processor.push_to_hub = _push_processor
    PaiPainterModel.push_to_hub = _push_part


def _push_model_as(save: Callable[[str], None], repo_id: str, max_shard_size: int | str, **options: Any) -> str:
    with (
        tempfile.TemporaryDirectory(prefix="pai-painter-push-") as folder,
        tempfile.TemporaryDirectory(prefix="pai-painter-push-") as scratch,
    ):
        save(folder)
        return push_files(planned_files(folder, scratch, max_shard_size), repo_id, **options)


def _as_text(token: bool | str | None) -> str | None:
    """`True` is the Hub's client's word for the token of the login."""
    if token is False:
        raise ValueError("Pushing to the Hub needs a token: please leave `token` out or give one, rather than False.")
    return None if token is True else token


def _refuse_lora(model: Any, whose: str) -> None:
    if has_lora(model):
        raise ValueError(
            f"{whose} has an adapter in it: please save it (`save_pretrained`) and push that folder (`pai-painter push "
            f"FOLDER OWNER/NAME`), or make a whole model of both (`pai-painter merge`) and push that."
        )
