# SPDX-License-Identifier: Apache-2.0
"""
A stand-in for the Hub on the loopback: enough of its HTTP interface for the real clients to push and to load models.

The Hub's client finds it, in the tests and in their subprocesses, since `HF_ENDPOINT` names its address from the
start (see `loopback_only`). Take the fixture `hub`, put a model there by `hub.add(name, folder)`, and call the library.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_stand_in_reading import Reading
from hub_stand_in_repositories import Commit, Fault, Repository
from hub_stand_in_writing import Writing
from loopback_only import HUB_PORT

__all__ = ["Commit", "Fault", "HubStandIn", "Repository", "running_hub"]


class HubStandIn(ThreadingHTTPServer):
    """
    Attributes:
        repositories: by name.
        requests: method and path of each request that came.
        authorized: the same, of those that came with a token.
        ranges: of which pieces of files were asked for.
        faults: what is to go wrong.
        large_files: what was uploaded, by its SHA-256.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.authorized: list[str] = []
        self.ranges: list[str] = []
        self.faults: list[Fault] = []
        self.large_files: dict[str, bytes] = {}
        self._connections: list[socket.socket] = []
        super().__init__(("127.0.0.1", HUB_PORT), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def hang_up(self) -> None:
        """So that the client, which keeps connections, doesn't go on to talk to this one when there is another."""
        for connection in self._connections:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self) -> str:
        """Where large files are: at another host, as far as the client can see."""
        return f"http://localhost:{self.server_port}"

    def add(
        self, name: str, folder: Path, *, tag: str | None = None, private: bool = False, gated: bool = False
    ) -> Repository:
        """Puts a folder's files there as one commit, without the client."""
        repository = self.repositories.setdefault(name, Repository(private, gated))
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        commit = repository.commit("add", files)
        if tag is not None:
            repository.tags[tag] = commit.oid
        return repository


class _Handler(Reading, Writing):
    """Both ways."""


@contextmanager
def running_hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
            hub.hang_up()
