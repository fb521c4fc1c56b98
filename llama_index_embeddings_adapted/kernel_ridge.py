"""Fitting kernel regression from queries to what favours their documents."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.kernel import gaussian
from llama_index_embeddings_adapted.vectors import Vectors

MOST_KEYS = 16_384  # a gigabyte of kernel


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
    kernel. Of more than ``most_keys`` queries, a sample stands for all.

    Args:
        queries: ``(n, dim)``, unit rows.
        values: ``(n, dim)``, what to return for each.
        temperature: Of the Gaussian kernel, in cosine units, ``> 0``.
        penalty: In units of the kernel of a query with itself, which is 1, ``> 0``.
        most_keys: ``>= 1``; time grows with its third power, memory with its square.
        seed: Of the sample.

    Returns:
        ``(k, dim)`` and ``(k, dim)``, ``k = min(n, most_keys)``.

    Raises:
        OptionError: A setting out of range.

    Source:
        Saunders et al. 1998, Ridge regression learning algorithm in dual variables; the sample is
        the "subset of datapoints" of Rasmussen and Williams 2006, Gaussian Processes for Machine
        Learning, section 8.3.2. With a sample of keys and all queries in the sum (8.3.1), the
        equations are too badly conditioned for single precision.
    """
    if not temperature > 0 or not penalty > 0 or most_keys < 1:
        raise OptionError(
            "Expected temperature > 0, penalty > 0 and most_keys >= 1, got "
            f"{temperature!r}, {penalty!r} and {most_keys!r}."
        )
    if len(queries) > most_keys:
        rows = np.sort(np.random.default_rng(seed).permutation(len(queries))[:most_keys])
        queries, values = queries[rows], values[rows]
    kernel = gaussian(queries, queries, temperature)
    kernel[np.diag_indices(len(kernel))] += np.float32(penalty)
    # Transposed, as it is symmetric: LAPACK would copy a gigabyte of rows into columns.
    factor = cho_factor(kernel.T, lower=True, overwrite_a=True, check_finite=False)
    coefficients = cho_solve(factor, values, check_finite=False)
    return queries, np.asarray(coefficients, dtype=np.float32)
