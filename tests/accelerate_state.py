# SPDX-License-Identifier: Apache-2.0
"""A fixture for tests that train in their own process."""

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state for each process; a test's precision must not be the next one's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forget_state()  # other tests may have left one
    yield
    forget_state()
    torch.set_num_threads(threads)


def forget_state() -> None:
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
