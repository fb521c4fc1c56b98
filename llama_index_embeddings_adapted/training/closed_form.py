"""What is computed, not trained by gradients: whitening, ridge, kernel ridge regression, offsets,
and the directions along which the rest is learned.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_matrix

from ..adapters.base import Adapter, CompositeAdapter
from ..adapters.maps import LinearAdapter, LowRankAdapter, NudgeAdapter, gaussian
from ..core.arrays import Floats, Vectors, l2_normalize, normalized_blocks
from ..core.encoded import EncodedDataset, Qrels
from ..errors import OptionError

_FLAT = 1e-12  # mean variance below which there is no direction to speak of
MOST_KEYS = 16_384  # a gigabyte of kernel; time grows with its third power
MOST_DIMENSIONS = 1_024
_ROWS = 6_000  # of queries and of documents that the span is found from
_MORE = 64  # directions that are tried beyond those kept


class Spectrum:
    """Eigenpairs of the covariance of documents, ``(m, dim)``, those of variance, on demand."""

    def __init__(self, documents: Vectors) -> None:
        self._documents = documents

    @functools.cached_property
    def mean(self) -> Vectors:
        """Mean of the unit vectors, ``(dim,)``."""
        total: Floats = np.zeros(self._documents.shape[1])
        for block in normalized_blocks(self._documents):
            total += block.mean(axis=0).astype(np.float64) * len(block)
        return np.asarray(total / len(self._documents), dtype=np.float32)

    @functools.cached_property
    def moment(self) -> Vectors:
        """Mean of ``d dᵀ`` of the unit vectors, ``(dim, dim)``."""
        total = sum(block.T @ block for block in normalized_blocks(self._documents))
        return np.asarray(total / np.float32(len(self._documents)), dtype=np.float32)

    def power(self, power: float, shrinkage: float) -> Floats:
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
    def _pairs(self) -> tuple[Floats, Floats]:
        """Eigenvalues ``(r,)`` and eigenvectors ``(dim, r)``; ``r`` is at most either count."""
        count, dim = self._documents.shape
        if count >= dim:
            products: Floats = np.zeros((dim, dim))
            for block in normalized_blocks(self._documents):
                block -= self.mean
                products += block.T @ block
            values, vectors = np.linalg.eigh(products / count)
            return np.maximum(values, 0.0), vectors
        rows = l2_normalize(self._documents) - self.mean
        values, combinations = np.linalg.eigh((rows @ rows.T).astype(np.float64) / count)
        there = values > _FLAT
        values, combinations = values[there], combinations[:, there]
        return values, (rows.T @ combinations) / np.sqrt(count * values)


def kernel_ridge(
    queries: Vectors, values: Vectors, *, temperature: float, penalty: float = 0.1, seed: int = 0
) -> tuple[Vectors, Vectors]:
    """Return keys and coefficients whose kernel expansion comes near the values.

    ``f(q) = Σ k(q, k_i) a_i`` minimises ``Σ ‖f(q_j) - v_j‖² + penalty · ‖f‖²`` in the norm of the
    Gaussian kernel; queries are unit rows, all are ``(n, dim)``. The temperature is in cosine
    units, the penalty in those of a query's kernel with itself, which is 1; both are ``> 0``. Of
    more than 16,384 queries, a sample stands for all. Source: Saunders et al. 1998, in dual
    variables; the sample is the "subset of datapoints" of Rasmussen and Williams 2006, section
    8.3.2: with all queries in the sum (8.3.1), the equations are too badly conditioned for single
    precision.
    """
    if len(queries) > MOST_KEYS:
        rows = np.sort(np.random.default_rng(seed).permutation(len(queries))[:MOST_KEYS])
        queries, values = queries[rows], values[rows]
    kernel = gaussian(queries, queries, temperature)
    kernel[np.diag_indices(len(kernel))] += np.float32(penalty)
    # Torch's, as SciPy's lets no other thread work; in place, and transposed, as it is symmetric:
    # LAPACK would copy a gigabyte of rows into columns.
    matrix = torch.from_numpy(kernel).mT
    torch.linalg.cholesky(matrix, out=matrix)
    half = torch.linalg.solve_triangular(matrix, torch.from_numpy(values), upper=False)
    found = torch.linalg.solve_triangular(matrix.mT, half, upper=True)
    return queries, np.ascontiguousarray(found.numpy())


def whitening(
    documents: Vectors | Spectrum, *, power: float = 0.25, shrinkage: float = 1.0, bias: bool = True
) -> LinearAdapter:
    """Damp the directions in which all documents agree; needs no label.

    ``W = V diag((w + shrinkage · mean(w)) ** -power) Vᵀ``, with ``w, V`` the eigenpairs of the
    document covariance, scaled so that its mean eigenvalue is 1. Applied to queries alone it stands
    for a milder whitening of both sides. A power of 0 changes nothing, 0.5 on both sides would
    whiten; it is in [0, 1], the shrinkage ``> 0``, in units of the mean eigenvalue, else it is an
    OptionError. Source: Su et al. 2021, arXiv:2103.15316, with exponent and shrinkage added.
    """
    if not 0 <= power <= 1 or not shrinkage > 0:
        given = f"{power!r} and {shrinkage!r}"
        raise OptionError(f"Expected power in [0, 1] and shrinkage > 0, got {given}.")
    spectrum = documents if isinstance(documents, Spectrum) else Spectrum(documents)
    weight = spectrum.power(power, shrinkage)
    zero = np.zeros(len(weight), dtype=np.float32) if bias else None
    return LinearAdapter(weight.astype(np.float32), zero)


def ridge(train: EncodedDataset, strength: float) -> LinearAdapter:
    """Return the linear map that takes queries to their mean relevant document.

    ``W = argmin Σ ‖W q_i - t_i‖² + λ ‖W - I‖²``, with ``t_i`` the mean of the unit vectors of the
    relevant documents and λ the strength, ``> 0``, in units of the mean eigenvalue of ``QᵀQ``. A
    large one stays at the identity. Source: Hoerl and Kennard 1970, shrunk to the identity.
    """
    queries = l2_normalize(train.queries).astype(np.float64)
    missing = mean_documents(train.relevance, train.documents) - queries  # what the identity lacks
    count, dim = queries.shape
    penalty = strength * max(float(np.square(queries).sum()) / dim, 1e-12)
    if count < dim:
        kernel = queries @ queries.T + penalty * np.eye(count)
        step = queries.T @ np.linalg.solve(kernel, missing)
    else:
        step = np.linalg.solve(queries.T @ queries + penalty * np.eye(dim), queries.T @ missing)
    return LinearAdapter((np.eye(dim) + step.T).astype(np.float32))


def answer_directions(train: EncodedDataset, spectrum: Spectrum) -> Vectors:
    """Return for each training query what to add to a query like it, ``(n, dim)``, unit rows.

    The mean of its relevant documents, less the mean of all, whitened by their ``spectrum``: of
    vectors of its length what favours these documents most against the rest of the corpus.
    """
    values = mean_documents(train.relevance, train.documents) - spectrum.mean
    return l2_normalize(values @ spectrum.power(1.0, 1.0).astype(np.float32))


def mean_documents(relevance: Qrels, documents: Vectors) -> Vectors:
    """Return the mean of each query's relevant documents as unit rows, ``(n, dim)``."""
    asked, columns = np.unique(relevance.documents, return_inverse=True)
    shares = np.repeat(1.0 / relevance.counts, relevance.counts).astype(np.float32)
    weights = csr_matrix((shares, columns, relevance.offsets), shape=(len(relevance), len(asked)))
    return np.asarray(weights @ l2_normalize(documents[asked]), dtype=np.float32)


