# SPDX-License-Identifier: Apache-2.0
"""
From the user's files to rows that a model can be trained on: `sources` reads captions and encoded pictures out of them;
`row_cache` opens every picture and keeps the usable rows on the disk; `image_tokens` encodes them once. `row_stream`
does without the disk.
"""

from .open_picture import BadPicture, decode_base64_picture, open_picture
from .table_files import Schema

__all__ = ["BadPicture", "Schema", "decode_base64_picture", "open_picture"]
