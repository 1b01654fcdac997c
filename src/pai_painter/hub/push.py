# SPDX-License-Identifier: Apache-2.0
"""A model's folder to the Hub: as one commit, and nothing but what belongs to the model."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from yaml import YAMLError

from .errors import check_login, one_sentence_errors, patiently
from .folder import is_reference_name, is_repository_name, planned_files, says_which_model

__all__ = ["push_files", "push_folder"]

_COMMIT_TRIES = 5
_LONGEST_TEXT = 10 * 2**20

Files = dict[str, Path | bytes]


@dataclass(frozen=True)
class _Repository:
    """Where a push goes, and under which token."""

    api: HfApi
    name: str
    branch: str

    def head(self, revision: str | None = None) -> tuple[str, dict[str, RepoFile]]:
        """The newest commit and its files."""
        oid = str(patiently(self.api.model_info, self.name, revision=revision or self.branch).sha)
        entries = patiently(lambda: list(self.api.list_repo_tree(self.name, recursive=True, revision=oid)))
        return oid, {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


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
    max_shard_size: int | str = "5GB",
) -> str:
    """
    Uploads a trained model or an adapter as one commit, and makes the repository if there is none.

    Only files on a list go (see [`files_to_push`]), and the code with which transformers loads a whole model where this
    package isn't installed. Weights that are in the repository but not in the folder are deleted in the same commit:
    loading could prefer them to the new ones. Pushing the same content again makes no commit.

    What fails for the moment is tried again, and what has arrived isn't sent twice. If somebody else commits meanwhile,
    ours goes on top, unless theirs changes one of the same files: then nothing is overwritten.

    Args:
        folder: the model's or adapter's folder.
        repo_id: `owner/name`; a name alone is the token's owner's.
        private: Make the repository private. One that is public already is refused rather than pushed to.
        revision: branch; made from `main` if there is none. `main` by default.
        tag: for the commit. One that is there already must be at the same content: it isn't moved.
        pull_request: Ask the owner of a repository to take the commit, instead of making it. One that is open with
            the same content isn't asked twice.
        commit_message: its first line.
        token: that may write; `HF_TOKEN` or the login of `hf auth login` by default.
        base: for an adapter that was trained on a local folder, that model's name on the Hub.
        max_shard_size: the largest file of weights; a larger one is split.

    Returns:
        the address of the repository at the commit, or of the pull request.

    Raises:
        ValueError: if the folder holds no model, if options contradict each other, or if the name, the token or the
            tag can't be right.
        OSError: if the Hub refuses or can't be reached. The token stands in no error.
    """
    folder = Path(folder)
    _check_options(repo_id, private, revision, tag, pull_request)
    with tempfile.TemporaryDirectory(prefix="pai-painter-push-") as scratch:
        return push_files(
            planned_files(folder, scratch, max_shard_size, base),
            repo_id,
            private=private,
            revision=revision,
            tag=tag,
            pull_request=pull_request,
            commit_message=commit_message,
            token=token,
            ending=f"; {folder} is complete and can be pushed again",
        )


def push_files(
    files: Files,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    pull_request: bool = False,
    commit_message: str = "Upload a PAI-Painter model",
    commit_description: str | None = None,
    tags: Sequence[str] | None = None,
    token: str | None = None,
    ending: str = "",
) -> str:
    """
    The way of [`push_folder`] from its files on. Files without a model, such as a processor's, leave the repository's
    model as it is.

    Args:
        files: the name in the repository, and a file or its content.
        commit_description: what follows the first line of the commit's message.
        tags: are added to those in the card, the README.md among the files or in the repository; made if there is none.
        ending: of the sentence that says why it failed.
        repo_id, private, revision, tag, pull_request, commit_message, token: see [`push_folder`].
    """
    _check_options(repo_id, private, revision, tag, pull_request)
    if tags is not None and (isinstance(tags, str) or not all(isinstance(each, str) and each for each in tags)):
        raise ValueError(f"`tags` must be a list of words for the card, got {tags!r}.")
    message = {"commit_message": commit_message, "commit_description": commit_description}
    token = check_login(token)
    _check_no_token_in(files, token)
    api = HfApi(token=token)
    with one_sentence_errors(repo_id, api.endpoint, token, "pushed", ending, revision):
        if pull_request:
            repository = _Repository(api, repo_id, "main")
            return _open_pull_request(repository, _with_tags(repository, files, tags), message)
        repository = _made(api, repo_id, private, revision)
        oid = _commit(repository, _with_tags(repository, files, tags), message, tag)
        return f"{api.endpoint}/{repository.name}/tree/{oid}"


def _check_options(repo_id: str, private: bool, revision: str | None, tag: str | None, pull_request: bool) -> None:
    if not is_repository_name(repo_id):
        raise ValueError(
            f"{repo_id!r} is no name of a repository on the Hub: please give owner/name, of letters, digits, -, _ "
            f"and . (no two - or . in a row)."
        )
    for option, name in (("revision", revision), ("tag", tag)):
        if name is not None and not is_reference_name(name):
            raise ValueError(
                f"The {option} can't be called {name!r}: please give a name without blanks, .. and any of ~^:?*[\\."
            )
    if pull_request and (private or revision is not None or tag is not None):
        raise ValueError(
            "A pull request asks for a commit on another's main branch: please leave `private`, `revision` and `tag` "
            "out."
        )
    if pull_request and "/" not in repo_id:
        raise ValueError(f"A pull request needs the whole name of the repository, owner/name, got {repo_id!r}.")


def _check_no_token_in(files: Files, token: str) -> None:
    for name, content in files.items():
        if isinstance(content, bytes) or content.stat().st_size < _LONGEST_TEXT:
            text = content if isinstance(content, bytes) else content.read_bytes()
            if token.encode() in text:
                raise ValueError(f"{name} holds your token for the Hub, so nothing was pushed: please take it out.")


def _made(api: HfApi, repo_id: str, private: bool, revision: str | None) -> _Repository:
    """The repository and the branch, made if there is none."""
    # None leaves it to the owner's default, which for an organization may be private.
    repo_id = patiently(api.create_repo, repo_id, private=private or None, exist_ok=True).repo_id
    if private and not patiently(api.model_info, repo_id).private:
        raise ValueError(
            f"The repository {repo_id} is public already, so nothing was pushed; please make it private in its "
            f"settings, or take another name."
        )
    if revision is not None:
        patiently(api.create_branch, repo_id, branch=revision, exist_ok=True)
    return _Repository(api, repo_id, revision or "main")


def _with_tags(repository: _Repository, files: Files, tags: Sequence[str] | None) -> Files:
    """The files, with a card that has these tags beside its own."""
    if not tags:
        return files
    oid, there = repository.head()
    content = files.get("README.md")
    if content is None and "README.md" in there:
        content = Path(patiently(repository.api.hf_hub_download, repository.name, "README.md", revision=oid))
    if content is None:
        content = b"---\nlibrary_name: transformers\npipeline_tag: text-to-image\n---\n"
    text = (content if isinstance(content, bytes) else content.read_bytes()).decode()
    try:
        card = ModelCard(text)
    except (ValueError, YAMLError) as error:
        raise ValueError(f"The card of {repository.name} is damaged ({' '.join(str(error).split())}).") from error
    card.data["tags"] = list(dict.fromkeys([*(card.data.to_dict().get("tags") or []), *tags]))
    return {**files, "README.md": str(card).encode()}


def _commit(repository: _Repository, files: Files, message: dict[str, Any], tag: str | None) -> str:
    """Makes the commit, if there is anything to change, and the tag; gives the branch's newest commit."""
    oid, there = repository.head()
    operations = _changes(files, there)
    tagged = None if tag is None else _tagged(repository, tag)
    if tagged is not None and _changes(files, repository.head(tagged)[1]):
        raise ValueError(
            f"The tag {tag} of {repository.name} is at another commit ({tagged[:7]}), so nothing was pushed: please "
            f"take another tag."
        )
    for tries_left in reversed(range(_COMMIT_TRIES)):
        if not operations:
            break
        try:
            oid = patiently(
                repository.api.create_commit,
                repository.name,
                operations,
                **message,
                revision=repository.branch,
                parent_commit=oid,
            ).oid
            break
        except HfHubHTTPError as error:
            if error.response.status_code != 412 or not tries_left:
                raise
        # The branch is not where it was. If that was our own commit, whose answer got lost, nothing is left to change.
        before, (oid, there) = there, repository.head()
        operations = _changes(files, there)
        _check_not_overwriting(repository.name, operations, before, there)
    if tag is not None and tagged is None:
        patiently(repository.api.create_tag, repository.name, tag=tag, revision=oid, exist_ok=True)
    return oid


