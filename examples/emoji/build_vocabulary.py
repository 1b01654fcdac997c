# SPDX-License-Identifier: Apache-2.0
"""
Cuts the Chinese BERT vocabulary down to the word pieces of the demo's captions: a table of 21,128 would be half of
the demo's size and mostly untrained.

    python examples/emoji/build_vocabulary.py FULL_VOCAB examples/emoji/data/train.tsv examples/emoji/painter/vocab.txt
"""

import argparse
from pathlib import Path

from pai_painter import PaiPainterTokenizer

# What the tokenizer needs; [PAD] must stay the first one.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def used_pieces(vocabulary: Path, table: Path) -> list[str]:
    """The special tokens, then the pieces of all captions (second column, split at `|`) in the full file's order."""
    pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = PaiPainterTokenizer(pieces)
    used: set[str] = set()
    with open(table, encoding="utf-8") as rows:
        for row in rows:
            for caption in set(row.split("\t")[1].split("|")):
                used.update(tokenizer.tokenize(caption))
    return [*SPECIAL, *(piece for piece in pieces if piece in used and piece not in SPECIAL)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("vocabulary", type=Path, help="vocab.txt of the published models")
    parser.add_argument("table", type=Path, help="train.tsv")
    parser.add_argument("output", type=Path, help="where to write the smaller vocab.txt")
    arguments = parser.parse_args()
    pieces = used_pieces(arguments.vocabulary, arguments.table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {len(pieces)} word pieces")


if __name__ == "__main__":
    main()
