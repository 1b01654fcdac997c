# SPDX-License-Identifier: Apache-2.0
"""A model from the Hub: into the cache, and from there into a folder, complete or not at all."""

import filecmp
import glob
import logging
import os
import shutil
import tempfile
from pathlib import Path

from httpx2 import TransportError, UnsupportedProtocol  # huggingface_hub's own client
from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, OfflineModeIsEnabled

from .errors import checked_token, one_sentence_errors, patiently
from .folder import belongs_to_model, has_weights, is_repository_name, missing_shards

__all__ = ["pull_folder"]

logger = logging.getLogger(__name__)


def pull_folder(
    repo_id: str,
    local_dir: str | Path | None = None,
    *,
    revision: str = "main",
    token: str | None = None,
    local_files_only: bool = False,
    force: bool = False,
) -> Path:
    """
    Downloads a model or an adapter, complete or not at all, and nothing that isn't part of it.

    It goes into the cache that `from_pretrained` reads, too. A connection that breaks off is taken up where it was;
    files that are there aren't fetched again; without a network, what was downloaded before is taken.

    Args:
        repo_id: `owner/name`.
        local_dir: a new folder, or an empty one, for a copy beside the cache. A folder that has the same content
            already is left as it is.
        revision: branch, tag or commit.
        token: for private and gated repositories; `HF_TOKEN` or the login of `hf auth login` by default.
        local_files_only: Ask no Hub.
        force: Replace a model that is in `local_dir`.

    Returns:
        `local_dir`, or the folder in the cache.

    Raises:
        ValueError: if the name or the token can't be right, or if the repository holds no model.
        OSError: if the Hub refuses or can't be reached, or if `local_dir` holds something else.
    """
    if "/" not in repo_id or not is_repository_name(repo_id):
        raise ValueError(f"{repo_id!r} is no name of a repository on the Hub: please give owner/name.")
    target = None if local_dir is None else Path(os.path.abspath(local_dir))  # `.` has no name
    if target is not None:
        _check_target(target)
    token = checked_token(token)
    api = HfApi(token=token)
    kept = "; whole files that have arrived are kept, and the next try fetches the rest"
    with one_sentence_errors(repo_id, api.endpoint, token, "pulled", kept, revision):
        names = None if local_files_only else _names_on_the_hub(api, repo_id, revision)
        is_local = names is None
        if names is None:
            names = _names_in_the_cache(repo_id, revision)
        snapshot = Path(
            patiently(
                snapshot_download,
                repo_id,
                unreachable=False,
                revision=revision,
                token=token,
                local_files_only=is_local,
                allow_patterns=None if names is None else [glob.escape(name) for name in _wanted(names)],
            )
        )
    files = _complete_files(snapshot, repo_id)
    if target is None:
        return snapshot
    _copy(snapshot, files, target, force)
    return target


def _names_on_the_hub(api: HfApi, repo_id: str, revision: str) -> list[str] | None:
    """Names of the repository's files; `None` if nobody can be asked."""
    try:
        siblings = patiently(api.model_info, repo_id, revision=revision, unreachable=False).siblings
    except OfflineModeIsEnabled:
        return None
    except UnsupportedProtocol:
        raise
    except TransportError:
        logger.warning("The Hub (%s) can't be reached; looking for what was downloaded before.", api.endpoint)
        return None
    return [file.rfilename for file in siblings or []]


def _names_in_the_cache(repo_id: str, revision: str) -> list[str] | None:
    """The same as far as it was written down: `pull_folder` does it, `from_pretrained` doesn't."""
    try:
        return [file.path for file in get_cached_repo_tree(repo_id, revision=revision)]
    except CachedRepoTreeNotFoundError:
        return None


def _wanted(names: list[str]) -> list[str]:
    """Of several formats of weights only the safe one."""
    names = [name for name in names if belongs_to_model(name)]
    old = [name for name in names if ".bin" in name]
    for config, prefix in (("config.json", "pytorch_"), ("adapter_config.json", "adapter_")):
        if has_weights(names, config):
            old = [name for name in old if not name.startswith(prefix)]
    return [name for name in names if ".bin" not in name or name in old]


def _complete_files(snapshot: Path, repo_id: str) -> list[str]:
    """The model's files in a folder of the cache, which may hold others."""
    files = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    files = _wanted(files)
    missing = missing_shards(snapshot, files)
    if missing:
        raise OSError(f"{repo_id} is incomplete: {missing[0]} is missing.")
    configs = [name for name in ("config.json", "adapter_config.json") if name in files]
    if len(configs) == 2:
        raise ValueError(
            f"{repo_id} holds a whole model (config.json) and an adapter (adapter_config.json): which is meant?"
        )
    if not configs or not has_weights(files, configs[0], old=True):
        raise ValueError(
            f"{repo_id} holds no model: it must have config.json or adapter_config.json, and weights (it has "
            f"{', '.join(files[:5]) or 'nothing of the kind'})."
        )
    return files


def _check_target(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise FileExistsError(f"{target} is a file or a link: please name a new folder.")


def _copy(snapshot: Path, files: list[str], target: Path, force: bool) -> None:
    """Copies, since changes to the folder must not change the cache. The folder is there whole or not at all."""
    held = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if _holds(path))
    if held == files and filecmp.cmpfiles(snapshot, target, files, shallow=False)[0] == files:
        return
    if held and not force:
        raise FileExistsError(f"{target} isn't empty: please name a new folder, or --force to replace the model in it.")
    strangers = [name for name in held if not belongs_to_model(name)]
    if strangers:
        raise FileExistsError(
            f"{target} holds more than a model ({', '.join(strangers[:3])}), which --force doesn't delete: please name "
            f"a new folder."
        )
    if not held and target.exists():
        _fill(snapshot, files, target)
        return
    if held and target.samefile(Path.cwd()):
        raise FileExistsError(f"{target} is the current folder, which can't be replaced: please go to another one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        whole, old = Path(scratch) / "whole", Path(scratch) / "old"
        _copy_files(snapshot, files, whole)
        try:
            if target.exists():
                target.rename(old)
            whole.rename(target)
        except BaseException:  # Ctrl-C, too
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def _holds(path: Path) -> bool:
    """Whether it is more than a folder."""
    return path.is_symlink() or not path.is_dir()


def _copy_files(snapshot: Path, files: list[str], target: Path) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / name, target / name)


def _fill(snapshot: Path, files: list[str], target: Path) -> None:
    """Into an empty folder, which stays the same one: it may be the current one, or where a disk is mounted."""
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=target) as scratch:
        _copy_files(snapshot, files, Path(scratch))
        # Without its configuration, which comes last, it is no model.
        entries = sorted(Path(scratch).iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json"))
        try:
            for entry in entries:
                entry.rename(target / entry.name)
        except BaseException:
            for entry in entries:
                if not entry.exists():
                    (target / entry.name).rename(entry)
            raise
