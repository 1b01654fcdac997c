# SPDX-License-Identifier: Apache-2.0
"""Checkpoints to be converted: golden ones, changed ones, and ones that would run a program."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pai_painter import PaiPainterVQConfig

GOLDEN = Path(__file__).parent.parent / "golden"
EASYNLP, PADDLE, TAMING = GOLDEN / "easynlp_tiny", GOLDEN / "paddlenlp_tiny", GOLDEN / "taming_tiny"
DIMS = EASYNLP / "dims.json"  # the VQGAN's sizes


def vqgan_config() -> PaiPainterVQConfig:
    dims = json.loads(DIMS.read_text(encoding="utf-8"))
    return PaiPainterVQConfig.from_ddconfig(dims["ddconfig"], dims["n_embed"], dims["embed_dim"])


def changed_easynlp(folder: Path, change: Callable[[dict[str, Any]], Any], **options: Any) -> Path:
    """A copy of the golden folder with other weights, and without what the original program computed."""
    folder.mkdir()
    for name in ("config.json", "vocab.txt"):
        shutil.copy(EASYNLP / name, folder)
    weights = torch.load(EASYNLP / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin", **options)
    return folder


class Payload:
    """Unpickled by Python's own unpickler, it calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def making(folder: Path) -> Payload:
    """Makes a folder when it is run."""
    return Payload(os.mkdir, str(folder))


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
