# SPDX-License-Identifier: Apache-2.0
"""How many pictures fit into memory at once."""

import os

import psutil
import torch

from ..model.configuration_pai_painter import PaiPainterConfig

__all__ = ["fitting_batch_size", "is_out_of_memory"]

# Beyond these a step hardly gets faster for each picture.
_MOST = {"cpu": 16}
_MOST_ELSEWHERE = 128
# Of the free memory: the rest is for the VQGAN, for what libraries keep, and for other programs.
_SHARE = 0.5
# A candidate's logits, their sorted copy, and the noise in double precision, in bytes for each code.
_BYTES_PER_CODE = 48


def fitting_batch_size(config: PaiPainterConfig, best_of: int, device: torch.device, dtype: torch.dtype) -> int:
    """
    An estimate: the largest power of two of pictures whose keys and values take no more than half of what is free.

    Args:
        config ([`PaiPainterConfig`]): The painter's.
        best_of (`int`): Candidates of each picture.
        device, dtype: Where and in what it paints.
    """
    cached = 2 * config.num_hidden_layers * config.hidden_size * config.max_position_embeddings * dtype.itemsize
    picture = best_of * (cached + _BYTES_PER_CODE * config.image_vocab_size)
    fitting = max(1, int(_SHARE * _free_bytes(device) / picture))
    return min(2 ** (fitting.bit_length() - 1), _MOST.get(device.type, _MOST_ELSEWHERE))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was full, in whatever words it is said: on the CPU, PyTorch has no exception of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # Processes that were started together take their share of one machine's memory.
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
