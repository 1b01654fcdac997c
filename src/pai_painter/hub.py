# SPDX-License-Identifier: Apache-2.0
"""A model's folder to the Hub: as one commit, and nothing but what belongs to the model."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from httpx2 import HTTPError  # huggingface_hub's own client: its errors pass through
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in its __all__

__all__ = ["files_to_push", "is_repository_name", "push_folder"]

# Whatever is not named here stays at home: checkpoints, optimizer state, data, rejected rows, caches, logs.
_FILES = {
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("adapter_config.json", "README.md", "LICENSE", "NOTICE", "loss.png", "training_summary.json"),
}
_WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_SAMPLES = "samples/*.png"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload a PAI-Painter model",
    token: str | None = None,
) -> str:
    """
    Uploads a trained model or an adapter as one commit, and makes the repository if there is none.

    Only files on a list go (see [`files_to_push`]). Weights that are in the repository but not in the folder are
    deleted in the same commit: loading could prefer them to the new ones. Pushing the same content again makes no
    commit.

    Args:
        folder: the model's or adapter's folder.
        repo_id: `owner/name`; a name alone is the token's owner's.
        private: Make the repository private. One that is public already is refused rather than pushed to.
        revision: branch; made from `main` if there is none. `main` by default.
        token: that may write; `HF_TOKEN` or the login of `hf auth login` by default.

    Returns:
        the address of the repository at the commit.

    Raises:
        ValueError: if the folder holds no model, or if the name or the token can't be right.
        OSError: if the Hub refuses or can't be reached. The token stands in no error.
    """
    folder = Path(folder)
    names = files_to_push(folder)
    if not is_repository_name(repo_id):
        raise ValueError(
            f"{repo_id!r} is no name of a repository on the Hub: please give owner/name, of letters, digits, -, _ "
            f"and . (no two - or . in a row)."
        )
    token = _checked_token(token)
    api = HfApi(token=token)
    with _one_sentence_errors(folder, repo_id, api.endpoint, token):
        # None leaves it to the owner's default, which for an organization may be private.
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"The repository {repo_id} is public already, so nothing was pushed; please make it private in its "
                f"settings, or take another name."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in there if _WEIGHTS.fullmatch(name) and name not in names]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, folder / name) for name in names),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message,
            revision=revision,
        )
    return f"{api.endpoint}/{repo_id}/tree/{commit.oid}"


def files_to_push(folder: str | Path) -> list[str]:
    """
    Names, relative to `folder`, of what would go to the Hub: weights (safetensors), configurations of model,
    generation, processor and tokenizer, the card, licence files, loss.png, training_summary.json and samples/*.png.

    Raises:
        ValueError: if the folder holds no model and no adapter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    names = sorted(
        path.name for path in folder.iterdir() if path.is_file() and (path.name in _FILES or _is_weights(path))
    )
    configured = "config.json" in names or "adapter_config.json" in names
    if not configured or not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{folder} holds no model to push: it must have config.json or adapter_config.json, and weights as "
            f".safetensors."
        )
    return names + sorted(path.relative_to(folder).as_posix() for path in folder.glob(_SAMPLES) if path.is_file())


def is_repository_name(name: str) -> bool:
    """Whether a repository on the Hub can be called so: `owner/name`, or a name alone."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _is_weights(path: Path) -> bool:
    return _WEIGHTS.fullmatch(path.name) is not None


def _checked_token(token: str | None) -> str:
    token = get_token() if token is None else token.strip()
    if not token:
        raise ValueError(
            "Pushing to the Hub needs a token: please log in with `hf auth login`, or set HF_TOKEN to a token that may "
            "write."
        )
    if not re.fullmatch(r"[!-~]+", token):  # the HTTP client would quote it in its error
        raise ValueError("The token for the Hub holds a blank or a letter that no token has.")
    return token


@contextmanager
def _one_sentence_errors(folder: Path, repo_id: str, endpoint: str, token: str) -> Iterator[None]:
    """Errors of the Hub's client as one sentence each. They drop their cause: its requests carry the token."""
    kept = f"; {folder} is complete and can be pushed again"
    try:
        yield
    except RuntimeError as error:  # an upload's own error is its cause
        cause = error.__cause__ if isinstance(error.__cause__, HTTPError) else error
        reason = _reason(cause, repo_id, endpoint)
    except (HTTPError, OSError) as error:
        reason = _reason(error, repo_id, endpoint)
    except ValueError as error:  # such as a card whose metadata the Hub doesn't like
        raise ValueError(" ".join(str(error).split()).replace(token, "[token]")) from None
    else:
        return
    raise OSError(f"{reason}{kept}.".replace(token, "[token]")) from None


def _reason(error: BaseException, repo_id: str, endpoint: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id} can't be pushed while HF_HUB_OFFLINE is set"
    if not isinstance(error, HfHubHTTPError):
        why = f", since the Hub ({endpoint}) can't be reached or broke off" if isinstance(error, HTTPError) else ""
        return f"{repo_id} could not be pushed{why} ({' '.join(str(error).split()).rstrip('.')})"
    status = error.response.status_code
    said = " ".join((error.server_message or error.response.reason_phrase).split()).rstrip(".")
    if status == 401:
        return f"The Hub refuses the token ({status}, {said}): please log in again, or set HF_TOKEN to a valid one"
    if status == 403:
        return f"The token may not write to {repo_id} ({status}, {said})"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such branch ({status}, {said})"
    if isinstance(error, RepositoryNotFoundError):
        return f"The repository {repo_id} is not there, or the token may not see it ({status}, {said})"
    if status in (409, 412):
        return f"Somebody else changed {repo_id} meanwhile ({status}, {said})"
    return f"{repo_id} could not be pushed: the Hub answered {status} ({said})"
