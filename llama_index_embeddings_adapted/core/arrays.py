"""Arrays: unit rows, shape and finiteness checks, exact search in blocks.

Exact search in more documents than should lie in memory: a block of rows at a time.

Document vectors of length 1 that are made when they are read, so that no copy of them exists.

Room for vectors: in memory, or in a file without a name that the system pages in and out.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llama_index_embeddings_adapted.errors import CacheError, ShapeError

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

DOCUMENTS_PER_BLOCK = 65_536  # 100 MB of them at 384 dimensions
SCORES_PER_BLOCK = 16_000_000  # 64 MB of float32 scores at a time
_NOISE = 1e-6  # scores of unit vectors this near are equal: blocks round differently


class RowSource(Protocol):
    """What can be searched: a matrix, or rows that are made when they are asked for."""

    def __len__(self) -> int:
        """Return how many rows there are."""
        ...

    def __getitem__(self, rows: Any, /) -> Vectors:
        """Return a slice of rows, or chosen ones, in memory."""
        ...


def top_k_in_blocks(queries: Vectors, documents: RowSource, k: int) -> tuple[Rows, Vectors]:
    """Return what :func:`top_k` does, for any number.

    Each block is read once and scored against all queries, and only what beats a query's ``k``-th
    best so far is looked at.

    Args:
        queries: ``(n, dim)``.
        documents: ``m`` rows of ``dim``.
        k: How many, from 1 to ``m``.

    Returns:
        Rows into ``documents`` and scores, both ``(n, k)``, best first.
    """
    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    size = max(DOCUMENTS_PER_BLOCK, k)
    step = max(1, SCORES_PER_BLOCK // size)
    for start in range(0, len(documents), size):
        block = documents[start : start + size]
        for first in range(0, len(queries), step):
            part = slice(first, first + step)
            found = queries[part] @ block.T
            if start == 0:
                rows[part] = first_k(found, k)
                scores[part] = np.take_along_axis(found, rows[part], axis=1)
            else:
                _merge(rows[part], scores[part], found, start)
    return rows, scores


def ranks_in_blocks(queries: Vectors, documents: RowSource, rows: Rows, wanted: Rows) -> Rows:
    """Return what :func:`ranks` does, for any number.

    Scores within ``1e-6`` count as equal, so vectors are to be of length 1.

    Args:
        queries: ``(n, dim)``.
        documents: ``m`` rows of ``dim``.
        rows: ``(entries,)``, rows of queries, ascending.
        wanted: ``(entries,)``, the document to rank for each.

    Returns:
        ``(entries,)``, 0 is first.
    """
    ranks = np.zeros(len(rows), dtype=np.int64)
    own = np.einsum("ij,ij->i", queries[rows], documents[wanted])
    step = max(1, SCORES_PER_BLOCK // DOCUMENTS_PER_BLOCK)
    for start in range(0, len(documents), DOCUMENTS_PER_BLOCK):
        block = documents[start : start + DOCUMENTS_PER_BLOCK]
        before = np.clip(wanted - start, 0, len(block))
        for first in range(0, len(queries), step):
            found = queries[first : first + step] @ block.T
            for entry in range(*np.searchsorted(rows, [first, first + step])):
                line, cut, score = found[rows[entry] - first], before[entry], own[entry]
                ties = np.count_nonzero(line[:cut] >= score - _NOISE)
                ranks[entry] += ties + np.count_nonzero(line[cut:] > score + _NOISE)
    return ranks


def first_k(block: Vectors, k: int) -> Rows:
    """Return the columns of the ``k`` largest values of each row, ties by column."""
    if k < block.shape[1]:
        part = np.argpartition(-block, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(block, part, axis=1)
        floor = values.min(axis=1, keepdims=True)
        # A tie that straddles the cut: argpartition picked arbitrarily, so sort those rows in full.
        straddles = (block == floor).sum(axis=1) > (values == floor).sum(axis=1)
        order = np.lexsort((part, -values), axis=1)
        chosen = np.take_along_axis(part, order, axis=1)
        for row in np.flatnonzero(straddles):
            chosen[row] = np.argsort(-block[row], kind="stable")[:k]
        return chosen.astype(np.int64)
    return np.argsort(-block, axis=1, kind="stable").astype(np.int64)


def _merge(rows: Rows, scores: Vectors, found: Vectors, start: int) -> None:
    """Let what a block has replace what is worse, in place; at a tie the earlier row stays."""
    line, column = np.nonzero(found > scores[:, -1:])
    if not len(line):
        return
    count, k = rows.shape
    lines = np.concatenate([np.repeat(np.arange(count), k), line])
    candidates = np.concatenate([rows.ravel(), column + start])
    values = np.concatenate([scores.ravel(), found[line, column]])
    order = np.lexsort((candidates, -values, lines))
    firsts = np.arange(count) * k + np.searchsorted(line, np.arange(count))
    best = order[firsts[:, None] + np.arange(k)]
    rows[:], scores[:] = candidates[best], values[best]


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


def l2_normalize(vectors: NDArray[Any]) -> Vectors:
    """Return the rows (or the one vector) scaled to length 1; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim == 1:  # the serving path: one query, as few numpy calls as possible
        length = float(np.dot(vectors, vectors)) ** 0.5
        return vectors * np.float32(1.0 / length) if length > 0.0 else vectors
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return np.asarray(vectors / np.where(lengths > 0.0, lengths, 1.0), dtype=np.float32)


def content_hashes(texts: Sequence[str]) -> Keys:
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


Adapt = Callable[[Vectors, Keys | None], Vectors]


@dataclass(frozen=True, eq=False)
class NormalizedRows:
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
        return l2_normalize(part)


def normalized_rows(vectors: Vectors) -> RowSource:
    """Return rows of length 1: of a few as a matrix, of many made anew when they are read."""
    return l2_normalize(vectors) if len(vectors) <= DOCUMENTS_PER_BLOCK else NormalizedRows(vectors)


def normalized_blocks(vectors: Vectors) -> Iterator[Vectors]:
    """Yield all rows, scaled to length 1, in blocks."""
    rows = NormalizedRows(vectors)
    for start in range(0, len(vectors), DOCUMENTS_PER_BLOCK):
        yield rows[start : start + DOCUMENTS_PER_BLOCK]


MOST_IN_MEMORY = 256 * 2**20  # bytes


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)  # a disk that is full is an error here, not a crash later
    else:
        os.truncate(file, size)


def allocate_vectors(shape: tuple[int, int], folder: Path | None) -> Vectors:
    """Return a float32 matrix to be filled.

    Args:
        shape: Of the matrix.
        folder: Where the file of a matrix of more than 256 MiB goes; None for memory in any case.
            The file has no name, so that nothing is left of it, also after a kill.

    Raises:
        CacheError: No room in the folder.
    """
    size = 4 * shape[0] * shape[1]
    if folder is None or size <= MOST_IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            _reserve(stream.fileno(), size)
            return np.memmap(stream, dtype=np.float32, mode="r+", shape=shape)
    except OSError as cause:
        raise CacheError(
            f"{folder}: expected room for {size / 2**20:,.0f} MiB of vectors ({cause.strerror}). "
            "Free some space, or pass another cache_dir."
        ) from cause
