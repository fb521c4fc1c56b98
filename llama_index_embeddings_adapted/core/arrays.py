"""Arrays: rows of length 1, checks of shapes, exact search in blocks, room for vectors.

Documents may be more than lie in memory: their rows are then read, adapted and scaled a block at a
time, and vectors that are made lie in a file without a name that the system pages in and out.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CacheError, ShapeError

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Role = Literal["query", "document"]
Adapt = Callable[[Vectors, Keys | None], Vectors]


# --- vectors ----------------------------------------------------------------------------------
def as_vectors(value: ArrayLike, *, what: str, dim: int | None = None) -> Vectors:
    """Return ``value`` as a finite float32 matrix, or raise a ShapeError.

    Args:
        value: ``(n, dim)``.
        what: How to name the vectors in an error.
        dim: The expected second dimension, if known.
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


def alike(query: str) -> str:
    """Return a query as it is told from others: case and white space do not count."""
    return " ".join(query.casefold().split())


def content_hashes(texts: Sequence[str]) -> Keys:
    """Return a number per text that changes with its content, ``(n,)``.

    The first 8 bytes of SHA-256: among a million texts, two share a key once in 10 million times.
    """
    digests = (hashlib.sha256(t.encode(errors="surrogatepass")).digest()[:8] for t in texts)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


@dataclass(frozen=True, eq=False)
class NormalizedRows:
    """Rows of a matrix, in memory or mapped from a file, adapted and scaled to length 1."""

    vectors: Vectors  #: ``(m, dim)``, of the base model.
    keys: Keys | None = None  #: ``(m,)``, for adapters that know single documents.
    adapt: Adapt | None = None  #: Maps ``(n, dim)`` vectors with their keys.

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: Any) -> Vectors:
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


# --- exact search -------------------------------------------------------------------------------
DOCUMENTS_PER_BLOCK = 65_536  # 100 MB of them at 384 dimensions
SCORES_PER_BLOCK = 16_000_000  # 64 MB of float32 scores at a time
_GROUP = 8  # columns that are looked at together, so that few are sorted
_FEW = 4  # documents per query that are ranked faster one by one
_NARROW = 1_000  # documents of which the best are sooner found than one is ranked


#: What can be searched: a matrix, or rows that are made when they are asked for.
RowSource: TypeAlias = "Vectors | NormalizedRows"


def score_blocks(
    queries: Vectors, documents: RowSource, *, width: int | None = None
) -> Iterator[tuple[slice, slice, Vectors]]:
    """Yield dot products of some queries and some documents at a time; a document is read once.

    Which queries, which of 65,536 documents at a time, or ``width``, and scores, free to change.
    """
    width = width or DOCUMENTS_PER_BLOCK
    step = max(1, SCORES_PER_BLOCK // max(1, min(width, len(documents))))
    for start in range(0, len(documents), width):
        block = documents[start : start + width]
        for first in range(0, len(queries), step):
            part = slice(first, min(first + step, len(queries)))
            yield part, slice(start, start + len(block)), queries[part] @ block.T


def top_k(queries: Vectors, documents: RowSource, k: int) -> tuple[Rows, Vectors]:
    """Return the ``k`` documents with the highest dot product for each query, exactly.

    Ties go to the document that stands first, so that a ranking is reproducible. Rows into
    ``documents`` and scores are both ``(n, min(k, m))``, best first.
    """
    k = min(k, len(documents))
    rows = np.zeros((len(queries), k), dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for part, block, found in score_blocks(queries, documents):
        if block.start == 0 and k <= block.stop:
            rows[part] = first_k(found, k)
            scores[part] = np.take_along_axis(found, rows[part], axis=1)
        else:
            _merge(rows[part], scores[part], found, block.start)
    return rows, scores


def ahead(
    scores: Vectors, lines: Rows, places: Rows, own: Vectors, depth: int | None, noise: float = 0.0
) -> Rows:
    """Return for each entry how many documents of a block, ``(b, m)``, stand before its own.

    ``lines`` are rows of ``scores``, ``places`` documents, which may lie before or behind the
    block, ``own`` their scores; equal ones may be ``noise`` apart. Counts from ``depth`` on need
    only be at least that; None: all are exact.
    """
    count = scores.shape[1]
    if depth is not None and (count < _NARROW or len(lines) > _FEW * len(scores)):
        least = max(0, count - depth)
        best = np.partition(scores, least, axis=1)[:, least:]
        near, least_own = best[lines], own[:, None] - noise
        found: Rows = np.count_nonzero(near > own[:, None] + noise, axis=1)
        # Equals of a document are all among the best, if it is not the last of them.
        inside = (places >= 0) & (places < count)
        tied = np.count_nonzero(near >= least_own, axis=1) > found + inside
        tied |= near.min(axis=1) >= least_own[:, 0]
    else:
        pairs = zip(lines, own, strict=True)
        better = [np.count_nonzero(scores[line] > score + noise) for line, score in pairs]
        found = np.array(better, dtype=np.int64)
        tied = np.ones(len(found), dtype=np.bool_)
    for entry in np.flatnonzero(tied & (found < (depth or count))):
        before = scores[lines[entry], : max(0, places[entry])]
        found[entry] += np.count_nonzero(np.abs(before - own[entry]) <= noise)
    return found


def first_k(block: Vectors, k: int) -> Rows:
    """Return the columns of each row's ``k`` largest numbers, best first, ties by column."""
    if k >= block.shape[1]:
        return np.argsort(-block, axis=1, kind="stable").astype(np.int64)
    # At least k numbers are as large as the k-th largest maximum of many groups of columns.
    groups, highest = block.shape[1] // _GROUP, block
    if groups > 4 * k:
        highest = block[:, : groups * _GROUP].reshape(len(block), _GROUP, groups).max(axis=1)
    floor = np.partition(highest, -k, axis=1)[:, -k, None]
    line, column = np.divmod(np.flatnonzero(block >= floor), block.shape[1])
    order = np.lexsort((-block[line, column], line))
    firsts = np.searchsorted(line, np.arange(len(block)))
    best: Rows = column[order[firsts[:, None] + np.arange(k)]]
    return best


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


# --- room for vectors ---------------------------------------------------------------------------
MOST_IN_MEMORY = 256 * 2**20  # bytes


def allocate_vectors(shape: tuple[int, int], folder: Path | None) -> Vectors:
    """Return a float32 matrix to be filled, or raise a CacheError.

    More than 256 MiB lie in a file in ``folder``, if there is one. It has no name, so that nothing
    is left of it, also after a kill.
    """
    size = 4 * shape[0] * shape[1]
    if folder is None or size <= MOST_IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            # A disk that is full is an error here, not a crash later.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                os.truncate(stream.fileno(), size)
            return np.memmap(stream, dtype=np.float32, mode="r+", shape=shape)
    except OSError as cause:
        raise CacheError(
            f"{folder}: expected room for {size / 2**20:,.0f} MiB of vectors ({cause.strerror}). "
            "Free some space, or pass another cache_dir."
        ) from cause
