"""Retrieval metrics on ranked grades, one value per query.

All follow the definitions of ``trec_eval``: NDCG with linear gain, recall and MAP over all relevant
documents of the query, also those that were not retrieved.

Is the difference between two models more than chance? Paired, per query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.core.arrays import Rows
from llama_index_embeddings_adapted.core.encoded import Relevance
from llama_index_embeddings_adapted.errors import MetricError, OptionError

PerQuery = NDArray[np.float64]
Metric = Callable[[PerQuery, Relevance, int], PerQuery]


def hit_rate(grades: PerQuery, relevance: Relevance, k: int) -> PerQuery:
    """1 where a relevant document is among the first ``k``, else 0."""
    return np.asarray((grades[:, :k] > 0).any(axis=1), dtype=np.float64)


def mrr(grades: PerQuery, relevance: Relevance, k: int) -> PerQuery:
    """1 / rank of the first relevant document among the first ``k``, else 0."""
    hits = grades[:, :k] > 0
    return np.asarray(np.where(hits.any(axis=1), 1.0 / (1 + hits.argmax(axis=1)), 0.0))


def precision(grades: PerQuery, relevance: Relevance, k: int) -> PerQuery:
    """Share of the ``k`` places that hold a relevant document."""
    return np.asarray((grades[:, :k] > 0).sum(axis=1) / k)


def recall(grades: PerQuery, relevance: Relevance, k: int) -> PerQuery:
    """Share of the relevant documents found among the first ``k``."""
    return np.asarray((grades[:, :k] > 0).sum(axis=1) / relevance.counts)


def average_precision(grades: PerQuery, relevance: Relevance, k: int) -> PerQuery:
    """Precision at each relevant document among the first ``k``, over all relevant ones."""
    hits = grades[:, :k] > 0
    at = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((at * hits).sum(axis=1) / relevance.counts)


def ndcg(grades: PerQuery, relevance: Relevance, k: int) -> PerQuery:
    """Discounted gain of the first ``k`` over that of the best possible order.

    Source: Järvelin and Kekäläinen 2002, with gain = grade and discount 1 / log2(rank + 1).
    """
    found = grades[:, :k] @ _discount(grades[:, :k].shape[1])
    return found / ideal_gain(relevance, k)


def ideal_gain(relevance: Relevance, k: int) -> PerQuery:
    """Return the discounted gain of the best order, ``(n,)``."""
    best = np.lexsort((-relevance.grades, relevance.queries))
    rank = np.arange(len(best)) - np.repeat(relevance.offsets[:-1], relevance.counts)
    ideal = Relevance(relevance.offsets, relevance.documents[best], relevance.grades[best])
    return ideal.discounted_gain(rank, k)


METRICS: dict[str, Metric] = {
    "hit_rate": hit_rate,
    "mrr": mrr,
    "ndcg": ndcg,
    "recall": recall,
    "precision": precision,
    "map": average_precision,
}


def compute(name: str, ranked: Rows, relevance: Relevance, *, corpus_size: int) -> PerQuery:
    """Compute a metric such as ``"ndcg@10"``.

    Args:
        name: A key of :data:`METRICS`, ``@``, and a cut-off ``>= 1``.
        ranked: ``(n, depth)``, document rows per query, best first.
        relevance: Of the same ``n`` queries, each with at least one relevant document.
        corpus_size: Number of documents searched.

    Returns:
        ``(n,)``, in [0, 1].

    Raises:
        MetricError: No such metric, or a cut-off deeper than ``ranked``.
    """
    metric, k = parse(name)
    if k > ranked.shape[1] and ranked.shape[1] < corpus_size:
        raise MetricError(
            f"{name}: only {ranked.shape[1]} documents per query were retrieved. "
            f"Evaluate with a k of {k} among ks."
        )
    return METRICS[metric](relevance.grades_at(ranked), relevance, k)


def parse(name: str) -> tuple[str, int]:
    """Split ``"ndcg@10"`` in its metric and cut-off.

    Raises:
        MetricError: No such metric, or no cut-off.
    """
    metric, _, cut = name.partition("@")
    if metric not in METRICS or not cut.isdecimal() or int(cut) < 1:
        raise MetricError(
            f'"{name}": expected a metric and a cut-off such as "ndcg@10"; '
            f"metrics are {', '.join(METRICS)}."
        )
    return metric, int(cut)


def check_ks(ks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the cut-offs as a tuple of ints.

    Raises:
        OptionError: None given, or one that is not a positive whole number.
    """
    cuts = tuple(ks)
    if not cuts or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in cuts):
        raise OptionError(f"ks: expected whole numbers >= 1, got {ks!r}.")
    return cuts


