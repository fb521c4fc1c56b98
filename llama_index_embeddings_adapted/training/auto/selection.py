"""Choosing a pipeline by cross-fitting, and judging the choice on queries without a part in it."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...adapters.base import Adapter
from ...core.arrays import Rows, l2_normalize
from ...core.encoded import EncodedDataset
from ...errors import AdaptedError
from ...evaluation.candidates import WordScores
from ...evaluation.held_out import METRIC
from ...evaluation.retrieval import DEPTH, RetrievalScores, joined
from ...evaluation.views import JudgedPart, candidates_of
from ..closed_form import Spectrum, narrowed, span
from ..options import TrainingOptions
from ..trainer import device_for, run_in_threads
from .cross_fitting import Fold, PerQuery, folds
from .pipelines import (
    IDENTITY,
    PipelineFitter,
    PipelineSpec,
    QueryOnMappedSpec,
    QueryView,
    TwoSidedSpec,
)

Mask = NDArray[np.bool_]

ALPHAS = (0.5, 0.75, 1.0)  # parts of the way from where training starts to where it ends
_FINALISTS = 5  # that a mixture with words is chosen among
_MOST_JUDGED = 800  # of a fold: 4,000 in all prove a gain of .016 NDCG@10, mostly much less


#: What leaves a candidate out and lets the others go on; torch runs out of memory by RuntimeError.
FAILURES = (AdaptedError, np.linalg.LinAlgError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class QueryMix:
    """Which queries will come.

    Args:
        known_share: Of live queries about documents that training has questions for, in [0, 1].
        given: Whether the user said so; then a loss on the other documents is accepted if the
            mixture gains.
    """

    known_share: float
    given: bool

    @classmethod
    def of(cls, given: float | None, data: EncodedDataset) -> QueryMix:
        """Take what the user said, or estimate it.

        The estimate is the Good-Turing one: the share of relevance judgements whose document is
        asked for by other training queries too. As the questions at hand may have been written
        evenly over the documents, it is not trusted beyond one half.

        Source:
            Good 1953, The population frequencies of species.
        """
        if given is not None:
            return cls(float(given), True)
        documents = data.canonical_rows[data.relevance.documents]
        asked = np.bincount(documents)
        return cls(float(min(0.5, 1.0 - (asked == 1).sum() / len(documents))), False)


class CrossFittedScores:
    """NDCG@10 of candidates on cross-fitted judgements.

    Args:
        parts: The folds.
        mix: Weighs known against new documents.
    """

    def __init__(self, parts: Sequence[Fold], mix: QueryMix) -> None:
        self.mix = mix
        self.known: Mask = np.concatenate([fold.test.known for fold in parts])
        self.rows = np.concatenate([fold.test.rows for fold in parts])
        sizes = [len(fold.test) for fold in parts]
        self.fold = np.repeat(np.arange(len(parts)), sizes)
        self.scores: dict[PipelineSpec, PerQuery] = {}

    @property
    def everything(self) -> Mask:
        """All judgements."""
        return np.ones(len(self.known), dtype=bool)

    def gain(self, spec: PipelineSpec) -> PerQuery:
        """Return the change of each judgement over the base model."""
        return self.scores[spec] - self.scores[IDENTITY]

    def mean_gains(self, spec: PipelineSpec) -> tuple[float | None, float | None]:
        """Return the mean gain on known and on new documents; None where none was judged."""
        gain = self.gain(spec)
        known, new = (
            float(gain[part].mean()) if part.any() else None for part in (self.known, ~self.known)
        )
        return known, new

    def margins(self, spec: PipelineSpec) -> tuple[float | None, float | None]:
        """Return half the 95 % interval of both means, by the normal distribution."""
        gain = self.gain(spec)
        known, new = (
            float(1.96 * gain[part].std(ddof=1) / part.sum() ** 0.5) if part.sum() > 1 else None
            for part in (self.known, ~self.known)
        )
        return known, new

    def weights(self, among: Mask) -> PerQuery:
        """Return what each judgement weighs, so that the weighted sum is the expected gain."""
        weights = np.zeros(len(self.known))
        shares = [self.mix.known_share, 1.0 - self.mix.known_share]
        parts = [among & self.known, among & ~self.known]
        there = [bool(part.any()) for part in parts]
        if not all(there):  # one kind cannot be judged: the other speaks for it
            shares = [float(t) for t in there]
        for share, part in zip(shares, parts, strict=True):
            if share and part.any():
                weights[part] = share / part.sum()
        return weights

    def no_regression(self, spec: PipelineSpec, among: Mask) -> bool:
        """Whether no part loses, in the mean; where the mix was given, either may.

        Noise is no excuse here, nor is a loss small enough: of dozens of candidates, the best by
        the mixture is mostly the one that loses as much as is allowed.
        """
        if self.mix.given or spec == IDENTITY:
            return True
        gain, parts = self.gain(spec), (among & self.known, among & ~self.known)
        return all(gain[part].mean() >= 0 for part in parts if part.any())

    def choose(self, specs: Sequence[PipelineSpec], among: Mask) -> PipelineSpec:
        """Return the simplest spec that is as good as the best within one standard error.

        Args:
            specs: Simplest first; the identity among them.
            among: Which judgements may be looked at; where there is none, nothing is better
                than the identity.

        Source:
            Breiman et al. 1984, section 3.4.3, with the error of the paired difference.
        """
        if not among.any():
            return IDENTITY
        weights = self.weights(among)
        allowed = [spec for spec in specs if self.no_regression(spec, among)]
        best = max(allowed, key=lambda spec: float(weights @ self.gain(spec)))
        for spec in allowed:
            behind = self.gain(best) - self.gain(spec)
            if float(weights @ behind) <= weighted_error(behind, weights):
                return spec
        return best


@dataclass(frozen=True)
class MeanGains:
    """Mean gains in NDCG@10 of a spec over the base model, 0 where no such query was judged.

    Args:
        known: On known documents.
        new: On new ones.
        expected: In the mixture.
        no_regression: Whether neither part loses, or the user has given the mixture.
    """

    known: float
    new: float
    expected: float
    no_regression: bool


@dataclass(frozen=True)
class SearchState:
    """What is known so far: all that proposers see.

    Args:
        gains: Of each candidate so far, simplest first, the identity among them.
    """

    gains: Mapping[PipelineSpec, MeanGains]

    @classmethod
    def of(cls, scores: CrossFittedScores) -> SearchState:
        """Average the scores of all candidates."""
        weights = scores.weights(scores.everything)
        found = {}
        for spec in scores.scores:
            known, new = scores.mean_gains(spec)
            expected = float(weights @ scores.gain(spec))
            allowed = scores.no_regression(spec, scores.everything)
            found[spec] = MeanGains(known or 0.0, new or 0.0, expected, allowed)
        return cls(found)

    def most(self, specs: Iterable[PipelineSpec], part: str) -> PipelineSpec:
        """Return the one of most ``"known"``, ``"new"`` or ``"expected"`` gain, at all costs."""
        return max([IDENTITY, *specs], key=lambda spec: float(getattr(self.gains[spec], part)))

    def best(self, specs: Iterable[PipelineSpec]) -> PipelineSpec:
        """Return the one of highest expected gain among those by which no part loses."""
        return self.most((spec for spec in specs if self.gains[spec].no_regression), "expected")


#: Takes what is known so far and proposes specs, simplest first.
Proposer = Callable[[SearchState], list[PipelineSpec]]


@dataclass(frozen=True, eq=False)
class Selection:
    """What cross-fitting chose, and the gain it proves.

    Args:
        spec: Chosen on all judgements; to be fitted on everything.
        scores: Of all candidates, simplest first.
        chosen: ``(n,)``: the score of each judgement by the spec that the other folds chose.
        failed: Candidates that could not be fitted, and why.
        judged: ``"base"`` and ``"adapted"``: what an exact search finds for each judgement, with
            the spec that the other folds chose.
        finalists: Specs that a mixture with words may take, the identity first.
        parts: What each of these finds, by vectors and by words, fold after fold; empty without
            words.
    """

    spec: PipelineSpec
    scores: CrossFittedScores
    chosen: PerQuery
    failed: dict[PipelineSpec, str]
    judged: dict[str, RetrievalScores] = field(default_factory=dict)
    finalists: tuple[PipelineSpec, ...] = (IDENTITY,)
    parts: tuple[JudgedPart, ...] = ()


def select(
    data: EncodedDataset,
    search_space: Sequence[Proposer],
    mix: QueryMix,
    options: TrainingOptions,
    *,
    words: WordScores | None = None,
    kept: Path | None = None,
    bar: Any = None,
) -> Selection:
    """Choose a spec and judge the choice.

    Each proposer builds on what is best so far. In the end, every fold is judged by the spec that
    the *other* folds find best, so that a judgement never takes part in the choice it judges (only
    in which specs are proposed at all); the spec to follow is chosen on all.

    On processors, folds are fitted at once, on as many threads as torch has; see
    ``torch.set_num_threads``.

    Args:
        data: The training set.
        search_space: In the order in which proposers are asked.
        mix: Which queries will come.
        options: Of everything trained by gradients; the seed is also that of the folds.
        words: What words say of the documents, for each query; None: vectors only.
        kept: Where trained maps are kept for a run after a kill.
        bar: Shows :func:`work` done in a fold, if at all.
    """
    search = _Search(data, mix, options, kept, bar)
    search.score([IDENTITY])
    for propose in search_space:
        search.score(propose(SearchState.of(search.scores)))
    found = search.conclude()
    return found if words is None else search.with_words(found, words)


#: Of fitting and scoring a spec in a fold: measured on five sets. Of one training, the first part
#: of the way has all the work.
_WORK = {"mnr": 3.0, "linear": 3.0, "corpus": 3.0, "two_sided": 6.0, "nudge": 3.0}


def work(spec: PipelineSpec, queries: int) -> float:
    """Return how much work a spec is in a fold of so many queries, after what it builds upon."""
    last = spec.query_side if isinstance(spec, QueryOnMappedSpec) else spec
    if last.method == "kernel":
        return 0.06 + 0.00013 * queries
    again = getattr(last, "alpha", ALPHAS[0]) != ALPHAS[0]
    return 0.0 if again else _WORK.get(last.method, 0.06)


class FoldJudge:
    """Scores specs on a fold.

    Args:
        fold: What judges.
        fitter: Of its training set.
    """

    def __init__(self, fold: Fold, fitter: PipelineFitter) -> None:
        self._fold, self._fitter = fold, fitter
        self._views: dict[TwoSidedSpec | None, QueryView] = {}

    def prepared(self, spec: PipelineSpec) -> Callable[[], PerQuery]:
        """Fit a spec, and return what scores it; many are best prepared before one is scored."""
        if isinstance(spec, QueryOnMappedSpec):
            view, spec = self._view(spec.document_map), spec.query_side
        elif spec.adapts_documents:
            return functools.partial(self._fold.score, spec.fit(self._fitter))
        else:
            view = self._view(None)
        return functools.partial(view.score, spec.mixture(view))

    def _view(self, document_map: TwoSidedSpec | None) -> QueryView:
        if document_map not in self._views:
            fitter = self._fitter if document_map is None else self._fitter.on_mapped(document_map)
            documents = l2_normalize(fitter.train.documents)
            self._views[document_map] = QueryView(fitter, self._fold.test, documents)
        return self._views[document_map]


class _Search:
    """Folds, what is fitted on each, and the scores so far."""

    def __init__(
        self,
        data: EncodedDataset,
        mix: QueryMix,
        options: TrainingOptions,
        kept: Path | None,
        bar: Any,
    ) -> None:
        self._data, self._bar = data, bar or tqdm(disable=True)
        self._directions = span(data, seed=options.seed)
        narrow = narrowed(data, self._directions)
        self._folds = list(folds(narrow, seed=options.seed, most=_MOST_JUDGED))
        spectrum = Spectrum(narrow.documents)  # the same in all folds
        self._fitters = [
            PipelineFitter(fold.train, options, spectrum, kept=kept and kept / f"fold {k}")
            for k, fold in enumerate(self._folds)
        ]
        self._judges = [
            FoldJudge(fold, fitter) for fold, fitter in zip(self._folds, self._fitters, strict=True)
        ]
        # At once on processor cores; a GPU is busy with one.
        self._at_once = None if device_for(options).type == "cpu" else 1
        self.scores = CrossFittedScores(self._folds, mix)
        self._failed: dict[PipelineSpec, str] = {}

    def score(self, proposed: Sequence[PipelineSpec]) -> None:
        """Cross-fit specs, but for those that have scores or failed."""
        specs = [
            spec
            for spec in dict.fromkeys(proposed)
            if spec not in self.scores.scores and spec not in self._failed
        ]
        scores = {spec: np.zeros(len(self.scores.known)) for spec in specs}
        failed: dict[PipelineSpec, str] = {}
        lock = threading.Lock()  # a bar counts for one thread

        def judge(k: int) -> Iterator[None]:
            judge, mine, prepared = self._judges[k], self.scores.fold == k, {}
            for spec in specs:
                if spec not in failed:
                    try:
                        prepared[spec] = judge.prepared(spec)
                    except FAILURES as cause:
                        failed.setdefault(spec, str(cause))
                with lock:
                    queries = len(self._folds[k].train.relevance)
                    self._bar.update(work(spec, queries) / len(self._folds))
                yield
            for spec, score in prepared.items():
                try:
                    scores[spec][mine] = score()
                except FAILURES as cause:
                    failed.setdefault(spec, str(cause))
                yield

        run_in_threads([judge(k) for k in range(len(self._folds))], self._at_once)
        for spec, why in failed.items():
            warnings.warn(f"{spec} cannot be fitted and is left out: {why}", stacklevel=3)
        self._failed.update(failed)
        self.scores.scores.update({s: found for s, found in scores.items() if s not in failed})

    def conclude(self) -> Selection:
        """Choose for each fold on the others, and on all."""
        scores, specs = self.scores, list(self.scores.scores)
        picks = [scores.choose(specs, scores.fold != k) for k in range(len(self._folds))]
        judged = {"base": self._found([IDENTITY] * len(picks)), "adapted": self._found(picks)}
        best = scores.choose(specs, scores.everything)
        chosen = judged["adapted"].values(METRIC)
        return Selection(best, scores, chosen, self._failed, judged)

    def with_words(self, found: Selection, words: WordScores) -> Selection:
        """Add what the best specs find, each fold by what has not seen it, by words and vectors.

        A mixture is chosen among these few: what gains much beside words gains by vectors, too.
        """
        gains, scores = SearchState.of(self.scores).gains, list(self.scores.scores)
        allowed = [spec for spec in scores if gains[spec].no_regression]
        best = sorted(allowed, key=lambda spec: -gains[spec].expected)[:_FINALISTS]
        finalists = tuple(s for s in scores if s in {IDENTITY, found.spec, *best})
        parts = []
        for fold, fitter in zip(self._folds, self._fitters, strict=True):
            train, test = fold.train, fold.test
            given = (test.queries, train.queries, (train.documents, train.keys))
            own = (words.take(test.rows), test.excluded)
            each = tuple(candidates_of(fitter.fit(spec), *given, *own) for spec in finalists)
            ids = tuple(self._data.query_ids[row] for row in test.rows)
            parts.append(JudgedPart(test.relevance, ids, self._data.document_ids, each))
        return replace(found, finalists=finalists, parts=tuple(parts))

    def _found(self, picks: Sequence[PipelineSpec]) -> RetrievalScores:
        """Return what the judgements of each fold find with its spec."""
        parts = []
        for fold, fitter, spec in zip(self._folds, self._fitters, picks, strict=True):
            adapter = fitter.fit_whole(spec, self._directions)
            ranked = self._ranked(fold, adapter)
            ids = tuple(self._data.query_ids[row] for row in fold.test.rows)
            parts.append(RetrievalScores(ranked, fold.test.relevance, ids, self._data.document_ids))
        return joined(parts)

    def _ranked(self, fold: Fold, adapter: Adapter) -> Rows:
        """Search exactly, with whole vectors."""
        train = replace(fold.train, documents=self._data.documents)
        test = replace(fold.test, queries=self._data.queries[fold.test.rows])
        return Fold(train, test).ranked(adapter, DEPTH)


def weighted_error(values: PerQuery, weights: PerQuery) -> float:
    """Return the standard error of a weighted sum of judgements, weights adding up to 1."""
    there = weights > 0
    centred = values[there] - np.average(values[there], weights=weights[there])
    return float(np.sqrt((weights[there] ** 2 * centred**2).sum()))
