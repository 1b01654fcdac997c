# SPDX-License-Identifier: Apache-2.0
"""Ids that occur more than once, found in eight bytes a row."""

import array
import hashlib

import numpy as np

__all__ = ["RepeatedIds"]


class RepeatedIds:
    """Counts ids that came before. Ids are held as hashes of 64 bits: a source of millions of rows has long ones."""

    def __init__(self) -> None:
        self.hashes = array.array("Q")

    def add(self, idx: str) -> None:
        """Takes the next row's id."""
        digest = hashlib.blake2b(idx.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.hashes.append(int.from_bytes(digest, "big"))

    def count(self) -> int:
        """How many rows so far have an id of an earlier row."""
        if not self.hashes:
            return 0
        return len(self.hashes) - len(np.unique(np.frombuffer(self.hashes, dtype=np.uint64)))
