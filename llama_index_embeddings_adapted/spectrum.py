"""In which directions vectors vary, found once and used by everything that whitens."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.unit_rows import unit_blocks
from llama_index_embeddings_adapted.vectors import Vectors, unit

Matrix = NDArray[np.float64]

_FLAT = 1e-12  # mean variance below which there is no direction to speak of


class Spectrum:
    """The eigenpairs of the covariance of documents, computed when first asked for.

    With fewer documents than dimensions only as many pairs are computed as there are documents:
    all other directions have no variance.

    Args:
        documents: ``(m, dim)``, vectors of the base model.
    """

    def __init__(self, documents: Vectors) -> None:
        self._documents = documents

    @functools.cached_property
    def mean(self) -> Vectors:
        """Mean of the unit vectors, ``(dim,)``."""
        total: Matrix = np.zeros(self._documents.shape[1])
        for block in unit_blocks(self._documents):
            total += block.mean(axis=0).astype(np.float64) * len(block)
        return np.asarray(total / len(self._documents), dtype=np.float32)

    def power(self, power: float, shrinkage: float) -> Matrix:
        """Return ``V diag((w + shrinkage · mean(w)) ** -power) Vᵀ``, of mean eigenvalue 1."""
        values, vectors = self._pairs
        dim = len(vectors)
        mean = values.sum() / dim
        if mean < _FLAT:
            return np.eye(dim)
        aside = (shrinkage * mean) ** -power  # where there is no variance
        scale = (values + shrinkage * mean) ** -power
        total = scale.sum() + aside * (dim - len(values))
        damped = (vectors * (scale - aside)) @ vectors.T
        damped[np.diag_indices(dim)] += aside
        return np.asarray(damped * (dim / total))

    @functools.cached_property
    def _pairs(self) -> tuple[Matrix, Matrix]:
        """Eigenvalues ``(r,)`` and eigenvectors ``(dim, r)``; ``r`` is at most either count."""
        count, dim = self._documents.shape
        if count >= dim:
            products: Matrix = np.zeros((dim, dim))
            for block in unit_blocks(self._documents):
                block -= self.mean
                products += block.T @ block
            values, vectors = np.linalg.eigh(products / count)
            return np.maximum(values, 0.0), vectors
        rows = unit(self._documents) - self.mean
        values, combinations = np.linalg.eigh((rows @ rows.T).astype(np.float64) / count)
        there = values > _FLAT
        values, combinations = values[there], combinations[:, there]
        return values, (rows.T @ combinations) / np.sqrt(count * values)
