# SPDX-License-Identifier: Apache-2.0
"""What the stand-in for the Hub keeps: repositories with their branches, tags and pull requests; and faults to come."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

LARGE = (".safetensors", ".bin", ".png")  # what the Hub keeps apart, as LFS does


@dataclass
class Commit:
    """One commit: what it changed, and all files after it."""

    message: str
    changed: list[str]
    files: dict[str, bytes]
    oid: str


def _first() -> dict[str, list[Commit]]:
    return {"main": [Commit("initial", [], {}, "0" * 40)]}


@dataclass
class Repository:
    """
    Attributes:
        private: only its owner sees it.
        gated: everybody sees it, its owner alone may download it.
        branches: each one's commits, the newest last; `refs/pr/1` is the first pull request's.
        tags: the commit of each.
    """

    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=_first)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a hash."""
        if revision in self.branches:
            return self.branches[revision][-1]
        wanted = self.tags.get(revision, revision)
        return next((commit for commits in self.branches.values() for commit in commits if commit.oid == wanted), None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        commit = self.at(revision)
        assert commit is not None, f"no revision {revision}"
        return commit.files

    def commit(self, message: str, changes: dict[str, bytes | None], branch: str = "main") -> Commit:
        """Adds a commit; `None` deletes the file."""
        parent = self.branches[branch][-1]
        files = {name: content for name, content in {**parent.files, **changes}.items() if content is not None}
        told = hashlib.sha1(f"{parent.oid} {message} {len(self.branches[branch])}".encode())
        for name, content in changes.items():
            told.update(f"{name}\0".encode() + (content or b""))
        self.branches[branch].append(Commit(message, list(changes), files, told.hexdigest()))
        return self.branches[branch][-1]

    def open_pull_request(self, from_commit: Commit) -> str:
        """The name of its branch."""
        branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in self.branches)}"
        self.branches[branch] = [from_commit]
        return branch


@dataclass
class Fault:
    """
    Something that goes wrong with the next requests that it is for.

    Attributes:
        part: of `METHOD /path`.
        status: answered instead; `None` serves the request.
        message: that goes with the status.
        times: how many requests it is for.
        cut: the connection breaks in the middle of the answer.
        before: done before all of this, such as a commit of somebody else.
    """

    part: str
    status: int | None = None
    message: str = "out of order"
    times: int = 1
    cut: bool = False
    before: Callable[[], object] | None = None


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listing(files: dict[str, bytes], wanted: Iterable[str] | None = None) -> list[dict]:
    """Files as the Hub lists them."""
    entries = []
    for path in files if wanted is None else [path for path in wanted if path in files]:
        content = files[path]
        entries.append({"type": "file", "path": path, "size": len(content), "oid": git_oid(content)})
        if path.endswith(LARGE):
            entries[-1]["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
    return entries
