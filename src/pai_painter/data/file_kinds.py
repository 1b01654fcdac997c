# SPDX-License-Identifier: Apache-2.0
"""What a file is by its first bytes, whatever its name says, for messages about files of the wrong kind."""

from pathlib import Path

__all__ = ["HEAD_BYTES", "kind_of_content", "kind_of_file"]

HEAD_BYTES = 1024

_MAGICS = (
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or another RIFF file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"version https://git-lfs", "a pointer of Git LFS (the file itself was not downloaded: `git lfs pull`)"),
)
_TAR_PLACE, _TAR_MAGIC = 257, b"ustar"
_CONTROLS = frozenset(range(9)) | frozenset(range(14, 32))
_WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")


def kind_of_content(head: bytes) -> str | None:
    """
    Names what begins with these bytes, `None` for what may be plain text.

    Args:
        head (`bytes`): The first bytes, at least `HEAD_BYTES` of them if the file has as many.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_WEB_PAGES):
        return "a web page"
    if b"\t" in head.partition(b"\n")[0] and _CONTROLS.isdisjoint(head):
        return None  # a row whose id happens to begin like one of these
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head[_TAR_PLACE:].startswith(_TAR_MAGIC):
        return "a tar archive"
    return "a binary file" if b"\0" in head else None


def kind_of_file(path: Path) -> str:
    """
    Names what a file is by its first bytes: "a PNG picture", "plain text", …

    Raises:
        ValueError: If there is no such file, or if it is empty.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise ValueError(f"{path} is empty.")
    return kind_of_content(head) or "plain text"