def _tagged(repository: _Repository, tag: str) -> str | None:
    tags = patiently(repository.api.list_repo_refs, repository.name).tags
    return next((found.target_commit for found in tags if found.name == tag), None)


def _open_pull_request(repository: _Repository, files: Files, message: dict[str, Any]) -> str:
    oid, there = repository.head()
    operations = _changes(files, there)
    if not operations:
        return f"{repository.api.endpoint}/{repository.name}/tree/{oid}"

    def find_or_open() -> str:
        # Looked for before each try: the answer to the last one may have got lost.
        found = _pull_request_with(repository, files)
        if found is not None:
            return found
        opened = repository.api.create_commit(repository.name, operations, **message, create_pr=True, parent_commit=oid)
        return str(opened.pr_url)

    return patiently(find_or_open)


def _pull_request_with(repository: _Repository, files: Files) -> str | None:
    ask = partial(
        repository.api.get_repo_discussions,
        repository.name,
        discussion_type="pull_request",
        discussion_status="open",
    )
    for request in patiently(lambda: list(ask())):
        _, there = repository.head(request.git_reference)
        if not _changes(files, there):
            return request.url
    return None


def _changes(files: Files, there: dict[str, RepoFile]) -> list[CommitOperationAdd | CommitOperationDelete]:
    replaces_model = any(says_which_model(name) for name in files)
    stale = [name for name in there if replaces_model and says_which_model(name) and name not in files]
    return [
        *(
            CommitOperationAdd(name, content)
            for name, content in files.items()
            if name not in there or not _is_same(content, there[name])
        ),
        *(CommitOperationDelete(name) for name in sorted(stale)),
    ]


def _is_same(content: Path | bytes, there: RepoFile) -> bool:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size != there.size:
        return False
    # The Hub knows a large file by its SHA-256, and any other as git does.
    told = hashlib.sha1(b"blob %d\0" % size) if there.lfs is None else hashlib.sha256()
    if isinstance(content, bytes):
        told.update(content)
    else:
        with content.open("rb") as file:
            while piece := file.read(2**20):
                told.update(piece)
    return told.hexdigest() == (there.blob_id if there.lfs is None else there.lfs.sha256)


def _check_not_overwriting(
    name: str,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    before: dict[str, RepoFile],
    now: dict[str, RepoFile],
) -> None:
    for path in (operation.path_in_repo for operation in operations):
        if (path in before and before[path].blob_id) != (path in now and now[path].blob_id):
            raise ValueError(
                f"Somebody else changed {path} in {name} during the push, and nothing of theirs was overwritten: please"
                f" look at it, and push again if yours is to stay."
            )
