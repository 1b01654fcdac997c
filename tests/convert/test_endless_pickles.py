# SPDX-License-Identifier: Apache-2.0
"""Small pickles that stand for something endless: refused at once, not looked at for years."""

import io
from pathlib import Path
from typing import Any

import pytest

from pai_painter.convert.safe_pickle import CheckpointError, SafeUnpickler


def load(content: bytes) -> Any:
    return SafeUnpickler(io.BytesIO(content), Path("file")).load()


def nested() -> bytes:
    """A few hundred bytes that stand for 2^60 members: each tuple holds the one before twice."""
    steps = (b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60))
    return b"K\x01\x85q\x000" + b"".join(steps) + b"h\x3c"


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}" + nested() + b"K\x01s.",  # a key
        b"\x80\x02(" + nested() + b"K\x01d.",
        b"\x80\x04\x8f(" + nested() + b"\x90.",  # a member of a set
        b"\x80\x02cnumpy\ndtype\nU\x02f4\x85R(K\x03" + nested() + b"tb.",  # the order of bytes
        b"\x80\x02" + nested() + b"Q.",
    ],
)
def test_tuples_within_tuples_are_refused_at_once(program: bytes) -> None:
    """Python would look at every member to find one as a key: for years."""
    with pytest.raises(CheckpointError, match="more tuples within tuples than a model needs"):
        load(program)


def test_what_is_shown_of_lists_within_lists_is_short() -> None:
    """In words they would be 2^60 letters long."""
    doubled = b"".join(b"](h%ch%ceq%c0" % (i, i, i + 1) for i in range(60))
    lists = b"]q\x000" + doubled + b"h\x3c"
    with pytest.raises(CheckpointError, match="an array of a list"):
        load(b"\x80\x02cnumpy\ndtype\n" + lists + b"\x85R.")
    with pytest.raises(CheckpointError, match="refers to a list, which is no tensor"):
        load(b"\x80\x02(" + lists + b"NNNK\x01tQ.")
