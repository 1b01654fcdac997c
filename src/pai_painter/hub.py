# SPDX-License-Identifier: Apache-2.0
"""
Models to and from the Hub, through huggingface_hub: a push is one commit of the files that belong to the model, a pull
is a whole model or nothing.
"""

import filecmp
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from httpx2 import HTTPError, UnsupportedProtocol  # huggingface_hub's own client
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, errors, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects, get_token  # type: ignore[attr-defined]  # not in its __all__
from safetensors import safe_open
from transformers import ProcessorMixin
from yaml import YAMLError

from .model.folder_pai_painter import DEMO_NAME, naming_damaged_weights
from .model.image_processing_pai_painter import PaiPainterImageProcessor
from .model.model_files_pai_painter import find_weight_files, read_json_object
from .model.modeling_pai_painter import PaiPainterForImageGeneration, PaiPainterModel
from .model.modeling_vqgan import PaiPainterVQModel
from .model.processing_pai_painter import PaiPainterProcessor
from .printable import printable
from .remote_code import Files, with_remote_code

__all__ = ["pull_folder", "push_folder", "push_saved", "register_push_to_hub"]

_CONFIGS = ("config.json", "adapter_config.json")
# What belongs to a model beside its weights. All else stays: checkpoints, optimizer state, data, caches, logs.
_FILES = (
    *(*_CONFIGS, "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("README.md", "LICENSE", "NOTICE", "loss.png", "training_summary.json", "samples/*.png"),
)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_CODE = ("model_index.json", "*.py")
_EASYNLP_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_INCOMPLETE = ".incomplete"  # a folder's, while a pull fills it

_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set"),
    (UnsupportedProtocol, "HF_ENDPOINT must begin with https://"),
    (json.JSONDecodeError, "HF_ENDPOINT doesn't answer as the Hub does"),
    (errors.GatedRepoError, "it is gated: please accept its conditions on its page, and log in with `hf auth login`"),
    (errors.RevisionNotFoundError, "it has no such branch, tag or commit"),
    (errors.RepositoryNotFoundError, "there is no such repository, or the token can't see it"),
    (errors.HfHubHTTPError, "the Hub refuses"),
    (LocalEntryNotFoundError, "the Hub is not asked"),
    (Exception, "the Hub can't be reached, or the connection broke"),
)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    pull_request: bool = False,
    commit_message: str = "Upload a PAI-Painter model",
    token: str | None = None,
    base: str | None = None,
) -> str:
    """
    Uploads a trained model or an adapter as one commit, and creates the repository if there is none.

    What is sent: weights (safetensors), configurations of model, generation, processor and tokenizer, the card,
    licences, loss.png, training_summary.json, samples/*.png, and the code that loads a whole model where this package
    isn't installed. Weights that are in the repository but not in the folder are deleted in the same commit. Pushing
    the same content again makes no commit; after an interruption, what has arrived isn't sent again.

    Args:
        folder: the model's or adapter's folder.
        repo_id: `owner/name`; a name alone is under the token's owner.
        private: create a private repository; a public one is refused.
        revision: a branch, created if there is none. `main` by default.
        tag: a name for the commit. A tag that names another commit is not moved.
        pull_request: open a pull request instead of committing to the branch.
        commit_message: the first line of the commit's message.
        token: a token with write access; `HF_TOKEN` or the login of `hf auth login` by default.
        base: for an adapter trained on a local folder, the name of that model on the Hub.

    Returns:
        the address of the repository at the commit, or of the pull request.

    Raises:
        ValueError: if the folder holds no model, or if an option is wrong or contradicts another one.
        OSError: if weights are missing, or if the Hub refuses or can't be reached.
    """
    options: dict[str, Any] = {"private": private, "revision": revision, "tag": tag, "create_pr": pull_request}
    return _push(_files_of(Path(folder), base), repo_id, token, {"commit_message": commit_message}, **options)


def push_saved(
    self: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "5GB",
    tags: list[str] | None = None,
) -> str:
    """
    Pushes a model, a processor or a pipeline as one commit, with the code that loads it where this package isn't
    installed. Everything else in the repository, such as its card, is left as it is.

    Args:
        commit_description (`str`, *optional*): What follows the first line of the commit's message.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): Larger weights are split.
        tags (`list[str]`, *optional*): Added to those of the repository's card, which is created if there is none.
        repo_id, commit_message, private, token, revision: see [`push_folder`]; `token=True` is the login's.

    Returns:
        `str`: the address, see [`push_folder`].

    Raises:
        ValueError: if the model has an adapter, or if an option is wrong.
        OSError: if the Hub refuses or can't be reached.
    """
    if isinstance(self, PaiPainterModel):
        raise ValueError("PaiPainterModel is part of a painter: please push the whole PaiPainterForImageGeneration.")
    if any(getattr(part, "peft_config", None) for part in (self, getattr(self, "model", None))):
        raise ValueError(
            "The model has an adapter: please save it and push its folder (`pai-painter push FOLDER OWNER/NAME`), or "
            "merge them first (`pai-painter merge`)."
        )
    if token is False:
        raise ValueError("Pushing to the Hub needs a token, got False: please leave `token` out or pass one.")
    if tags is not None and (isinstance(tags, str) or not all(isinstance(each, str) and each for each in tags)):
        raise ValueError(f"`tags` must be a list of words for the card, got {tags!r}.")
    saving = {} if isinstance(self, ProcessorMixin | PaiPainterImageProcessor) else {"max_shard_size": max_shard_size}
    options: dict[str, Any] = {"private": bool(private), "revision": revision, "create_pr": create_pr, "tags": tags}
    message = {"commit_message": commit_message or f"Upload {type(self).__name__}"}
    message |= {"commit_description": commit_description} if commit_description else {}
    with tempfile.TemporaryDirectory(prefix="pai-painter-push-") as folder:
        self.save_pretrained(folder, **saving)
        files: Files = {path.name: path for path in Path(folder).iterdir()}
        return _push(files, repo_id, None if token is True else token, message, **options)


def register_push_to_hub() -> None:
    """
    Makes `push_saved` the `push_to_hub` of models and processors. Their own files travel to the Hub, where this package
    may be missing and transformers' `push_to_hub` remains. Called once by `import pai_painter`.
    """
    for model in (PaiPainterForImageGeneration, PaiPainterModel, PaiPainterVQModel):
        model.push_to_hub = push_saved
    for processor in (PaiPainterProcessor, PaiPainterImageProcessor):
        processor.push_to_hub = push_saved


def pull_folder(
    repo_id: str, local_dir: str | Path | None = None, *, revision: str = "main", token: str | None = None
) -> Path:
    """
    Downloads a model or an adapter into the cache that `from_pretrained` reads, and copies it from there into a folder,
    if one is given. It is there complete or not at all.

    Args:
        repo_id: `owner/name`.
        local_dir: a new or empty folder. One that has the same content already is left as it is.
        revision: branch, tag or commit.
        token: for private and gated repositories; `HF_TOKEN` or the login of `hf auth login` by default.

    Returns:
        `local_dir`, or the folder in the cache.

    Raises:
        ValueError: if the name can't be a repository's, or if it holds no model.
        OSError: if the Hub refuses or can't be reached, or if `local_dir` holds something else.
    """
    patterns = [*_FILES, *_WEIGHTS, *_EASYNLP_WEIGHTS, *_CODE]
    with _one_sentence_errors("pulled", repo_id, token):
        snapshot = Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
    _weights(snapshot, repo_id)
    if local_dir is None:
        return snapshot
    target = Path(local_dir)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file: please name a new folder.")
    shutil.rmtree(target / _INCOMPLETE, ignore_errors=True)  # of a pull that was killed
    files = list(filter_repo_objects(_names(snapshot), allow_patterns=patterns))
    held = _names(target)
    if held == files and filecmp.cmpfiles(snapshot, target, files, shallow=False)[0] == files:
        return target
    if held:
        raise FileExistsError(f"{target} isn't empty: please name a new folder, or remove what is in it.")
    _fill(target, snapshot, files)
    return target


def _push(
    files: Files,
    repo_id: str,
    token: str | None,
    message: dict[str, Any],
    *,
    private: bool,
    revision: str | None,
    create_pr: bool,
    tag: str | None = None,
    tags: list[str] | None = None,
) -> str:
    if create_pr and (private or revision is not None or tag is not None):
        raise ValueError("A pull request is opened on main: please leave `private`, `revision` and `tag` out.")
    token = (token or get_token() or "").strip()
    if not token:
        raise ValueError("Pushing to the Hub needs a token: please log in with `hf auth login`, or set HF_TOKEN.")
    if not re.fullmatch(r"[!-~]+", token):  # which the HTTP client would quote in its error
        raise ValueError("The token for the Hub holds a blank or a letter that no token has.")
    files, api = with_remote_code(files), HfApi(token=token)
    with _one_sentence_errors("pushed", repo_id, token):
        if not create_pr:
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.model_info(repo_id, revision=revision)
        if private and not there.private:
            raise ValueError(f"{repo_id} is public, so nothing was pushed: please make it private in its settings.")
        tagged = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags} if tag else {}
        if tagged.get(tag or "", there.sha) != there.sha:
            raise ValueError(f"The tag {tag} names another commit, so nothing was pushed: please choose another tag.")
        names = [file.rfilename for file in there.siblings or []]
        if tags:
            card: Path | bytes = b"---\nlibrary_name: transformers\npipeline_tag: text-to-image\n---\n"
            if "README.md" in names:
                card = Path(api.hf_hub_download(repo_id, "README.md", revision=there.sha))
            files["README.md"] = _card(card, f"README.md of {repo_id}", tags)
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        if not files.keys().isdisjoint(_CONFIGS):  # loading would prefer an older model's files
            older = filter_repo_objects(names, allow_patterns=[*_CONFIGS, *_WEIGHTS])
            operations += [CommitOperationDelete(name) for name in older if name not in files]
        commit = api.create_commit(
            repo_id, operations, **message, revision=revision, create_pr=create_pr, parent_commit=there.sha
        )
        if tag is not None and tagged.get(tag) != commit.oid:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.pr_url or f"{api.endpoint}/{repo_id}/tree/{commit.oid}"


def _weights(folder: Path, name: str, use_safetensors: bool | None = None) -> list[Path]:
    """The complete weights of the one model or adapter in a folder."""
    configs = [config for config in _CONFIGS if (folder / config).is_file()]
    if len(configs) == 2:
        raise ValueError(f"{name} holds both a whole model (config.json) and an adapter (adapter_config.json).")
    if not configs:
        raise ValueError(f"{name} holds no model: it has neither config.json nor adapter_config.json.")
    if configs == ["config.json"]:
        return [Path(file) for file in find_weight_files(folder, use_safetensors=use_safetensors)]
    if not (folder / "adapter_model.safetensors").is_file():
        raise OSError(f"The adapter {name} has no weights: there is no adapter_model.safetensors.")
    return [folder / "adapter_model.safetensors"]


def _files_of(folder: Path, base: str | None) -> Files:
    """What is sent of a folder; the settings and the card of an adapter name its base as the Hub does."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    if (folder / "pytorch_model.bin").is_file() and not list(folder.glob("model*.safetensors")):
        raise ValueError(f"{folder} has no safetensors: please run `pai-painter convert {folder} NEW_FOLDER` first.")
    found = _weights(folder, str(folder), use_safetensors=True)
    for file in found:
        with naming_damaged_weights(str(file)), safe_open(file, framework="numpy"):
            pass  # reading the header compares it with the file's length
    patterns = _FILES if found[0].name in _WEIGHTS else (*_FILES, "model.safetensors.index.json")
    found += [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    root = folder.resolve()
    # In the Hub's cache the files of a snapshot are links to its blobs.
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in found:
        if not any(path.resolve().is_relative_to(allowed) for allowed in roots):
            raise ValueError(f"{printable(path)} is a link to a file outside the folder: please put a copy there.")
    files: Files = {path.relative_to(folder).as_posix(): path for path in found}
    card = _card(folder / "README.md", str(folder / "README.md"), base=base) if "README.md" in files else b""
    if "config.json" in files:
        if base is not None:
            raise ValueError(f"{folder} is a whole model and has no base: please leave `base` out.")
        return files
    settings = read_json_object(str(folder / "adapter_config.json"), folder)
    name = settings.get("base_model_name_or_path") if base is None else base
    if not isinstance(name, str) or not (name == DEMO_NAME or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        raise ValueError(
            f"The base of the adapter {folder} must be a repository on the Hub, got {name!r}: please say what that "
            "model is called there (`base`, on the command line `--base OWNER/NAME`)."
        )
    if base is not None:
        settings |= {"base_model_name_or_path": base, "revision": None}
        files["adapter_config.json"] = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
        files |= {"README.md": card} if card else {}
    return files


def _card(content: Path | bytes, name: str, tags: Iterable[str] = (), base: str | None = None) -> bytes:
    """A card with more tags, or with an adapter's base."""
    try:
        card = ModelCard((content if isinstance(content, bytes) else content.read_bytes()).decode())
    except (ValueError, YAMLError) as error:
        raise ValueError(f"The card {name} is damaged ({printable(error)}).") from error
    if tags:
        card.data["tags"] = list(dict.fromkeys([*(card.data.to_dict().get("tags") or []), *tags]))
    if base is not None:
        card.data["base_model"], card.data["base_model_relation"] = base, "adapter"
    return str(card).encode()


def _names(folder: Path) -> list[str]:
    """All files in a folder, and links to folders."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _fill(target: Path, snapshot: Path, files: list[str]) -> None:
    """Copies files into an empty folder, which stays the same one: it may be the current one, or a mounted disk."""
    try:
        for name in files:
            (target / _INCOMPLETE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, target / _INCOMPLETE / name)
        for name in sorted(files, key=lambda name: name in _CONFIGS):  # last: without it, a folder is no model
            (target / name).parent.mkdir(exist_ok=True)
            (target / _INCOMPLETE / name).rename(target / name)
    finally:
        shutil.rmtree(target / _INCOMPLETE, ignore_errors=True)


@contextmanager
def _one_sentence_errors(done: str, repo_id: str, token: str | None) -> Iterator[None]:
    """The client's errors as one sentence each, without their cause, whose requests carry the token."""
    try:
        yield
    except (HTTPError, json.JSONDecodeError, LocalEntryNotFoundError, OfflineModeIsEnabled, RuntimeError) as error:
        cause: BaseException = error
        while isinstance(cause, LocalEntryNotFoundError | RuntimeError) and cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(text for kind, text in _REASONS if isinstance(cause, kind))
        said = str(cause).partition("\n")[0].rstrip(".")
        if isinstance(cause, errors.HfHubHTTPError):
            response = cause.response
            said = f"{response.status_code}, {cause.server_message or response.reason_phrase}".rstrip(". ")
        cached = ", and the cache doesn't hold all of it" if isinstance(error, LocalEntryNotFoundError) else ""
        text = printable(f"{repo_id} could not be {done}: {reason}{cached} ({HfApi().endpoint}: {said}).")
        secret = token or get_token()
        raise OSError(text.replace(secret, "[token]") if secret else text) from None
