# SPDX-License-Identifier: Apache-2.0
"""Files to rows: tab-separated tables, and the pictures in them."""

from .pictures import BadPicture, decode_base64_picture, open_picture
from .tsv import BadRow, Row, Schema, read_rows

__all__ = ["BadPicture", "BadRow", "Row", "Schema", "decode_base64_picture", "open_picture", "read_rows"]
