# SPDX-License-Identifier: Apache-2.0
"""What a run must find again to go on: the model, and the versions that decide about its arithmetic."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

import torch

from ..pipeline_pai_painter import PaiPainterPipeline

__all__ = ["identity_of"]

# Where a configuration came from, and what doesn't change what is computed.
_NOT_THE_MODEL = {"_name_or_path", "transformers_version", "architectures", "vq_config"}


def identity_of(pipe: PaiPainterPipeline) -> dict[str, Any]:
    """The model's and the vocabulary's hash, and what it is computed with, wherever it was loaded from."""
    model = pipe.model
    return {
        "model": _hash_of_weights(model),
        "vocabulary": _hash(sorted(pipe.processor.tokenizer.get_vocab().items())),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("pai-painter", "torch", "transformers", "pillow")},
    }


def _hash_of_weights(model: Any) -> str:
    configs = [model.config.to_dict(), model.config.vq_config.to_dict()]
    digest = hashlib.sha256(
        _hash([{name: value for name, value in config.items() if name not in _NOT_THE_MODEL} for config in configs])
        .encode()
    )  # fmt: skip
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
