# SPDX-License-Identifier: Apache-2.0
"""Pictures → image codes, once: training then reads the codes from the disk in every epoch."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch

from ..model.image_processing_pai_painter import PaiPainterImageProcessor
from ..model.modeling_vqgan import PaiPainterVQModel
from ..model_hash import hash_of_model
from .augment import Augmentation
from .pictures import open_picture

__all__ = ["CodesOnDisk", "load_codes"]

_BATCH = 32
# Rows whose codes are one file: what a run that is stopped while it encodes loses at most. A multiple of _BATCH, so
# that a picture has the same neighbours in its batch whatever the number of rows.
_PART = 128 * _BATCH

_FEATURES = datasets.Features(
    {
        "idx": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "image_tokens": datasets.List(datasets.List(datasets.Value("int32"))),
    }
)


def load_codes(
    rows: datasets.Dataset,
    vqgan: PaiPainterVQModel,
    processor: PaiPainterImageProcessor,
    variants: int = 1,
    augmentation: Augmentation | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """
    Adds a column `image_tokens` to rows: `variants` lists of codes, of the picture itself and of changed copies.

    The table is kept on the disk under a hash of the rows' content, the VQGAN's weights and configuration and the
    image settings, so that changing any of them never finds old codes. It is written in parts, and what is there isn't
    encoded again.

    Args:
        rows: from [`~pai_painter.data.rows.load_rows`]; the column `picture` is dropped.
        VQGAN: encodes, on the device where it is.
        processor: prepares the pictures.
        variants: 1 for the pictures as they are.
        augmentation: how the copies are changed; needed for more than one variant.
        cache_dir: where the table is kept; the datasets library's cache by default.

    Returns:
        `datasets.Dataset` with `idx`, `captions` and `image_tokens` (variants lists of num_image_tokens codes).
    """
    return CodesOnDisk(rows, vqgan, processor, variants, augmentation, cache_dir).load()


class CodesOnDisk:
    """
    The files of one table of codes, for processes that share the work; the arguments are those of [`load_codes`].
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
        changes = None if augmentation is None else asdict(augmentation)
        settings = [rows._fingerprint, hash_of_model(vqgan), processor.to_dict(), variants, changes]
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_codes" / self.key
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows, self.starts = rows, range(0, len(rows), _PART)
        self.arguments = {"vqgan": vqgan.eval(), "processor": processor, "variants": variants, "changes": augmentation}

    def encode_share(self, rank: int, processes: int) -> None:
        """One process's share of the parts; [`~CodesOnDisk.load`] afterwards finds those of all."""
        for start in self.starts[rank::processes]:
            self._part(start)

    def load(self) -> datasets.Dataset:
        """The whole table; what isn't there yet is encoded."""
        return datasets.concatenate_datasets([self._part(start) for start in self.starts])

    def _part(self, start: int) -> datasets.Dataset:
        """The part from row `start` on; encoded if it isn't there."""
        stop = min(start + _PART, len(self.rows))
        number = f" ({start + 1} to {stop} of {len(self.rows)})" if len(self.starts) > 1 else ""
        return self.rows.select(range(start, stop)).map(
            _encode,
            batched=True,
            batch_size=_BATCH,
            with_indices=True,
            remove_columns=["picture"],
            fn_kwargs={**self.arguments, "start": start},
            cache_file_name=str(self.folder / f"{start:09d}.arrow"),
            new_fingerprint=f"{self.key}-{start}",
            features=_FEATURES,
            desc=f"Encoding pictures{number}",
        )


@torch.no_grad()
def _encode(
    batch: dict[str, list[Any]],
    indices: list[int],
    vqgan: PaiPainterVQModel,
    processor: PaiPainterImageProcessor,
    variants: int,
    changes: Augmentation | None,
    start: int,
) -> dict[str, list[Any]]:
    images = [open_picture(data) for data in batch["picture"]]
    # Rows arrive in their order, so the first row of a batch fixes random crops (if the processor is set to them) …
    first = start + indices[0]
    copies = [processor(images, generator=first, return_tensors="pt")["pixel_values"]]
    if changes is not None:
        # … and, with the variant, the changes.
        generators = [torch.Generator().manual_seed(first * variants + variant) for variant in range(1, variants)]
        copies += [changes.prepare(images, processor, generator) for generator in generators]
    codes = [vqgan.encode(copy.to(vqgan.device))["image_tokens"].cpu() for copy in copies]
    stacked = torch.stack(codes, dim=1)  # (B, variants, num_image_tokens)
    return {"idx": batch["idx"], "captions": batch["captions"], "image_tokens": stacked.tolist()}
