# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Hub on the loopback: enough of its HTTP interface for the real client to push a model."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_writer": "painter", "hf_reader": None}  # a token's owner; one that may only read has none


@dataclass
class Commit:
    """One commit of a branch: what it changed, and all files after it."""

    message: str
    changed: list[str]
    files: dict[str, bytes]
    oid: str


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("initial", [], {}, "0" * 40)]})

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.branches[branch][-1].files


class HubStandIn(ThreadingHTTPServer):
    """
    Attributes:
        repositories: by name.
        requests: method and path of each request that came.
        faults: (part of a path, status, message): answered instead, each as often as it stands there.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.faults: list[tuple[str, int, str]] = []
        self.large_files: dict[str, bytes] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._serve("GET", self._routes_get)

    def do_POST(self) -> None:
        self._serve("POST", self._routes_post)

    def do_PUT(self) -> None:
        self._serve("PUT", {r"/lfs/(\w+)": self._keep_large_file})

    def _serve(self, method: str, routes: dict[str, Any]) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{method} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        for fault in self.server.faults:
            if fault[0] in path:
                self.server.faults.remove(fault)
                return self._answer({"error": fault[2]}, fault[1])
        if not path.startswith("/lfs/") and self.token not in TOKENS:
            # As the Hub does, and, worse than the Hub, with the token in its answer.
            said = "Invalid credentials in Authorization header"
            return self._answer({"error": f"Invalid token {self.token}"}, 401, {"X-Error-Message": said})
        for pattern, serve in routes.items():
            found = re.fullmatch(pattern, path)
            if found:
                return serve(*map(unquote, found.groups()))
        return self._answer({"error": "Not Found"}, 404)

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def _routes_get(self) -> dict[str, Any]:
        name = r"/api/models/([\w.-]+/[\w.-]+)"
        return {name: self._info, rf"{name}/revision/([^/]+)": self._info, rf"{name}/tree/([^/]+)": self._tree}

    @property
    def _routes_post(self) -> dict[str, Any]:
        name = r"/api/models/([\w.-]+/[\w.-]+)"
        return {
            "/api/repos/create": self._create,
            "/api/validate-yaml": lambda: self._answer({"errors": [], "warnings": []}),
            rf"{name}/branch/([^/]+)": self._branch,
            rf"{name}/preupload/([^/]+)": self._preupload,
            rf"{name}/commit/([^/]+)": self._commit,
            r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch": self._batch,
            "/lfs/verify": lambda: self._answer({}),
        }

    def _repository(self, name: str, branch: str = "main") -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None:
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif branch not in found.branches:
            self._answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return found

    def _create(self) -> None:
        wanted = json.loads(self.body)
        owner = TOKENS[self.token]
        name = f"{wanted['organization'] or owner}/{wanted['name']}"
        if owner is None or wanted["organization"] not in (None, owner):
            said = "You don't have the rights to create a model under this namespace"
            return self._answer({"error": said}, 403, {"X-Error-Message": said})
        url = f"{self.server.endpoint}/{name}"
        if name in self.server.repositories:
            return self._answer({"error": "You already created this model repo", "url": url}, 409)
        self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
        return self._answer({"url": url})

    def _info(self, name: str, branch: str = "main") -> None:
        repository = self._repository(name, branch)
        if repository is not None:
            siblings = [{"rfilename": file} for file in repository.files(branch)]
            sha = repository.branches[branch][-1].oid
            self._answer({"id": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def _tree(self, name: str, branch: str) -> None:
        repository = self._repository(name, branch)
        if repository is not None:
            self._answer(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
                    for path, content in repository.files(branch).items()
                ]
            )

    def _branch(self, name: str, branch: str) -> None:
        repository = self._repository(name)
        if repository is not None:
            there = branch in repository.branches
            repository.branches.setdefault(branch, list(repository.branches["main"]))
            self._answer({"error": "Reference already exists"} if there else {}, 409 if there else 200)

    def _preupload(self, name: str, branch: str) -> None:
        repository = self._repository(name, branch)
        if repository is None:
            return
        files = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith((".safetensors", ".png"))
            content = repository.files(branch).get(file["path"])
            oid = None if content is None else hashlib.sha256(content).hexdigest() if large else _git_oid(content)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": files})

    def _batch(self, _name: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.server.large_files:
                links = {"upload": f"/lfs/{wanted['oid']}", "verify": "/lfs/verify"}
                wanted["actions"] = {key: {"href": self.server.endpoint + link} for key, link in links.items()}
            objects.append(wanted)
        self._answer({"transfer": "basic", "objects": objects})

    def _keep_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._answer({"error": "The content has another hash"}, 400)
        self.server.large_files[oid] = self.body
        return self._answer({})

    def _commit(self, name: str, branch: str) -> None:
        repository = self._repository(name, branch)
        if repository is None:
            return
        message, changed, files = "", [], dict(repository.files(branch))
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                message = value["summary"]
                continue
            changed.append(value["path"])
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(self.body).hexdigest()
        repository.branches[branch].append(Commit(message, changed, files, oid))
        self._answer({"commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
