"""What training queries looked like, in a few kilobytes and without their texts."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Vectors, l2_normalize
from ..core.files import Arrays
from ..errors import FolderError, ShapeError

#: A sketch holds at most so many queries, in so many directions, one byte each: 32 KB.
MOST_QUERIES, MOST_DIRECTIONS = 256, 128
_LEVELS = 127
_MOST_NUMBER = 2**31  # dimensions, queries


@dataclass(frozen=True, eq=False)
class QuerySketch:
    """A sample of training queries as points that live queries can be compared with.

    Vectors of the base model are scaled to length 1 and, beyond 128 dimensions, projected on 128
    fixed random directions, which keeps distances within a few percent (Johnson and Lindenstrauss
    1984; signs as in Achlioptas 2003). Texts and whole vectors are not kept.
    """

    points: NDArray[np.int8]  #: ``(n, directions)``, in units of ``step``.
    step: float  #: Size of one level.
    dim: int  #: Dimension of the base model's vectors.
    queries: int  #: How many queries the sample was drawn from.

    @classmethod
    def of(
        cls, queries: Vectors, groups: Sequence[Hashable] | None = None, *, seed: int = 0
    ) -> QuerySketch:
        """Sample queries, ``(n, dim)``, vectors of the base model, ``n >= 1``.

        Of one of the ``groups``, ``(n,)``, such as the document each asks for, one query is drawn
        as long as that leaves enough: two questions about one passage lie closer together than a
        stranger's question would, and would make strangers look strange.
        """
        count = len(queries)
        order = np.random.default_rng(seed).permutation(count)
        if groups is not None:
            first = list({groups[row]: row for row in order[::-1]}.values())[::-1]
            rest = np.setdiff1d(order, first, assume_unique=True)
            order = np.concatenate([first, rest[: max(0, _FEW - len(first))]]).astype(np.int64)
        points = projected(queries[np.sort(order[:MOST_QUERIES])])
        step = max(float(np.abs(points).max()), 1e-12) / _LEVELS
        return cls(np.round(points / step).astype(np.int8), step, queries.shape[1], count)

    @functools.cached_property
    def reference(self) -> Vectors:
        """The points as numbers, ``(n, directions)``."""
        return self.points.astype(np.float32) * np.float32(self.step)

    def project(self, queries: Vectors) -> Vectors:
        """Return where live queries, ``(n, dim)``, lie among the points, ``(n, directions)``.

        Vectors of another dimension than the training queries had are a ShapeError.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            expected = f"{self.dim} dimensions, as the training queries"
            raise ShapeError("Live queries", expected=expected, actual=f"shape {queries.shape}")
        return projected(queries)

    def overlap(self, queries: Vectors) -> str:
        """Say how many queries of a test, ``(n, dim)``, were trained on; nothing below a fifth.

        The sketch is a sample: what is found in it stands for as much more as it left out.
        """
        places, kept = self.project(queries), len(self.points)
        same = [np.abs(places - point).max(axis=1) <= self.step for point in self.reference]
        found, count = int(np.any(same, axis=0).sum()), len(queries)
        if found < _FEWEST_SEEN or found * self.queries < _SEEN * count * kept:
            return ""
        trained = f"{kept:,} kept of {self.queries:,}" if kept < self.queries else f"{kept:,}"
        return f"{found:,} of the {count:,} test queries are among the {trained} it was trained on"

    def arrays(self) -> Arrays:
        """Return what is saved, as safetensors know it."""
        numbers = np.array([self.step, self.dim, self.queries], dtype=np.float64)
        return {"points": self.points, "numbers": numbers}

    @classmethod
    def restore(cls, arrays: Arrays, *, where: str) -> QuerySketch:
        """Rebuild what :meth:`arrays` gave; anything else is a FolderError."""
        points = arrays.get("points", np.empty(0))
        numbers = arrays.get("numbers", np.empty(0))
        kinds: tuple[Any, ...] = (points.dtype, points.ndim, numbers.dtype, numbers.shape)
        whole = (
            kinds == (np.int8, 2, np.float64, (3,))
            and bool(((numbers > 0) & (numbers <= _MOST_NUMBER)).all() and len(points))
            and points.shape[1] == min(int(numbers[1]), MOST_DIRECTIONS)
        )
        if not whole:
            raise FolderError(f"{where}: the sketch of training queries is damaged.")
        return cls(points, float(numbers[0]), int(numbers[1]), int(numbers[2]))


_FEWEST_SEEN, _SEEN = 3, 0.2  # queries, and their share, that users do not just ask again
_FEW = 64  # sketches smaller than this take several queries of a group


def projected(vectors: Vectors) -> Vectors:
    """Return unit rows on at most 128 directions, ``(n, min(dim, 128))``."""
    rows = l2_normalize(vectors)
    dim = rows.shape[1]
    return rows if dim <= MOST_DIRECTIONS else rows @ _directions(dim)


@functools.lru_cache(maxsize=8)
def _directions(dim: int) -> Vectors:
    # From a hash, not from a random generator, whose stream may change between versions of numpy:
    # saved sketches depend on these signs.
    size = dim * MOST_DIRECTIONS
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"sketch").digest(size // 8), np.uint8))
    signs = bits.astype(np.float32).reshape(dim, MOST_DIRECTIONS) * 2 - 1
    return np.asarray(signs / MOST_DIRECTIONS**0.5, dtype=np.float32)