def _discount(k: int) -> PerQuery:
    return np.asarray(1.0 / np.log2(np.arange(2, k + 2)))


RESAMPLES = 9_999
CONFIDENCE = 0.95
_VALUES_PER_BATCH = 4_000_000
_NIL = 1e-6  # a mean difference that is rounding

Interval = tuple[float, float, float]
"""Mean, and the lower and upper end of its interval."""


@dataclass(frozen=True)
class Difference:
    """The mean difference of a metric between two models on the same queries.

    Args:
        metric: Such as ``"ndcg@10"``.
        queries: How many were compared.
        mean: New minus base.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided: how often chance alone gives a difference this large.
        deviation: Standard deviation of the per-query difference.
    """

    metric: str
    queries: int
    mean: float
    low: float
    high: float
    p_value: float
    deviation: float

    @property
    def provable(self) -> float:
        """The gain these queries can prove 9 times in 10 (one-sided 5 %): 2.93 · sd / √n."""
        return float(2.93 * self.deviation / self.queries**0.5)

    @property
    def queries_needed(self) -> int:
        """About how many judged queries would settle a difference of this size; 0 if it is nil."""
        if abs(self.mean) < _NIL:
            return 0
        return round((2.93 * self.deviation / self.mean) ** 2)

    @property
    def verdict(self) -> str:
        """What the numbers say, in words."""
        if self.low > 0:
            return "better: the interval lies above zero"
        if self.high < 0:
            return "worse: the interval lies below zero"
        if self.deviation == 0.0:
            return "the same on every query"
        more = self.queries_needed - self.queries
        if more > 0 and self.mean:
            return f"not proven: about {more:,} more judged queries would settle it"
        return "not proven: the interval includes zero"

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], "
            f"p = {self.p_value:.4f}, {self.queries} queries: {self.verdict}"
        )


def paired_difference(
    base: NDArray[np.float64], new: NDArray[np.float64], *, metric: str, seed: int = 0
) -> Difference:
    """Compare per-query values of two models.

    The interval is a paired percentile bootstrap, the p-value a randomisation test that swaps the
    two models per query (Smucker, Allan and Carterette 2007). Queries are taken as independent;
    where many ask for one document, the truth is a little less certain than the interval.

    Args:
        base: ``(n,)``.
        new: ``(n,)``, same queries in the same order.
        metric: Its name, for the result.
        seed: Of the resampling.
    """
    from scipy import stats  # half a second to import: only who compares pays

    differences = np.asarray(new, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    count, mean = len(differences), float(differences.mean())
    deviation = float(differences.std(ddof=1)) if count > 1 else 0.0
    if deviation == 0.0:
        # Nothing varies: resampling would only divide by zero. One query proves nothing.
        sure = count > 1 and mean != 0.0
        p_value = 2.0 ** (1 - count) if sure else 1.0
        low, high = (
            (mean, mean) if p_value < 1 - CONFIDENCE or not mean else (-abs(mean), abs(mean))
        )
        return Difference(metric, count, mean, low, high, p_value, deviation)
    low, high = _bootstrap(differences, seed=seed)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=max(1, _VALUES_PER_BATCH // count),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return Difference(
        metric,
        count,
        mean,
        low,
        high,
        float(test.pvalue),
        deviation,
    )


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Return the mean of a metric over queries and its 95 % interval, both in [0, 1].

    One query says nothing of others: its interval is all of [0, 1].

    Args:
        values: ``(n,)``, in [0, 1].
    """
    if len(values) < 2:
        return float(np.mean(values)), 0.0, 1.0
    found = _bootstrap(np.asarray(values, dtype=np.float64), seed=0)
    return float(np.mean(values)), max(0.0, found[0]), min(1.0, found[1])


def _bootstrap(values: NDArray[np.float64], *, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean."""
    from scipy import stats  # half a second to import: only who compares pays

    if np.ptp(values) == 0.0:  # resampling would only divide by zero
        return float(values.min()), float(values.max())
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=max(1, _VALUES_PER_BATCH // len(values)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
