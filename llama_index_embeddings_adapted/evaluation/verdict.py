"""Is a difference more than chance, and what follows from it?

A verdict is a decision and its reason. Its words are made here; exit codes, the colour on a page
and JSON read the decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from ..core.arrays import Keys, Rows
from .retrieval import PerQuery, RetrievalScores

METRIC = "ndcg@10"  #: that decides
Stance = Literal["for", "open", "against"]

#: Queries on known, or on new, documents from which on they decide by themselves. In simulation, a
#: loss of .15 NDCG@10 is then seen five times as often as one that is not there (benchmarks: parts)
FEWEST = 20
#: Judged queries of people from which on a gain may be shipped. Below, an interval lies beside zero
#: by chance nearly twice as often as it says (benchmarks: parts; whole runs: nulls)
FEWEST_TO_SHIP = 20
#: Judged queries of people from which on they alone judge, others only train: 100, less those that
#: the writer of the others was shown
FEWEST_ALONE = 70
#: Sources of queries that no user asked: a gain on them proves nothing of live queries
MADE = ("llm", "structure")
_SURE = 3.1  # standard errors: one-sided, one in a thousand
_WORTH_SAYING = 10  # times the queries at hand: more than that is no advice
RESAMPLES = 9_999
CONFIDENCE = 0.95
_MANY = 1_000  # queries from which on resampling only costs time, unless few of them differ
_FEW = 100  # values of equal weight that make up the variance
_VALUES_PER_BATCH = 4_000_000
_DRAWN_PER_BATCH = 200_000  # what a cache holds
_NIL = 1e-6  # a mean difference that is rounding
_ROUNDING = 1e-9  # of two ways to compute one score
#: Times the standard error, a gain that is proven 9 times in 10 (two-sided 5 %)
PROVABLE = 3.24
Interval = tuple[float, float, float]
"""Mean, and the lower and upper end of its interval."""


class Decision(Enum):
    """What to do: with an adapter (first six), of two models, with an adapter in service."""

    stance: Stance  #: Does that speak for the new model (or the adapter in service) or against it?
    words: str  #: How it is printed.

    SHIP = "ship", "for"
    PROMISING = "promising", "open"
    INCONCLUSIVE = "inconclusive", "open"
    KEEP_BASE = "keep_base", "against", "keep the base model"
    SATURATED = "saturated", "against"
    DO_NOT_SHIP = "do_not_ship", "against", "do not ship"

    BETTER = "better", "for"
    WORSE = "worse", "against"

    KEEP = "keep", "for"
    WATCH = "watch", "for", "keep, and look again"
    RETRAIN = "retrain", "against"

    def __new__(cls, value: str, stance: Stance, words: str = "") -> Decision:
        """Make a member whose value is a name for JSON."""
        member = object.__new__(cls)
        member._value_, member.stance, member.words = value, stance, words or value
        return member


class Verdict(str):
    """A decision and its reason; as a string, both in words.

    A string, so that it can be printed, compared and written as JSON as it is.
    """

    decision: Decision
    reason: str
    difference: Difference | None  #: The numbers it rests on, where there are any.

    def __new__(
        cls, decision: Decision, reason: str, difference: Difference | None = None
    ) -> Verdict:
        """Put decision and reason into words."""
        verdict = super().__new__(cls, f"{decision.words}: {reason}")
        verdict.decision, verdict.reason, verdict.difference = decision, reason, difference
        return verdict

    def __getnewargs__(self) -> tuple[Decision, str, Difference | None]:  # type: ignore[override]
        return self.decision, self.reason, self.difference


SATURATED = Verdict(Decision.SATURATED, "the base model is near its ceiling; keep it")
LOOKS_RANDOM = Verdict(
    Decision.DO_NOT_SHIP,
    "the base model ranks the relevant documents no better than randomly assigned documents: too "
    "few pairs, one document that all ask for, or mismatched ids",
)


def _of_people(sources: Mapping[str, int]) -> int:
    return sum(count for source, count in sources.items() if source not in MADE)


def prove(sources: Mapping[str, int]) -> bool:
    """Say whether a gain on queries of such sources, how many by each, is one of live queries."""
    return _of_people(sources) >= FEWEST_TO_SHIP and set(MADE).isdisjoint(sources)


def gaining(difference: Difference, sources: Mapping[str, int] | None = None) -> Verdict:
    """Return the verdict on a significant gain; ``sources`` says how many judged are from where."""
    sources = sources or {"unknown": difference.queries}
    numbers = difference.numbers.replace(" ", " NDCG@10 ", 1)
    if prove(sources):
        return Verdict(Decision.SHIP, f"held-out queries gain {numbers}", difference)
    real, needed = _of_people(sources), f"at least {FEWEST_TO_SHIP} are needed"
    if real >= FEWEST_TO_SHIP:
        needed = f"an LLM or headings gave the others; {FEWEST_ALONE} would judge alone"
    few = f"{real or 'none'} of those judged, {needed}"
    reason = f"judge on real queries before shipping; {few}; held-out ones gain {numbers}"
    return Verdict(Decision.PROMISING, reason, difference)


def dropping(documents: str, difference: Difference) -> Verdict:
    """Return the verdict on a loss on known or on new documents."""
    return Verdict(Decision.DO_NOT_SHIP, f"NDCG@10 drops on {documents} documents", difference)


def with_small_parts(verdict: Verdict, known: int, new: int) -> Verdict:
    """Add to a verdict on which documents queries are too few to show a loss."""
    counts = {"known": known, "new": new}
    few = [f"{count} on {documents}" for documents, count in counts.items() if 0 < count < FEWEST]
    if not few:
        return verdict
    reason = f"{verdict.reason}; too few queries to show a loss: {' and '.join(few)} documents"
    return Verdict(verdict.decision, reason, verdict.difference)


def inconclusive(difference: Difference, reason: str = "no significant gain or loss") -> Verdict:
    """Return the verdict on what may be chance, with the queries that would settle it if few."""
    needed, queries = difference.queries_needed, difference.queries
    if queries < needed < _WORTH_SAYING * queries:
        reason += f"; about {needed - queries:,} more judged queries would settle it"
    return Verdict(Decision.INCONCLUSIVE, reason, difference)


@dataclass(frozen=True)
class Difference:
    """The mean difference of a metric between two models on the same queries."""

    metric: str
    queries: int
    mean: float  #: New minus base.
    low: float  #: Lower end of the 95 % interval.
    high: float
    p_value: float  #: Two-sided: how often chance alone gives a difference this large.
    deviation: float  #: Standard deviation of the per-query difference.
    seen: str = ""  #: Queries that the new model was trained on: gains on them prove nothing.

    @property
    def provable(self) -> float:
        """The gain these queries can prove 9 times in 10 (two-sided 5 %): 3.24 · sd / √n."""
        return float(PROVABLE * self.deviation / self.queries**0.5)

    @property
    def beyond_luck(self) -> bool:
        """Is a gain rarer than one in a thousand? Shuffled pairs have many of one in twenty."""
        return self.low > 0 and self.mean > _SURE * self.deviation / self.queries**0.5

    @property
    def queries_needed(self) -> int:
        """About how many judged queries would settle a difference of this size; 0 if it is nil."""
        return 0 if abs(self.mean) < _NIL else round((PROVABLE * self.deviation / self.mean) ** 2)

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and verdict, as JSON knows them."""
        verdict = self.verdict
        return {**asdict(self), "verdict": verdict, "decision": verdict.decision.value}

    @property
    def verdict(self) -> Verdict:
        """What the numbers say."""
        if self.low > 0 and self.seen:
            return Verdict(Decision.INCONCLUSIVE, f"{self.seen}: split first", self)
        if self.low > 0:
            return Verdict(Decision.BETTER, "the interval lies above zero", self)
        if self.high < 0:
            return Verdict(Decision.WORSE, "the interval lies below zero", self)
        if self.deviation == 0.0:
            return Verdict(Decision.INCONCLUSIVE, "the same on every query", self)
        return inconclusive(self)

    @property
    def numbers(self) -> str:
        """Mean and interval, to be read."""
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def __str__(self) -> str:
        counted = f"p = {self.p_value:.4f}, {self.queries} queries"
        return f"{self.metric} {self.numbers}, {counted}: {self.verdict}"


