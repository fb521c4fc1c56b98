"""The documents that training scores: on the device where they fit, else taken as they are asked
for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llama_index_embeddings_adapted.unit_rows import UnitRows, unit_blocks
from llama_index_embeddings_adapted.vectors import Rows, Vectors, unit

MOST_BYTES = 512 * 2**20  # held as one tensor


class TrainingDocuments:
    """Unit rows of documents as tensors.

    Up to 512 MiB of them are held on the device. More stay where they are, in memory or mapped
    from a file, and only those that a step scores are copied.

    Args:
        vectors: ``(m, dim)``, of the base model.
        device: Where tensors go.
    """

    def __init__(self, vectors: Vectors, device: torch.device) -> None:
        self._vectors, self._device = vectors, device
        self._rows = UnitRows(vectors)
        self._all = None if vectors.nbytes > MOST_BYTES else self._tensor(unit(vectors))

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Their dimension."""
        return int(self._vectors.shape[1])

    def take(self, rows: Rows) -> Tensor:
        """Return these rows, ``(n, dim)``."""
        if self._all is None:
            return self._tensor(self._rows[rows])
        return self._all.index_select(0, self._tensor(rows))  # three times as fast as brackets

    def moment(self) -> Tensor:
        """Return the mean of ``d dᵀ`` over all documents, ``(dim, dim)``."""
        if self._all is not None:
            return self._all.T @ self._all / len(self)
        total = np.zeros((self.dim, self.dim))
        for block in unit_blocks(self._vectors):
            total += block.T @ block
        return self._tensor((total / len(self)).astype(np.float32))

    def _tensor(self, array: Vectors | Rows) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