def nudge_n(train: EncodedDataset, distance: float) -> NudgeAdapter:
    """Turn each document towards the sum of its training queries, on the unit sphere.

    ``distance`` is γ, the squared length of the longest offset, in [0, 2]. Documents nearer to
    their queries' direction than that arrive there; those on the far side of it stay. Source:
    NUDGE-N, Zeighami et al. 2024, arXiv:2409.02343, theorem 2.
    """
    queries, relevant = l2_normalize(train.queries), train.canonical_rows[train.relevance.documents]
    asked = np.unique(relevant)
    documents = l2_normalize(train.documents[asked])
    pull = np.zeros_like(documents)
    np.add.at(pull, np.searchsorted(asked, relevant), queries[train.relevance.queries])
    along = np.einsum("ij,ij->i", documents, pull)[:, None]
    aside = l2_normalize(pull - along * documents)
    cosine = np.float32(1.0 - distance / 2.0)
    turned = cosine * documents + np.sqrt(1.0 - cosine**2) * aside
    arrived = along >= cosine * np.linalg.norm(pull, axis=1, keepdims=True)
    moved = np.where(along < 0, documents, np.where(arrived, l2_normalize(pull), turned))
    return NudgeAdapter.of(train.keys[asked], moved - documents)


def span(data: EncodedDataset, most: int = MOST_DIMENSIONS, *, seed: int = 0) -> Vectors:
    """Return the main directions of queries and documents, ``(dim, k)``, orthonormal.

    All of them, ``k = dim``, up to ``most``: a map is better trained along them too, as Adam gives
    every coordinate a rate of its own. 6,000 queries and as many documents are looked at; where
    vectors are wider than ``most``, as in Halko et al. 2011, Finding structure with randomness,
    algorithms 4.3 and 5.1.
    """
    random, dim = np.random.default_rng(seed), data.queries.shape[1]
    rows = [
        l2_normalize(vectors[np.sort(random.permutation(len(vectors))[:_ROWS])])
        for vectors in (data.queries, data.documents)
    ]
    # Both sides weigh the same, however many there are.
    seen = np.concatenate([part / np.float32(len(part) ** 0.5) for part in rows])
    found = np.eye(dim, dtype=np.float32)
    if dim > most:
        drawn = random.standard_normal((dim, min(dim, most + _MORE))).astype(np.float32)
        found, _ = np.linalg.qr(seen.T @ (seen @ drawn))
    along = (seen @ found).astype(np.float64)
    _, vectors = np.linalg.eigh(along.T @ along)
    return np.ascontiguousarray(found @ vectors[:, ::-1][:, :most], dtype=np.float32)


