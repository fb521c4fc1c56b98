"""Maps from one model's vectors to another's, fitted on vectors of the same texts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.maps import LinearAdapter
from llama_index_embeddings_adapted.vectors import Vectors

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)


def procrustes(new: Vectors, old: Vectors) -> LinearAdapter:
    """Return the rotation that takes new vectors to old ones best, scaled and shifted.

    ``q' = normalise(s R (q - mean(new)) + mean(old))``, with orthonormal rows or columns of ``R``
    where the dimensions differ.

    Args:
        new: ``(n, new_dim)``, unit rows.
        old: ``(n, old_dim)``, unit rows of the same texts.

    Source:
        Schönemann 1966; the scale after Gower 1975.
    """
    x, y = new - new.mean(axis=0), old - old.mean(axis=0)
    left, values, right = np.linalg.svd((y.T @ x).astype(np.float64), full_matrices=False)
    scale = values.sum() / max(float(np.sum(x.astype(np.float64) ** 2)), 1e-12)
    return _affine(scale * (left @ right), new, old)


def ridge_map(new: Vectors, old: Vectors, strength: float) -> LinearAdapter:
    """Return the linear map that takes new vectors to old ones, shrunk to their mean.

    Args:
        new: ``(n, new_dim)``, unit rows.
        old: ``(n, old_dim)``, unit rows of the same texts.
        strength: In units of the mean variance of the new vectors, ``> 0``.

    Source:
        Hoerl and Kennard 1970.
    """
    x, y = (part.astype(np.float64) - part.mean(axis=0) for part in (new, old))
    gram = x.T @ x
    gram[np.diag_indices(len(gram))] += strength * max(np.trace(gram) / len(gram), 1e-12)
    return _affine(np.linalg.solve(gram, x.T @ y).T, new, old)


def _affine(weight: NDArray[np.float64], new: Vectors, old: Vectors) -> LinearAdapter:
    bias = old.mean(axis=0) - weight @ new.mean(axis=0)
    return LinearAdapter(weight.astype(np.float32), bias.astype(np.float32), shared=True)


def _ridge_of(strength: float) -> Callable[[Vectors, Vectors], LinearAdapter]:
    return lambda new, old: ridge_map(new, old, strength)


#: Every way to fit a map, by name.
FITS: dict[str, Callable[[Vectors, Vectors], LinearAdapter]] = {
    "procrustes": procrustes,
    **{f"ridge {strength:g}": _ridge_of(strength) for strength in STRENGTHS},
}
