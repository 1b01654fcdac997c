# SPDX-License-Identifier: Apache-2.0
"""A file of captions → a file of pictures, for ten rows or ten million; `prediction` is the way through it."""
