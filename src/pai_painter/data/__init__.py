# SPDX-License-Identifier: Apache-2.0
"""
From the user's files to rows that a model can be trained on.

The way of a row: `sources` finds what kind of files there are; `picture_tables` (over `tsv`), `picture_files` (over
`csv_jsonl`), `webdataset` or `named_dataset` read captions and encoded pictures out of them as `picture_rows` says;
`rows` opens every picture (`pictures`) and keeps the usable rows on the disk; `codes` encodes them once. `streaming`
does without the disk. `prepare` writes rows as `shards`, with pictures opened by `checking`; `inspection` counts.
"""

from .pictures import BadPicture, decode_base64_picture, open_picture
from .tsv import BadRow, Row, Schema, read_rows

__all__ = ["BadPicture", "BadRow", "Row", "Schema", "decode_base64_picture", "open_picture", "read_rows"]
