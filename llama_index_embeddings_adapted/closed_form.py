"""Adapters that are computed, not trained."""

from __future__ import annotations

import numpy as np

from llama_index_embeddings_adapted.adapters import LinearAdapter
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.vectors import Vectors, unit


def whitening(
    documents: Vectors, *, power: float = 0.25, shrinkage: float = 1.0, bias: bool = True
) -> LinearAdapter:
    """Damp the directions in which all documents agree; needs no label.

    ``W = V diag((w + shrinkage · mean(w)) ** -power) Vᵀ``, with ``w, V`` the eigenpairs of the
    document covariance, scaled so that its mean eigenvalue is 1. Applied to queries alone it stands
    for a milder whitening of both sides.

    Args:
        documents: ``(m, dim)``, vectors of the base model.
        power: 0 changes nothing, 0.5 on both sides would whiten.
        shrinkage: Towards equal eigenvalues, in units of their mean, ``> 0``.
        bias: Give the adapter a bias, zero to begin with.

    Raises:
        OptionError: ``power`` or ``shrinkage`` out of range.

    Source:
        Su et al. 2021, arXiv:2103.15316, with the exponent and the shrinkage added.
    """
    if not 0 <= power <= 1 or not shrinkage > 0:
        raise OptionError(
            f"Expected power in [0, 1] and shrinkage > 0, got {power!r} and {shrinkage!r}."
        )
    rows = unit(documents).astype(np.float64)
    rows -= rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows / max(1, len(rows)))
    values = np.maximum(values, 0.0)
    if values.mean() < 1e-12:  # one document, or all the same: there is no direction to damp
        return LinearAdapter.identity(documents.shape[1], bias=bias)
    scale = (values + shrinkage * values.mean()) ** -power
    weight = (vectors * (scale / scale.mean())) @ vectors.T
    zero = np.zeros(len(weight), dtype=np.float32) if bias else None
    return LinearAdapter(weight.astype(np.float32), zero)
