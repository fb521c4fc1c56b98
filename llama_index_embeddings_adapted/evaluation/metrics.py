"""Retrieval metrics on ranked grades, one value per query; how scores shift.

All follow the definitions of ``trec_eval``: NDCG with linear gain, recall and MAP over all relevant
documents of the query, also those that were not retrieved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Rows, Vectors, ahead
from ..core.encoded import Qrels
from ..errors import MetricError

PerQuery = NDArray[np.float64]


def discounts(k: int) -> PerQuery:
    """Return what a place counts, ``(k,)``."""
    return np.asarray(1.0 / np.log2(np.arange(2, k + 2)))


def ideal_gain(relevance: Qrels, k: int) -> PerQuery:
    """Return the discounted gain of the best order, ``(n,)``."""
    best = np.lexsort((-relevance.grades, relevance.queries))
    rank = np.arange(len(best)) - np.repeat(relevance.offsets[:-1], relevance.counts)
    ideal = Qrels(relevance.offsets, relevance.documents[best], relevance.grades[best])
    return ideal.discounted_gain(rank, k)


class Shortlist:
    """NDCG of rankings of a few documents per query, from the ranks of the relevant ones alone.

    ``rows`` are ``(n, c)`` documents, or :data:`NO_DOCUMENT`, of ascending rows.
    """

    def __init__(self, rows: Rows, relevance: Qrels, k: int = 10) -> None:
        grades = relevance.grades_at(rows)
        self._lines, self._places = np.nonzero(grades)
        self._grades, self._k = grades[self._lines, self._places], k
        self._ideal = ideal_gain(relevance, k)

    def score(self, scores: Vectors) -> PerQuery:
        """Return the NDCG of each query by scores, ``(n, c)``; of equals, the first row wins."""
        own = scores[self._lines, self._places]
        found = ahead(scores, self._lines, self._places, own, self._k)
        gains = np.where(found < self._k, self._grades / np.log2(found + 2), 0.0)
        total = np.bincount(self._lines, weights=gains, minlength=len(scores))
        return np.asarray(total / self._ideal)


def _precisions(hits: Any) -> Any:
    """Return the precision at each relevant document, else 0."""
    return np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1) * hits


#: Of the grades of the first ``k`` documents, ``(n, at most k)``.
METRICS: dict[str, Callable[[PerQuery, Qrels, int], Any]] = {
    # 1 where a relevant document is among them, else 0.
    "hit_rate": lambda grades, truth, k: (grades > 0).any(axis=1),
    # 1 / rank of the first relevant document, else 0.
    "mrr": lambda grades, truth, k: (grades > 0).any(axis=1) / (1 + (grades > 0).argmax(axis=1)),
    # Discounted gain over that of the best possible order: Järvelin and Kekäläinen 2002, with
    # gain = grade and discount 1 / log2(rank + 1).
    "ndcg": lambda grades, truth, k: grades @ discounts(grades.shape[1]) / ideal_gain(truth, k),
    # Share of the relevant documents found.
    "recall": lambda grades, truth, k: (grades > 0).sum(axis=1) / truth.counts,
    # Share of the ``k`` places that hold a relevant document.
    "precision": lambda grades, truth, k: (grades > 0).sum(axis=1) / k,
    # Precision at each relevant document found, over all relevant ones.
    "map": lambda grades, truth, k: _precisions(grades > 0).sum(axis=1) / truth.counts,
}


def compute(name: str, ranked: Rows, relevance: Qrels, *, corpus_size: int) -> PerQuery:
    """Return a metric, as ``"ndcg@10"``, of ``(n, depth)`` rankings, ``(n,)``; or MetricError."""
    metric, k = parse(name)
    if k > ranked.shape[1] and ranked.shape[1] < corpus_size:
        raise MetricError(
            f"{name}: only {ranked.shape[1]} documents per query were retrieved. "
            f"Evaluate with a k of {k} among ks."
        )
    values = METRICS[metric](relevance.grades_at(ranked)[:, :k], relevance, k)
    return np.asarray(values, dtype=np.float64)


def parse(name: str) -> tuple[str, int]:
    """Split ``"ndcg@10"`` in its metric and cut-off, or raise a MetricError."""
    metric, _, cut = name.partition("@")
    if metric not in METRICS or not cut.isdecimal() or int(cut) < 1:
        raise MetricError(
            f'"{name}": expected a metric and a cut-off such as "ndcg@10"; '
            f"metrics are {', '.join(METRICS)}."
        )
    return metric, int(cut)


FEWEST_TO_SCALE = 30  #: queries, to say how their scores shift


@dataclass(frozen=True)
class ScoreShift:
    """How an adapter moves the best scores of queries, ascending; cut-offs move with them."""

    base: tuple[float, ...]
    adapted: tuple[float, ...]

    @classmethod
    def of(cls, base: Any, adapted: Any) -> ScoreShift:
        """Take the best scores of at least one query, ``(n,)`` each; their percentiles are kept."""
        steps = np.linspace(0.0, 1.0, min(len(base), 101))
        return cls(*(tuple(np.quantile(own, steps).tolist()) for own in (base, adapted)))

    @property
    def mean(self) -> float:
        """How much higher the best scores are with the adapter, on average."""
        return float(np.mean(self.adapted) - np.mean(self.base))

    def to_adapted(self, cutoff: float) -> float:
        """Return the cut-off that as many queries pass with the adapter as ``cutoff`` without."""
        return _moved(cutoff, self.base, self.adapted)

    def to_base(self, score: float) -> float:
        """Return a score with the adapter on the base model's scale; a higher one stays higher."""
        return _moved(score, self.adapted, self.base)

    def __str__(self) -> str:
        middle = float(np.median(self.base))
        moved = self.to_adapted(middle)
        return (
            f"the best score of a query is {self.mean:+.3f} with the adapter, on average: a "
            f"cut-off of {middle:.3f} for the base model is one of {moved:.3f} now"
        )


def _moved(score: float, before: Sequence[float], after: Sequence[float]) -> float:
    """Interpolate between quantiles; beyond them a score moves as the nearest does."""
    inside = float(np.clip(score, before[0], before[-1]))
    return float(np.interp(inside, before, after)) + score - inside
