# SPDX-License-Identifier: Apache-2.0
"""How exactly, and so how fast, pictures are painted."""

import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

logger = logging.getLogger(__name__)

SpeedName = Literal["exact", "balanced", "fastest"]


@dataclass(frozen=True)
class PaintingSpeed:
    """
    What may be rounded, and what is tried.

    Args:
        dtype (`torch.dtype`, *optional*): What the painter's and the VQGAN's numbers are rounded to; `None` leaves
            them as they are.
        int8_rows (`int`): With at most this many rows (pictures, times the tokens of each that are verified at once),
            linear layers multiply 8-bit integers. With more rows, multiplying takes longer than reading the weights,
            and integers gain nothing over bfloat16.
        num_draft_tokens (`int`): Draft tokens of speculative decoding for a single picture, verified together with the
            next token; see [`~speculative_decoding.SpeculativeDecodingLoop`]. They change no token. With several
            pictures at once, and where `generate` draws the tokens, there are none.
    """

    dtype: torch.dtype | None = None
    int8_rows: int = 0
    num_draft_tokens: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether the numbers of the model stay as they are."""
        return self.dtype is None and not self.int8_rows


# A pass over eight positions takes somewhat longer than one over a single position: drafts pay as soon as about half of
# the first ones are accepted (benchmarks/speculative.py).
_DRAFT = 7
SPEEDS: dict[SpeedName, PaintingSpeed] = {
    "exact": PaintingSpeed(num_draft_tokens=_DRAFT),
    "balanced": PaintingSpeed(dtype=torch.bfloat16, num_draft_tokens=_DRAFT),
    "fastest": PaintingSpeed(dtype=torch.bfloat16, int8_rows=4, num_draft_tokens=_DRAFT),
}
_MANY = 2**31


def find_speed(speed: SpeedName | PaintingSpeed, device: torch.device) -> PaintingSpeed:
    """
    What a name stands for on this machine: `"exact"`, `"balanced"` (bfloat16) or `"fastest"` (bfloat16, for two to four
    pictures int8). With settings in its place, bfloat16 may be imitated.

    Raises:
        ValueError: if there is no such speed, or if the processor would only imitate the arithmetic it asks for.
    """
    if isinstance(speed, PaintingSpeed):
        found = speed
    elif isinstance(speed, str) and speed in SPEEDS:
        found = SPEEDS[speed]
    else:
        raise ValueError(f"`speed` must be one of {', '.join(SPEEDS)}, got {speed!r}.")
    for name in ("int8_rows", "num_draft_tokens"):
        number = getattr(found, name)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"`{name}` must be a whole number, 0 for none, got {number!r}.")
    if found.dtype is not None and not (isinstance(found.dtype, torch.dtype) and found.dtype.is_floating_point):
        raise ValueError(f"`dtype` must be a floating-point type such as torch.bfloat16, got {found.dtype!r}.")
    if found.is_exact:
        return found
    if device.type != "cpu":
        raise ValueError(
            f"`speed` {speed!r} is for the CPU, and the model is on {device}: please load it there with "
            f"`dtype=torch.bfloat16` instead."
        )
    if found.int8_rows and not _has_int8():
        raise ValueError(f"This build of PyTorch has no int8 arithmetic: please use another `speed` than {speed!r}.")
    if found.dtype == torch.bfloat16 and not has_bfloat16():
        if found is speed:
            _warn_once("This processor has no bfloat16 arithmetic: emulating it takes longer than float32.")
            return found
        if not found.int8_rows:
            raise ValueError(
                f"This processor has no bfloat16 arithmetic, so that `speed` {speed!r} would be slower than 'exact': "
                f"please use 'exact' or 'fastest'."
            )
        _warn_once("This processor has no bfloat16 arithmetic: it paints with int8 and float32.")
        return replace(found, dtype=None, int8_rows=_MANY)
    return found


@cache
def _warn_once(message: str) -> None:
    """Rather than for each picture."""
    logger.warning(message)


def _has_int8() -> bool:
    return torch.backends.quantized.engine != "none" and hasattr(torch.ops.quantized, "linear_dynamic")


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16, AMX, ARM's BF16), rather than by float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
