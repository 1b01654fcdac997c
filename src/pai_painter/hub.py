# SPDX-License-Identifier: Apache-2.0
"""
Models to and from the Hub, through huggingface_hub: a push is one commit of the files that belong to the model, a pull
is a whole model or nothing.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects, get_token, httpx  # type: ignore[attr-defined]  # not in __all__
from safetensors import safe_open
from yaml import YAMLError

from .model.model_files_pai_painter import DEMO_NAME, find_weight_files, naming_damaged_weights, read_adapter_folder
from .printable import printable
from .remote_code import Files, with_remote_code
from .whole_files import new_folder

_CONFIGS = ("config.json", "adapter_config.json")
# What belongs to a model beside its weights. All else stays: checkpoints, optimizer state, data, caches, logs.
_FILES = (
    *(*_CONFIGS, "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("README.md", "LICENSE", "NOTICE", "loss.png", "training_summary.json", "samples/*.png"),
)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_CLIENT_ERRORS = (httpx.HTTPError, json.JSONDecodeError, LocalEntryNotFoundError, OfflineModeIsEnabled, RuntimeError)
_ONLY_PULLED = ("model_index.json", "*.py", "pytorch_model*.bin", "pytorch_model.bin.index.json")


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
    the same content again makes no commit.

    Args:
        repo_id: `owner/name`; a name alone is under the token's owner.
        private: create a private repository; a public one is refused.
        revision: a branch, created if there is none. `main` by default.
        tag: a name for the commit. A tag that names another commit is not moved.
        pull_request: open a pull request instead of committing to the branch.
        token: a token with write access; `HF_TOKEN` or the login of `hf auth login` by default.
        base: for an adapter trained on a local folder, the name of that model on the Hub.

    Returns:
        the address of the repository at the commit, or of the pull request.

    Raises:
        ValueError: if the folder holds no model, or if an option is wrong or contradicts another one.
        OSError: if weights are missing, or if the Hub refuses or can't be reached.
    """
    if pull_request and (private or revision is not None or tag is not None):
        raise ValueError("A pull request is opened on main: please leave `private`, `revision` and `tag` out.")
    token = (token or get_token() or "").strip()
    if not token:
        raise ValueError("Pushing to the Hub needs a token: please log in with `hf auth login`, or set HF_TOKEN.")
    if not re.fullmatch(r"[!-~]+", token):  # which the HTTP client would quote in its error
        raise ValueError("The Hub token contains a space or an invalid character.")
    files, api = with_remote_code(_files_of(Path(folder), base)), HfApi(token=token)
    with _errors_in_one_line("pushed", repo_id, token):
        if not pull_request:
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.model_info(repo_id, revision=revision)
        if private and not there.private:
            raise ValueError(f"{repo_id} is public, so nothing was pushed: please make it private in its settings.")
        tagged = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags} if tag else {}
        if tagged.get(tag or "", there.sha) != there.sha:
            raise ValueError(f"The tag {tag} names another commit, so nothing was pushed: please choose another tag.")
        # Loading would prefer an older model's files.
        names = [file.rfilename for file in there.siblings or []]
        older = filter_repo_objects(names, allow_patterns=[*_CONFIGS, *_WEIGHTS])
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
            + [CommitOperationDelete(name) for name in older if name not in files],
            commit_message=commit_message,
            revision=revision,
            create_pr=pull_request,
            parent_commit=there.sha,
        )
        if tag is not None and tagged.get(tag) != commit.oid:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.pr_url or f"{api.endpoint}/{repo_id}/tree/{commit.oid}"


def pull_folder(
    repo_id: str, local_dir: str | Path | None = None, *, revision: str = "main", token: str | None = None
) -> Path:
    """
    Downloads a model or an adapter into the cache that `from_pretrained` reads, and copies it from there into a folder,
    if one is given. It is there complete or not at all.

    Args:
        local_dir: a new or empty folder.
        token: for private and gated repositories; `HF_TOKEN` or the login of `hf auth login` by default.

    Returns:
        `local_dir`, or the folder in the cache.

    Raises:
        ValueError: if the name can't be a repository's, or if it holds no model.
        OSError: if the Hub refuses or can't be reached, or if `local_dir` holds something already.
    """
    patterns = [*_FILES, *_WEIGHTS, *_ONLY_PULLED]
    with _errors_in_one_line("pulled", repo_id, token):
        snapshot = Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns))
    _weights(snapshot)
    if local_dir is None:
        return snapshot
    with new_folder(Path(local_dir)) as (whole, _):
        shutil.copytree(snapshot, whole, dirs_exist_ok=True)
    return Path(local_dir)


def _weights(folder: Path, use_safetensors: bool | None = None) -> tuple[list[Path], dict[str, Any] | None]:
    """The complete weights of the one model or adapter in a folder, and the adapter's settings."""
    adapter = read_adapter_folder(folder)
    if adapter is not None:
        return [Path(adapter.weights)], adapter.settings
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} contains no model: it has neither config.json nor adapter_config.json.")
    return [Path(file) for file in find_weight_files(folder, use_safetensors=use_safetensors)], None


def _files_of(folder: Path, base: str | None) -> Files:
    """What is sent of a folder; the settings and the card of an adapter name its base as the Hub does."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    found, settings = _weights(folder, use_safetensors=True)
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
    try:
        card = ModelCard.load(folder / "README.md") if "README.md" in files else None
    except (ValueError, YAMLError) as error:
        raise ValueError(f"The card {folder / 'README.md'} is damaged ({printable(error)}).") from error
    if settings is None:
        if base is not None:
            raise ValueError(f"{folder} is a whole model and has no base: please leave `base` out.")
        return files
    name = settings.get("base_model_name_or_path") if base is None else base
    if not isinstance(name, str) or not (name == DEMO_NAME or re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        raise ValueError(
            f"The base of the adapter {folder} must be a repository on the Hub, got {name!r}: please say what that "
            "model is called there (`base`, on the command line `--base OWNER/NAME`)."
        )
    if base is not None:
        settings |= {"base_model_name_or_path": base, "revision": None}
        files["adapter_config.json"] = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
        if card is not None:
            card.data["base_model"], card.data["base_model_relation"] = base, "adapter"
            files["README.md"] = str(card).encode()
    return files


@contextmanager
def _errors_in_one_line(done: str, repo_id: str, token: str | None) -> Iterator[None]:
    """The client's errors in its words, but on one line and without their cause, whose requests carry the token."""
    try:
        yield
    except _CLIENT_ERRORS as error:
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        text = printable(f"{repo_id} could not be {done} ({HfApi().endpoint}): {said}")
        secret = token or get_token()
        raise OSError(text.replace(secret, "[token]") if secret else text) from None
