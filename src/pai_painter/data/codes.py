# SPDX-License-Identifier: Apache-2.0
"""Pictures → image codes, once: training then reads the codes from the disk in every epoch."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..image_processing_pai_painter import PaiPainterImageProcessor
from ..modeling_vqgan import PaiPainterVQModel
from .augment import shift_and_flip
from .pictures import open_picture

__all__ = ["architecture_of", "hash_of_model", "load_codes"]

_BATCH = 32


def load_codes(
    rows: datasets.Dataset,
    codec: PaiPainterVQModel,
    processor: PaiPainterImageProcessor,
    variants: int = 1,
    max_shift: int = 0,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """
    Adds a column `image_codes` to rows: `variants` lists of codes, of the picture itself and of shifted copies.

    The table is kept on the disk under a hash of the rows' content, the codec's weights and configuration and the
    image settings, so that changing any of them never finds old codes.

    Args:
        rows: from [`~pai_painter.data.rows.load_rows`]; the column `picture` is dropped.
        codec: encodes, on the device where it is.
        processor: prepares the pictures.
        variants: 1 for the pictures as they are.
        max_shift: pixels by which the copies are moved at most.
        cache_dir: where the table is kept; the datasets library's cache by default.

    Returns:
        `datasets.Dataset` with `idx`, `captions` and `image_codes` (variants lists of num_image_codes codes).
    """
    settings = [rows._fingerprint, hash_of_model(codec), processor.to_dict(), variants, max_shift]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:24]
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "pai_painter_codes"
    folder.mkdir(parents=True, exist_ok=True)
    codec.eval()
    return rows.map(
        _encode,
        batched=True,
        batch_size=_BATCH,
        with_indices=True,
        remove_columns=["picture"],
        fn_kwargs={"codec": codec, "processor": processor, "variants": variants, "max_shift": max_shift},
        cache_file_name=str(folder / f"{key}.arrow"),
        new_fingerprint=key,
        features=datasets.Features(
            {
                "idx": datasets.Value("string"),
                "captions": datasets.List(datasets.Value("string")),
                "image_codes": datasets.List(datasets.List(datasets.Value("int32"))),
            }
        ),
        desc="Encoding pictures",
    )


def architecture_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that a configuration class itself declares, as JSON has them: not where the model was loaded from."""
    fields = {name: getattr(config, name) for name in inspect.get_annotations(type(config))}
    return {
        name: architecture_of(value) if isinstance(value, PreTrainedConfig) else json.loads(json.dumps(value))
        for name, value in fields.items()
    }


def hash_of_model(model: PreTrainedModel) -> str:
    """SHA-256 of a model's architecture and weights, in hexadecimal; the same wherever it was loaded from."""
    digest = hashlib.sha256(json.dumps(architecture_of(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _encode(
    batch: dict[str, list[Any]],
    indices: list[int],
    codec: PaiPainterVQModel,
    processor: PaiPainterImageProcessor,
    variants: int,
    max_shift: int,
) -> dict[str, list[Any]]:
    images = [open_picture(data) for data in batch["picture"]]
    # Rows arrive in their order, so the first row of a batch fixes random crops (if the processor is set to them) …
    pictures = processor(images, generator=indices[0], return_tensors="pt")["pixel_values"]
    codes = []
    for variant in range(variants):
        moved = pictures
        if variant:
            # … and, with the variant, the shifts.
            generator = torch.Generator().manual_seed(indices[0] * variants + variant)
            moved = shift_and_flip(pictures, max_shift, flip=False, generator=generator)
        codes.append(codec.encode(moved.to(codec.device))["image_codes"].cpu())
    stacked = torch.stack(codes, dim=1)  # (B, variants, num_image_codes)
    return {"idx": batch["idx"], "captions": batch["captions"], "image_codes": stacked.tolist()}
