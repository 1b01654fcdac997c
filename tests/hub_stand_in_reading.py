# SPDX-License-Identifier: Apache-2.0
"""What the stand-in for the Hub gives: lists of files, and files."""

import hashlib
import json
import re
from urllib.parse import parse_qs

from hub_stand_in_repositories import LARGE, git_oid, listing
from hub_stand_in_requests import NAME, Requests


class Reading(Requests):
    routes = {
        "GET /api/whoami-v2": "_whoami",
        rf"GET /api/models/{NAME}": "_info",
        rf"GET /api/models/{NAME}/revision/([^/]+)": "_info",
        rf"GET /api/models/{NAME}/tree/([^/]+)": "_tree",
        rf"GET /api/models/{NAME}/tree/([^/]+)/(.+)": "_subtree",
        rf"POST /api/models/{NAME}/paths-info/([^/]+)": "_paths",
        rf"GET /api/models/{NAME}/refs": "_refs",
        rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)": "_resolve",
        r"(?:GET|HEAD) /storage/(\w+)": "_stored",
    }

    def _whoami(self) -> None:
        if not self.token:
            return self.answer({"error": "Invalid username or password."}, 401)
        return self.answer({"type": "user", "name": self.owner or "reader", "orgs": [], "auth": {}})

    def _info(self, name: str, revision: str = "main") -> None:
        commit = self.commit_at(name, revision)
        if commit is not None:
            repository = self.server.repositories[name]
            siblings = [{"rfilename": file} for file in commit.files]
            about = {"id": name, "sha": commit.oid, "private": repository.private, "siblings": siblings}
            self.answer({**about, "gated": "manual" if repository.gated else False})

    def _tree(self, name: str, revision: str) -> None:
        commit = self.commit_at(name, revision)
        if commit is not None:
            self.answer(listing(commit.files))

    def _subtree(self, name: str, revision: str, folder: str) -> None:
        commit = self.commit_at(name, revision)
        if commit is None:
            return None
        files = {path: content for path, content in commit.files.items() if path.startswith(f"{folder}/")}
        if not files:
            return self.answer({"error": f"{folder} does not exist"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self.answer(listing(files))

    def _paths(self, name: str, revision: str) -> None:
        commit = self.commit_at(name, revision)
        if commit is not None:
            is_json = self.headers.get("Content-Type") == "application/json"
            wanted = (json.loads(self.body) if is_json else parse_qs(self.body.decode()))["paths"]
            self.answer(listing(commit.files, wanted))

    def _refs(self, name: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        told: dict[str, list] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for branch, commits in repository.branches.items():
            is_request = branch.startswith("refs/pr/")
            ref = branch if is_request else f"refs/heads/{branch}"
            kind = "pullRequests" if is_request else "branches"
            told[kind].append({"name": branch, "ref": ref, "targetCommit": commits[-1].oid})
        for tag, oid in repository.tags.items():
            told["tags"].append({"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid})
        self.answer(told)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        commit = self.commit_at(name, revision)
        if commit is None:
            return None
        if self.server.repositories[name].gated and self.owner != name.split("/")[0]:
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted."}
            return self.answer({"error": "restricted"}, 403 if self.token else 401, said)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", **headers})
        content = commit.files[path]
        if not path.endswith(LARGE):
            return self._send_file(content, {"ETag": f'"{git_oid(content)}"', **headers})
        sha256 = hashlib.sha256(content).hexdigest()
        self.server.large_files[sha256] = content
        location = f"{self.server.storage}/storage/{sha256}"
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"', "Location": location}
        return self.answer(b"", 302, headers)

    def _stored(self, sha256: str) -> None:
        content = self.server.large_files.get(sha256)
        if content is None:
            return self.answer({"error": "NoSuchKey"}, 404)
        return self._send_file(content, {"ETag": f'"{sha256}"'})

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.answer(content, 200, headers)
        self.server.ranges.append(self.headers["Range"])
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            return self.answer(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.answer(content[first : last + 1], 206, headers)
