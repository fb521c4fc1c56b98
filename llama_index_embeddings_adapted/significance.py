"""Is the difference between two models more than chance? Paired, per query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
