"""How many threads a training step is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORTH_TWO_THREADS = 100_000_000  # multiplications per step


@contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """Keep small steps on one thread: waiting for a second one costs more than it saves, and on a
    busy machine ten times as much."""
    before = torch.get_num_threads()
    if multiplications < _WORTH_TWO_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