def narrowed(data: EncodedDataset, directions: Vectors) -> EncodedDataset:
    """Return a dataset as its coordinates along some directions."""
    documents = [block @ directions for block in normalized_blocks(data.documents)]
    queries = l2_normalize(data.queries) @ directions
    return replace(data, queries=queries, documents=np.concatenate(documents))


def widened(adapter: Adapter, directions: Vectors) -> Adapter:
    """Return the adapter that does along some directions what the given one does to coordinates.

    ``directions`` are ``(dim, k)``, orthonormal. What lies aside of them stays as it is. A linear
    map becomes one of low rank where that is smaller; keys, offsets and what a gate remembers
    become vectors again.
    """
    if isinstance(adapter, LinearAdapter):
        dim, kept = directions.shape
        up = directions @ (adapter.weight - np.eye(kept, dtype=np.float32))
        bias = None if adapter.bias is None else directions @ adapter.bias
        if 2 * kept < dim:
            none = np.zeros(dim, dtype=np.float32)
            return LowRankAdapter(directions.T, up, none if bias is None else bias)
        whole = np.asarray(up @ directions.T, dtype=np.float32)
        whole[np.diag_indices(dim)] += 1.0
        return LinearAdapter(whole, bias)
    if isinstance(adapter, NudgeAdapter):
        return NudgeAdapter(adapter.keys, adapter.offsets @ directions.T)
    assert isinstance(adapter, CompositeAdapter)
    arrays = {
        name: array @ directions.T if array.ndim == 2 and array.size else array
        for name, array in adapter.own_arrays().items()
    }
    parts = {name: widened(part, directions) for name, part in adapter.parts().items()}
    settings = {name: getattr(adapter, name) for name in adapter.SETTINGS}
    return adapter.assemble(parts, {**arrays, **settings})
