"""Document vectors of length 1 that are made when they are read, so that no copy of them exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_index_embeddings_adapted.blocks import DOCUMENTS_PER_BLOCK
from llama_index_embeddings_adapted.vectors import Keys, RowSource, Vectors, unit

Adapt = Callable[[Vectors, Keys | None], Vectors]


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Rows of a matrix, in memory or mapped from a file, adapted and scaled to length 1.

    Args:
        vectors: ``(m, dim)``, of the base model.
        keys: ``(m,)``, the content keys of the documents, for adapters that know single ones.
        adapt: Maps ``(n, dim)`` vectors with their keys; None leaves them alone.
    """

    vectors: Vectors
    keys: Keys | None = None
    adapt: Adapt | None = None

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.vectors)

    def __getitem__(self, rows: Any) -> Vectors:
        """Return these rows, in memory."""
        part = np.asarray(self.vectors[rows])
        if self.adapt is not None:
            part = self.adapt(part, None if self.keys is None else self.keys[rows])
        return unit(part)


def unit_rows(vectors: Vectors) -> RowSource:
    """Return rows of length 1: of a few as a matrix, of many made anew when they are read."""
    return unit(vectors) if len(vectors) <= DOCUMENTS_PER_BLOCK else UnitRows(vectors)


def unit_blocks(vectors: Vectors) -> Iterator[Vectors]:
    """Yield all rows, scaled to length 1, in blocks."""
    rows = UnitRows(vectors)
    for start in range(0, len(vectors), DOCUMENTS_PER_BLOCK):
        yield rows[start : start + DOCUMENTS_PER_BLOCK]
