# SPDX-License-Identifier: Apache-2.0
"""Refuses every connection but those of this machine to itself, and writes down who was refused."""

import os
import sys
from typing import Any

# The file of refused addresses. Without it, as for tests that need a network, nothing is refused.
REFUSED = "PAI_PAINTER_TESTS_REFUSED"


def guard() -> None:
    """For the rest of the process. What libraries do with the error is their affair: the file tells of it anyway."""
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):  # names are asked of other machines
        address = arguments[:1]
    else:
        return
    refused = os.environ.get(REFUSED)
    if refused is None or not isinstance(address, tuple) or _is_here(address[0]):  # a path is a socket of this machine
        return
    with open(refused, "a", encoding="utf-8") as file:
        file.write(f"{address[0]}\n")
    raise ConnectionRefusedError(f"A test wanted to reach {address[0]}.")


def _is_here(host: str | bytes | None) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    return host in (None, "", "localhost", "::1", "0.0.0.0", "::") or str(host).startswith("127.")
