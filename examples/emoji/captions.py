# SPDX-License-Identifier: Apache-2.0
"""What people call each thing: `words.tsv` read and checked, and captions made of its words."""

from dataclasses import dataclass
from pathlib import Path

# How often a caption of each kind stands in a picture's list. The label comes most often: people type it first.
_LABEL_WEIGHT = 6
_WORD_WEIGHT = 2
# The label and its nearest synonym take the measure word; later synonyms may be actions (放风筝).
_MOST_COUNTED_WORDS = 2
_MOST_STYLED_WORDS = 4
_NUMBERS = ("一", "两", "很多", "几", "三个", "多个")
STYLED = "{word}，{style}"


@dataclass(frozen=True)
class Thing:
    """One emoji and its words.

    Args:
        hexcode (`str`): Its name in all files, without variation selector.
        emoji (`str`): The character itself.
        label (`str`): The one word for it.
        words (`tuple[str, ...]`): Near synonyms. No other thing has one of them.
        measure (`str`): The measure word, such as 只; empty where none fits.
    """

    hexcode: str
    emoji: str
    label: str
    words: tuple[str, ...]
    measure: str


def read_things(path: Path) -> dict[str, Thing]:
    """Read `words.tsv`: hexcode, emoji, label, synonyms separated by `|`, measure word.

    Returns:
        `dict[str, Thing]`: The things by hexcode.

    Raises:
        ValueError: If a line has not five columns, or a word or hexcode stands for two things.
    """
    things: dict[str, Thing] = {}
    owner: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        columns = line.split("\t")
        if len(columns) != 5:
            raise ValueError(
                f"{path.name}, line {number} has {len(columns)} columns: please write hexcode, emoji, label, "
                "synonyms (separated by |) and measure word, with a tab between them."
            )
        hexcode, emoji, label, synonyms, measure = columns
        words = tuple(word for word in synonyms.split("|") if word)
        for word in (label, *words):
            if not word or word in owner:
                taken = f"{word} already means {owner[word]}" if word else "the label is empty"
                raise ValueError(
                    f"{path.name}, line {number} ({emoji}): {taken}. Please give each thing words of its own."
                )
            owner[word] = f"{emoji} {hexcode}"
        if hexcode in things:
            raise ValueError(f"{path.name}, line {number}: {hexcode} stands in the list twice. Please keep one line.")
        things[hexcode] = Thing(hexcode, emoji, label, words, measure)
    return things


def make_captions(thing: Thing, style: str) -> list[str]:
    """The captions of one picture, about a third of them with the words for its style.

    Args:
        thing (`Thing`): What the picture shows.
        style (`str`): The style words of its set.

    Returns:
        `list[str]`: Captions, some of them repeated: as often as they should be drawn.
    """
    words = (thing.label, *thing.words)
    plain = [thing.label] * _LABEL_WEIGHT + [word for word in thing.words for _ in range(_WORD_WEIGHT)]
    for word in words[:_MOST_COUNTED_WORDS]:
        counted = _count(word, thing.measure)
        plain += [f"画{counted}", f"{counted}的图片"]
        plain += [counted] if counted != word else []
    plain += [f"{word}图标" for word in words[:_MOST_STYLED_WORDS]]
    plain += [f"一张{thing.label}的图片", f"画一个{thing.label}"]
    styled = [STYLED.format(word=thing.label, style=style)] * 3
    for word in words[:_MOST_STYLED_WORDS]:
        styled += [STYLED.format(word=word, style=style), f"{style}的{word}"]
    return plain + styled


def _count(word: str, measure: str) -> str:
    """`一只` before the word, unless nothing fits or the word has a number of its own (`一束花`)."""
    if not measure or word.startswith(_NUMBERS):
        return word
    return f"一{measure}{word}"
