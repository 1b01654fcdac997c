# SPDX-License-Identifier: Apache-2.0
"""Text of strangers (captions, names of weights, cards, messages of a server), before it is shown."""


def printable(text: object, most: int | None = None) -> str:
    """
    A text on one line, truncated to `most` characters, with control characters and escape sequences spelled out, so
    that no terminal obeys them.
    """
    shown = (
        letter if letter.isprintable() else " " if letter.isspace() else ascii(letter)[1:-1] for letter in str(text)
    )
    line = "".join(shown)
    return line if most is None or len(line) <= most else f"{line[:most]}…"
