"""Fitting kernel regression from queries to what favours their documents."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.kernel import gaussian
from llama_index_embeddings_adapted.vectors import Vectors

MOST_KEYS = 8_192
_BLOCK = 4_096  # queries whose kernel is held at a time, where there are more than keys
_JITTER = 1e-4  # of the keys' own kernel, which repeated queries make singular


def kernel_ridge(
    queries: Vectors,
    values: Vectors,
    *,
    temperature: float,
    penalty: float = 0.1,
    most_keys: int = MOST_KEYS,
    seed: int = 0,
) -> tuple[Vectors, Vectors]:
    """Return keys and coefficients whose kernel expansion comes near the values.

    ``f(q) = Σ k(q, k_i) a_i`` minimises ``Σ ‖f(q_j) - v_j‖² + penalty · ‖f‖²`` in the norm of the
    kernel. All queries are keys, up to ``most_keys`` of them; beyond, a sample is, and all queries
    still count in the sum.

    Args:
        queries: ``(n, dim)``, unit rows.
        values: ``(n, dim)``, what to return for each.
        temperature: Of the Gaussian kernel, in cosine units, ``> 0``.
        penalty: In units of the kernel of a query with itself, which is 1, ``> 0``.
        most_keys: ``>= 1``; time grows with its square, and with ``n``.
        seed: Of the sample.

    Returns:
        ``(k, dim)`` and ``(k, dim)``, ``k = min(n, most_keys)``.

    Raises:
        OptionError: A setting out of range.

    Source:
        Saunders et al. 1998; with a sample of keys it is the "subset of regressors" of Rasmussen
        and Williams 2006, Gaussian Processes for Machine Learning, section 8.3.1.
    """
    if not temperature > 0 or not penalty > 0 or most_keys < 1:
        raise OptionError(
            "Expected temperature > 0, penalty > 0 and most_keys >= 1, got "
            f"{temperature!r}, {penalty!r} and {most_keys!r}."
        )
    if len(queries) <= most_keys:
        kernel = gaussian(queries, queries, temperature)
        kernel[np.diag_indices(len(kernel))] += np.float32(penalty)
        return queries, _solve(kernel, values)
    rows = np.sort(np.random.default_rng(seed).permutation(len(queries))[:most_keys])
    keys = queries[rows]
    kernel = np.float32(penalty) * gaussian(keys, keys, temperature)
    kernel[np.diag_indices(len(kernel))] += np.float32(_JITTER)
    wanted = np.zeros((len(keys), values.shape[1]), dtype=np.float32)
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        similar = gaussian(keys, queries[part], temperature)
        kernel += similar @ similar.T
        wanted += similar @ values[part]
    return keys, _solve(kernel, wanted)


def _solve(matrix: Vectors, right: Vectors) -> Vectors:
    factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, right, check_finite=False), dtype=np.float32)
