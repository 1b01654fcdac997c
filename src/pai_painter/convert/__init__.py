# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of EasyNLP, taming-transformers and PaddleNLP, read without running what is in them."""

from .checkpoint_reading import ConversionReport
from .conversion import convert

__all__ = ["ConversionReport", "convert"]
