"""Maps from one model's vectors to another's, fitted on vectors of the same texts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.maps import LinearAdapter
from llama_index_embeddings_adapted.vectors import Vectors

Matrix = NDArray[np.float64]
STRENGTHS = (1.0, 3.0, 10.0, 30.0)


def procrustes(new: Vectors, old: Vectors) -> LinearAdapter:
    """Return the rotation that takes new vectors to old ones best: ``q' = R q``.

    Where the dimensions differ, ``R`` has orthonormal rows or columns.

    Args:
        new: ``(n, new_dim)``, unit rows.
        old: ``(n, old_dim)``, unit rows of the same texts.

    Source:
        Schönemann 1966.
    """
    return _linear(_rotation(new.astype(np.float64), old.astype(np.float64)))


def ridge_map(new: Vectors, old: Vectors, strength: float) -> LinearAdapter:
    """Return the linear map that takes new vectors to old ones, shrunk to the best rotation.

    ``W = argmin Σ ‖W x_i - y_i‖² + λ ‖W - s R‖²``, with ``R`` of :func:`procrustes` and ``s`` such
    that rotated vectors have the length of the old ones. Shrunk to zero instead, a map loses the
    rare directions first, in which passages differ.

    Args:
        new: ``(n, new_dim)``, unit rows.
        old: ``(n, old_dim)``, unit rows of the same texts.
        strength: λ, in units of the mean eigenvalue of ``XᵀX``, ``> 0``.

    Source:
        Hoerl and Kennard 1970, shrunk to the rotation of Schönemann 1966.
    """
    x, y = new.astype(np.float64), old.astype(np.float64)
    rotation = _rotation(x, y)
    rotated = x @ rotation.T
    scale = float(np.sum(y**2) / max(np.sum(rotated**2), 1e-12)) ** 0.5
    gram = x.T @ x
    gram[np.diag_indices(len(gram))] += strength * max(np.trace(gram) / len(gram), 1e-12)
    step = np.linalg.solve(gram, x.T @ (y - scale * rotated)).T
    return _linear(scale * rotation + step)


def _rotation(x: Matrix, y: Matrix) -> Matrix:
    left, _, right = np.linalg.svd(y.T @ x, full_matrices=False)
    return np.asarray(left @ right)


def _linear(weight: Matrix) -> LinearAdapter:
    return LinearAdapter(weight.astype(np.float32), shared=True)


def _ridge_of(strength: float) -> Callable[[Vectors, Vectors], LinearAdapter]:
    return lambda new, old: ridge_map(new, old, strength)


#: Every way to fit a map, by name.
FITS: dict[str, Callable[[Vectors, Vectors], LinearAdapter]] = {
    "procrustes": procrustes,
    **{f"ridge {strength:g}": _ridge_of(strength) for strength in STRENGTHS},
}