def compared(
    base: RetrievalScores, new: RetrievalScores, *, metric: str = METRIC, seed: int = 0
) -> Difference:
    """Compare two models on the same queries, see :func:`paired_difference`."""
    settings: Any = {"metric": metric, "seed": seed, "seen": new.seen, "groups": base.groups}
    return paired_difference(base.values(metric), new.values(metric), **settings)


def paired_difference(
    base: PerQuery,
    new: PerQuery,
    *,
    metric: str = METRIC,
    seed: int = 0,
    seen: str = "",
    groups: Keys | Rows | None = None,
    queries: int | None = None,
) -> Difference:
    """Compare per-query values, ``(n,)``, of two models on the same queries.

    The interval is a paired percentile bootstrap, the p-value a randomisation test that swaps the
    two models per query (Smucker, Allan and Carterette 2007). Queries of one of the ``groups``,
    ``(n,)``, are one observation, weighing as many; others are taken as independent: where many
    ask for one document, the truth is a little less certain than the interval. ``queries`` is how
    many are told of, by default as many as observations.
    """
    differences: PerQuery = np.asarray(new, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    differences[np.abs(differences) < _ROUNDING] = 0.0
    if groups is not None and len(names := np.unique(groups)) < len(differences):
        summed = np.bincount(np.searchsorted(names, groups), differences)
        differences = np.asarray(summed * (len(names) / len(differences)), dtype=np.float64)
    count, mean = len(differences), float(differences.mean())
    deviation = float(differences.std(ddof=1)) if count > 1 else 0.0
    if deviation == 0.0:
        # Nothing varies: resampling would only divide by zero. One query proves nothing.
        p_value = 2.0 ** (1 - count) if count > 1 and mean != 0.0 else 1.0
        proven = p_value < 1 - CONFIDENCE or not mean
        low, high = (mean, mean) if proven else (-abs(mean), abs(mean))
    else:
        ((low, high),) = mean_intervals(differences[:, None], seed=seed)
        p_value = _randomisation(differences, seed=seed)
    told = queries or count
    deviation *= (told / count) ** 0.5
    return Difference(metric, told, mean, low, high, p_value, deviation, seen)


def _randomisation(differences: PerQuery, *, seed: int) -> float:
    """Return twice the share of sign changes whose sum is as far on the rarer side, at most 1."""
    total, slack = float(differences.sum()), 1e-12 * np.abs(differences).sum()
    count, above, below = len(differences), 0, 0
    kept: Any
    exact = 2**count <= RESAMPLES
    random, resamples = np.random.default_rng(seed), 2**count if exact else RESAMPLES
    step = max(1, _VALUES_PER_BATCH // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if exact:
            kept = np.arange(start, start + size)[:, None] >> np.arange(count) & 1
        else:
            drawn = np.frombuffer(random.bytes(-(-size * count // 8)), np.uint8)
            kept = np.unpackbits(drawn, count=size * count)
        sums = 2.0 * (kept.reshape(size, count).astype(np.float32) @ differences) - total
        above += int(np.count_nonzero(sums >= total - slack))
        below += int(np.count_nonzero(sums <= total + slack))
    self_too = not exact  # a random sample counts the data themselves, too
    return min(1.0, 2.0 * (min(above, below) + self_too) / (resamples + self_too))


def mean_interval(values: PerQuery) -> Interval:
    """Return the mean of values in [0, 1], ``(n,)``, and its 95 % interval; of one, all of it."""
    if len(values) < 2:
        return float(np.mean(values)), 0.0, 1.0
    ((low, high),) = mean_intervals(np.asarray(values, dtype=np.float64)[:, None])
    return float(np.mean(values)), max(0.0, low), min(1.0, high)


def mean_intervals(values: PerQuery, *, seed: int = 0) -> list[tuple[float, float]]:
    """Return the 95 % percentile interval of the mean of each column of ``(n, k)``.

    Of 1,000 values and more, unless few make up the variance, it is what resampling would find, as
    near as another bootstrap is. Source: Hall 1992, The bootstrap and Edgeworth expansion, 3.5.
    """
    tails, count = (0.5 - 0.5 * CONFIDENCE, 0.5 + 0.5 * CONFIDENCE), len(values)
    means, deviations = values.mean(axis=0), values.std(axis=0)
    scaled = (values - means) / np.maximum(deviations, 1e-12)
    # If few made up the variance, such fourth powers were large.
    if count >= _MANY and (scaled**4).mean(axis=0).max() <= count / _FEW:
        cubes = (scaled**3).mean(axis=0)
        at = np.array([[NormalDist().inv_cdf(tail)] for tail in tails])
        ends = means + deviations / count**0.5 * (at + cubes * (at**2 - 1) / (6 * count**0.5))
    else:
        random, step = np.random.default_rng(seed), max(1, _DRAWN_PER_BATCH // count)
        drawn = []
        for start in range(0, RESAMPLES, step):
            size = min(step, RESAMPLES - start)
            rows = random.integers(count, size=(size, count), dtype=np.int32)
            rows += np.arange(0, size * count, count, dtype=np.int32)[:, None]
            times = np.bincount(rows.ravel(), minlength=size * count)  # that each value is drawn
            drawn.append(times.reshape(size, count) @ values / count)
        ends = np.quantile(np.concatenate(drawn), tails, axis=0)
    return list(zip(*ends.tolist(), strict=True))
