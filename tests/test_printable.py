# SPDX-License-Identifier: Apache-2.0
"""What strangers write reaches no terminal as a command to it."""

from pai_painter.printable import printable


def test_nothing_is_left_that_a_terminal_obeys() -> None:
    assert printable("红苹果 \x1b[2J\x9b31m\x07\u202e\n第二行\t末") == "红苹果 \\x1b[2J\\x9b31m\\x07\\u202e 第二行 末"
    assert printable("a  b.png") == "a  b.png"
    assert printable(["\x1b"]) == "['\\x1b']"
    assert printable("红" * 10, 3) == "红红红…"
