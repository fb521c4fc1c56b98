"""Arrays: unit rows, shape and finiteness checks, exact search in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_index_embeddings_adapted.blocks import (
    DOCUMENTS_PER_BLOCK,
    SCORES_PER_BLOCK,
    Rows,
    RowSource,
    Vectors,
    first_k,
    ranks_in_blocks,
    top_k_in_blocks,
)
from llama_index_embeddings_adapted.errors import ShapeError

__all__ = ("Keys", "Role", "RowSource", "Rows", "Vectors")  # names that others take from here

Keys = NDArray[np.uint64]
Role = Literal["query", "document"]


def as_vectors(value: ArrayLike, *, what: str, dim: int | None = None) -> Vectors:
    """Return ``value`` as a finite float32 matrix.

    Args:
        value: ``(n, dim)``.
        what: How to name the vectors in an error.
        dim: The expected second dimension, if known.

    Raises:
        ShapeError: Not a matrix, another dimension, or values that are not finite.
    """
    vectors: Vectors = np.asarray(value, dtype=np.float32)
    if vectors.ndim != 2:
        raise ShapeError(what, expected="a matrix (n, dim)", actual=f"shape {vectors.shape}")
    if dim is not None and vectors.shape[1] != dim:
        raise ShapeError(what, expected=f"{dim} dimensions", actual=f"{vectors.shape[1]}")
    if not np.isfinite(vectors).all():
        raise ShapeError(what, expected="finite numbers", actual="NaN or infinity")
    return vectors


def unit(vectors: NDArray[Any]) -> Vectors:
    """Return the rows (or the one vector) scaled to length 1; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim == 1:  # the serving path: one query, as few numpy calls as possible
        length = float(np.dot(vectors, vectors)) ** 0.5
        return vectors * np.float32(1.0 / length) if length > 0.0 else vectors
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.asarray(vectors / np.where(lengths > 0.0, lengths, 1.0), dtype=np.float32)


def content_keys(texts: Sequence[str]) -> Keys:
    """Return a number per text that changes with its content, ``(n,)``.

    The first 8 bytes of SHA-256: among a million texts, two share a key once in 10 million times.
    """
    digests = (hashlib.sha256(t.encode(errors="surrogatepass")).digest()[:8] for t in texts)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def top_k(queries: Vectors, documents: RowSource, k: int) -> tuple[Rows, Vectors]:
    """Return the ``k`` documents with the highest dot product for each query, exactly.

    Ties go to the document that stands first, so that a ranking is reproducible.

    Many documents are searched in blocks, of which one at a time is in memory.

    Args:
        queries: ``(n, dim)``; unit rows for cosine.
        documents: ``(m, dim)``; unit rows for cosine.
        k: How many, ``>= 1``; at most ``m`` come back.

    Returns:
        Rows into ``documents`` and scores, both ``(n, min(k, m))``, best first.
    """
    count, total = len(queries), len(documents)
    k = min(k, total)
    if total > DOCUMENTS_PER_BLOCK:
        return top_k_in_blocks(queries, documents, k)
    matrix = documents[:]
    rows = np.empty((count, k), dtype=np.int64)
    scores = np.empty((count, k), dtype=np.float32)
    step = max(1, SCORES_PER_BLOCK // max(total, 1))
    for start in range(0, count, step):
        block = queries[start : start + step] @ matrix.T
        chosen = first_k(block, k)
        rows[start : start + step] = chosen
        scores[start : start + step] = np.take_along_axis(block, chosen, axis=1)
    return rows, scores


def ranks(queries: Vectors, documents: RowSource, rows: Rows, wanted: Rows) -> Rows:
    """Return the rank of single documents among all, much cheaper than sorting.

    Ties go to the document that stands first, as in :func:`top_k`.

    Args:
        queries: ``(n, dim)``.
        documents: ``(m, dim)``.
        rows: ``(entries,)``, rows of queries, ascending.
        wanted: ``(entries,)``, the document to rank for each.

    Returns:
        ``(entries,)``, 0 is first.
    """
    if len(documents) > DOCUMENTS_PER_BLOCK:
        return ranks_in_blocks(queries, documents, rows, wanted)
    matrix = documents[:]
    found = np.empty(len(rows), dtype=np.int64)
    step = max(1, SCORES_PER_BLOCK // max(len(documents), 1))
    for start in range(0, len(queries), step):
        block = queries[start : start + step] @ matrix.T
        first, last = np.searchsorted(rows, [start, start + step])
        for entry in range(first, last):
            scores, document = block[rows[entry] - start], wanted[entry]
            ahead = np.count_nonzero(scores > scores[document])
            ties = np.count_nonzero(scores[:document] == scores[document])
            found[entry] = ahead + ties
    return found
