# SPDX-License-Identifier: Apache-2.0
"""How the stand-in for the Hub takes requests: tokens, faults, routes, answers."""

import json
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_stand_in_repositories import Commit, Fault, Repository

if TYPE_CHECKING:
    from hub_stand_in import HubStandIn

# A token's owner; one that may only read owns nothing.
TOKENS = {"hf_writer": "painter", "hf_reader": None, "hf_alibaba": "alibaba-pai"}
NAME = r"([\w.-]+/[\w.-]+)"


class Requests(BaseHTTPRequestHandler):
    server: "HubStandIn"
    protocol_version = "HTTP/1.1"
    routes: dict[str, Any] = {}  # `METHOD pattern of a path` → the name of the method that serves it

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        address = urlsplit(self.path)
        asked = f"{self.command} {address.path}"
        self.query = parse_qs(address.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.server.requests.append(asked)
        if self.token:
            self.server.authorized.append(asked)
        self.fault = self._fault_of(asked)
        if self.fault is not None and self.fault.status is not None:
            return self.answer({})
        if self.token and self.token not in TOKENS:
            # As the Hub does, and, worse than the Hub, with the token in its answer.
            said = "Invalid credentials in Authorization header"
            return self.answer({"error": f"Invalid token {self.token}"}, 401, {"X-Error-Message": said})
        for owner in type(self).__mro__:
            for route, serve in vars(owner).get("routes", {}).items():
                found = re.fullmatch(route, asked)
                if found:
                    return getattr(self, serve)(*map(unquote, found.groups()))
        return self.answer({"error": "Not Found"}, 404)

    def _fault_of(self, asked: str) -> Fault | None:
        fault = next((fault for fault in self.server.faults if fault.part in asked), None)
        if fault is not None:
            fault.times -= 1
            if not fault.times:
                self.server.faults.remove(fault)
            if fault.before is not None:
                fault.before()
        return fault

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Sends JSON, or bytes as they are."""
        if self.fault is not None and self.fault.status is not None:
            content, status, headers = {"error": self.fault.message}, self.fault.status, {}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        cut = self.fault is not None and self.fault.cut
        if cut and not body:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection |= cut

    @property
    def owner(self) -> str | None:
        return TOKENS.get(self.token)

    def repository(self, name: str) -> Repository | None:
        """The repository, or `None` after the answer that it isn't there."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and self.owner != name.split("/")[0]):
            status = 404 if self.token else 401  # the Hub doesn't tell strangers what isn't there
            self.answer({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def commit_at(self, name: str, revision: str) -> Commit | None:
        """The commit, or `None` after the answer that it isn't there."""
        repository = self.repository(name)
        if repository is None:
            return None
        commit = repository.at(revision)
        if commit is None:
            self.answer({"error": f"Invalid rev id: {revision}"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return commit
