# SPDX-License-Identifier: Apache-2.0
"""Make the caption font that ships with the package: a small subset of Noto Sans CJK SC.

    pip install fonttools
    python tools/make_font.py NotoSansCJK-Regular.ttc --vocab vocab.txt

`NotoSansCJK-Regular.ttc` (SIL Open Font License 1.1) is in Debian's package `fonts-noto-cjk`, among others;
the shipped font was made from version 2.004. `vocab.txt` is the Chinese BERT vocabulary of the painter model,
so that the captions they can read can be drawn (all but some eighty emoji and letters of other scripts, which
the source has not). The same inputs give the same bytes.

The subset has a name of its own: it is a modified version, and Noto is a trademark of Google.
"""

import argparse
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

FAMILY = "Pai Painter Sans"
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "src" / "pai_painter" / "fonts" / "pai-painter-sans.otf"

# In the collection, the third face has the simplified Chinese shapes.
SIMPLIFIED_CHINESE_FACE = 2

# Name table ids; copyright, trademark, manufacturer, designer, licence (0, 7, 8, 9, 13, 14) stay as they are.
KEPT_NAMES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14]
OWN_NAMES = {1: FAMILY, 3: f"{FAMILY}; a subset of Noto Sans CJK SC", 4: FAMILY, 6: "PaiPainterSans-Regular"}

# Layout features, vertical metrics and baselines: a caption is one horizontal line of plain glyphs.
DROPPED_TABLES = ["BASE", "GDEF", "GPOS", "GSUB", "VORG", "vhea", "vmtx"]


def gb2312_characters() -> set[str]:
    """The 7,445 characters of GB2312: 6,763 hanzi, punctuation, full-width forms, kana, Greek, Cyrillic."""
    characters = set()
    for row in range(0xA1, 0xF8):
        for cell in range(0xA1, 0xFF):
            try:
                characters.add(bytes([row, cell]).decode("gb2312"))
            except UnicodeDecodeError:  # a cell that the standard leaves empty
                continue
    return characters


def wanted_characters(vocab: Path) -> set[str]:
    """Printable ASCII, Latin-1, CJK punctuation, full-width forms, GB2312, the vocabulary's characters."""
    blocks = [(0x20, 0x7F), (0xA0, 0x100), (0x2010, 0x2028), (0x3000, 0x3040), (0xFF00, 0xFFF0)]
    characters = {chr(code) for first, end in blocks for code in range(first, end)}
    return characters | gb2312_characters() | {c for c in vocab.read_text(encoding="utf-8") if not c.isspace()}


def make_font(source: Path, vocab: Path, output: Path) -> TTFont:
    """Write the subset to `output` and return it. Characters that the source lacks are left out."""
    options = subset.Options()
    options.font_number = SIMPLIFIED_CHINESE_FACE
    options.hinting = False
    options.layout_features = []
    options.glyph_names = False
    options.notdef_outline = True  # the box that stands for a character the font lacks
    options.name_IDs = KEPT_NAMES
    options.drop_tables += DROPPED_TABLES
    font = subset.load_font(str(source), options)
    font.recalcTimestamp = False  # the same inputs give the same bytes
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=sorted(map(ord, wanted_characters(vocab))))
    subsetter.subset(font)
    for name_id, text in OWN_NAMES.items():
        for record in [r for r in font["name"].names if r.nameID == name_id]:
            record.string = text
    top = font["CFF "].cff
    top.fontNames = [OWN_NAMES[6]]
    top.topDictIndex[0].FullName = top.topDictIndex[0].FamilyName = FAMILY
    subset.save_font(font, str(output), options)
    return font


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="NotoSansCJK-Regular.ttc")
    parser.add_argument("--vocab", type=Path, required=True, help="a vocabulary whose characters are included")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    arguments = parser.parse_args()
    font = make_font(arguments.source, arguments.vocab, arguments.output)
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {len(font.getBestCmap())} characters, {size:,} bytes")


if __name__ == "__main__":
    main()
