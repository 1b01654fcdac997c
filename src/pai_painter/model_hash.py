# SPDX-License-Identifier: Apache-2.0
"""What a model is, wherever it was loaded from: its architecture, and a hash of that and its weights."""

import hashlib
import inspect
import json
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel


def architecture_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that a configuration class itself declares, as JSON has them, without the vocabulary's fingerprint."""
    names = (name for name in inspect.get_annotations(type(config)) if name != "vocabulary_fingerprint")
    fields = {name: getattr(config, name) for name in names}
    return {
        name: architecture_of(value) if isinstance(value, PreTrainedConfig) else json.loads(json.dumps(value))
        for name, value in fields.items()
    }


def hash_of_model(model: PreTrainedModel) -> str:
    """SHA-256 of a model's architecture and weights, in hexadecimal; the same wherever it was loaded from."""
    digest = hashlib.sha256(json.dumps(architecture_of(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
