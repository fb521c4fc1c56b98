"""Scores of many candidates at the price of a few.

All that is done to queries mixes a few vectors: the query as it is, as maps have it, and what
kernels add. Cosines with documents mix likewise. So documents are searched once per vector, what
any of them finds is a shortlist, and a candidate costs a weighted sum over that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arrays import Rows, Vectors, l2_normalize, top_k
from ...core.encoded import NO_DOCUMENT
from .cross_fitting import PerQuery, TestFold

#: What a query becomes, up to its length: the weight of each vector, one number per query or one
#: for all.
Mixture = Mapping[Hashable, "NDArray[Any] | float"]

_DEPTH = 10
_FOUND = 32  # documents that each vector brings to the shortlist
_AT_ONCE = 64  # queries


class QueryBasis:
    """The vectors that candidates mix, for the queries of a fold.

    What a mixture finds beyond the shortlist is missed, so scores are for choosing; what is chosen
    is judged by an exact search. ``documents`` are ``(m, dim)``, unit rows.
    """

    def __init__(self, test: TestFold, documents: Vectors) -> None:
        self._test, self._documents = test, documents
        self._vectors: dict[Hashable, Vectors] = {}
        self._scores: dict[Hashable, Vectors] = {}
        self._found: list[Rows] = []

    def vector(
        self, name: Hashable, make: Callable[[], Vectors], beside: Mixture | None = None
    ) -> Mixture:
        """Return the mixture that is one vector alone, ``(n, dim)``, which is made once.

        ``beside`` is what it is added to, where it means nothing alone.
        """
        if name not in self._vectors:
            self._vectors[name] = searching = make()
            if beside is not None:
                searching = searching + self._sum(beside, self._vectors)
            found, _ = top_k(l2_normalize(searching), self._documents, _FOUND)
            self._found.append(found)
        return {name: 1.0}

    def unit(self, mixture: Mixture) -> Mixture:
        """Return a mixture scaled to length 1."""
        mixed = self._sum(mixture, self._vectors)
        lengths = np.sqrt(np.einsum("ij,ij->i", mixed, mixed))
        scale = 1.0 / np.where(lengths > 0, lengths, 1.0)
        return {name: weight * scale for name, weight in mixture.items()}

    @staticmethod
    def _sum(mixture: Mixture, parts: Mapping[Hashable, Vectors]) -> Vectors:
        weighted = [
            np.asarray(weight, dtype=np.float32).reshape(-1, 1) * parts[name]
            for name, weight in mixture.items()
        ]
        total: Vectors = np.sum(weighted, axis=0, dtype=np.float32)
        return total

    def score(self, mixture: Mixture) -> PerQuery:
        """Return NDCG@10 of each judgement."""
        if len(self._found) != len(self._scores):
            self._search()
        worst = -self._sum(mixture, self._scores)
        most = min(_DEPTH, worst.shape[1])
        best = np.argpartition(worst, most - 1, axis=1)[:, :most]  # what is no number comes last
        best.sort(axis=1)  # of equals, the first document comes first
        order = np.argsort(np.take_along_axis(worst, best, axis=1), axis=1, kind="stable")
        grades = np.take_along_axis(self._grades, np.take_along_axis(best, order, axis=1), axis=1)
        gain: PerQuery = grades @ (1.0 / np.log2(np.arange(most) + 2.0))
        return gain / self._test.ideal

    def _search(self) -> None:
        """Score everything on the shortlist, as it is now."""
        rows = _union(np.concatenate(self._found, axis=1))
        excluded = self._test.excluded.grades_at(rows) > 0
        rows[excluded] = NO_DOCUMENT
        self._grades = self._test.relevance.grades_at(rows)
        vectors = np.stack(list(self._vectors.values()), axis=2)
        scores = np.empty((*rows.shape, len(self._vectors)), dtype=np.float32)
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            np.matmul(self._documents[rows[part]], vectors[part], out=scores[part])
        scores[rows == NO_DOCUMENT] = np.nan
        self._scores = {
            name: np.ascontiguousarray(scores[:, :, at]) for at, name in enumerate(self._vectors)
        }


def mixed(parts: Sequence[tuple[NDArray[Any] | float, Mixture]]) -> Mixture:
    """Return the weighted sum of mixtures."""
    total: dict[Hashable, NDArray[Any] | float] = {}
    for share, mixture in parts:
        for name, weight in mixture.items():
            total[name] = total.get(name, 0.0) + share * weight
    return total


def _union(found: Rows) -> Rows:
    """Return the different rows of each line in order, padded with :data:`NO_DOCUMENT`."""
    ordered = np.sort(found, axis=1)
    again = np.zeros(ordered.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    width = int((~again).sum(axis=1).max(initial=1))
    order = np.argsort(again, axis=1, kind="stable")[:, :width]
    rows: Rows = np.take_along_axis(ordered, order, axis=1)
    rows[np.take_along_axis(again, order, axis=1)] = NO_DOCUMENT
    return rows
