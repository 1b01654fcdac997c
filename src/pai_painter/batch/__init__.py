# SPDX-License-Identifier: Apache-2.0
"""
A file of captions → a file of pictures, for ten rows or ten million.

`caption_files` reads rows, `sharding` cuts them into shards, `paint_captions` paints, `resumable_run` keeps the shards
that are done, `output_formats` makes one file or folder of them; `prediction` is the way through all of it.
"""
