# SPDX-License-Identifier: Apache-2.0
"""Pictures → image tokens, once: training then reads the tokens from the disk in every epoch."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm

from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model_hash import hash_of_model
from .augment import Augmentation
from .open_picture import open_picture
from .row_cache import cached_table
from .sources import FEATURES

_BATCH = 32
# Rows whose tokens are one file: what a run that is stopped while it encodes loses at most. A multiple of _BATCH, so
# that a picture has the same neighbours in its batch whatever the number of rows.
_PART = 128 * _BATCH
_TOKENS = datasets.List(datasets.List(datasets.Value("int32")))
_FEATURES = datasets.Features({"idx": FEATURES["idx"], "captions": FEATURES["captions"], "image_tokens": _TOKENS})


class ImageTokenCache:
    """
    Rows with a column `image_tokens` in place of their pictures, kept on the disk: in parts, which processes can share,
    under a hash of all that decides about them (the rows' content, the VQGAN, the image settings).

    Args:
        rows: from [`~pai_painter.data.row_cache.load_rows`], which says what `cache_dir` is.
        variants: lists of image tokens per row: of the picture itself and of changed copies.
        augmentation: how the copies are changed; needed for more than one variant.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        vqgan: PaiPainterVQModel,
        processor: PaiPainterImageProcessor,
        variants: int = 1,
        augmentation: Augmentation | None = None,
        cache_dir: str | Path | None = None,
    ):
        self.rows, self.vqgan, self.processor = rows, vqgan.eval(), processor
        self.variants, self.augmentation = variants, augmentation
        changes = None if augmentation is None else asdict(augmentation)
        settings = [rows._fingerprint, hash_of_model(vqgan), processor.to_dict(), variants, changes]
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_image_tokens" / self.key
        self.starts = range(0, len(rows), _PART)

    def encode_share(self, rank: int, processes: int) -> None:
        """One process's share of the parts; [`~ImageTokenCache.load`] afterwards finds those of all."""
        for start in self.starts[rank::processes]:
            self._part(start)

    def load(self) -> datasets.Dataset:
        """`idx`, `captions` and `image_tokens` (variants lists of num_image_tokens) of all rows, encoded if need be."""
        table = datasets.concatenate_datasets([self._part(start) for start in self.starts])
        table._fingerprint = self.key
        return table

    def _part(self, start: int) -> datasets.Dataset:
        return cached_table(self.folder / f"{start:09d}.arrow", _FEATURES, self._rows(start))

    def _rows(self, start: int) -> Iterator[dict[str, Any]]:
        stop = min(start + _PART, len(self.rows))
        number = f" ({start + 1} to {stop} of {len(self.rows)})" if len(self.starts) > 1 else ""
        for first in tqdm(range(start, stop, _BATCH), desc=f"Encoding pictures{number}", mininterval=1, disable=None):
            batch = self.rows[first : min(first + _BATCH, stop)]
            for idx, captions, tokens in zip(batch["idx"], batch["captions"], self._encode(batch, first), strict=True):
                yield {"idx": idx, "captions": captions, "image_tokens": tokens}

    @torch.no_grad()
    def _encode(self, batch: dict[str, list[Any]], first: int) -> list[list[list[int]]]:
        """Image tokens of a batch whose first row has this number."""
        images = [open_picture(data) for data in batch["picture"]]
        # The number fixes random crops (if the processor is set to them) …
        copies = [self.processor(images, generator=first, return_tensors="pt")["pixel_values"]]
        if self.augmentation is not None:
            # … and, with the variant, the changes.
            for variant in range(1, self.variants):
                generator = torch.Generator().manual_seed(first * self.variants + variant)
                copies.append(self.augmentation.prepare(images, self.processor, generator))
        tokens = [self.vqgan.encode(copy.to(self.vqgan.device))["image_tokens"].cpu() for copy in copies]
        return torch.stack(tokens, dim=1).tolist()  # (B, variants, num_image_tokens)
