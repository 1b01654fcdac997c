# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of EasyNLP, taming-transformers and PaddleNLP, read without running what is in them."""

from .conversion import ConversionReport, convert

__all__ = ["ConversionReport", "convert"]
