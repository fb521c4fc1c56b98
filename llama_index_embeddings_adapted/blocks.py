"""Exact search in more documents than should lie in memory: a block of rows at a time."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
    """Return what :func:`~llama_index_embeddings_adapted.vectors.top_k` does, for any number.

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
    """Return what :func:`~llama_index_embeddings_adapted.vectors.ranks` does, for any number.

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
