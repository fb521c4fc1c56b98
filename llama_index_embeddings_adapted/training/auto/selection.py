"""Choosing a pipeline by cross-fitting, and judging the choice on queries without a part in it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...adapters.composites import halfway
from ...adapters.maps import NudgeAdapter
from ...core.arrays import Mask, Rows, l2_normalize
from ...core.encoded import EncodedDataset
from ...errors import AdaptedError
from ...evaluation.reports import LearningCurve
from ...evaluation.retrieval import DEPTH, PerQuery, RetrievalScores, joined
from ...evaluation.verdict import METRIC
from ...evaluation.views import JudgedPart, ScoreWords, apart, candidates_of
from ..closed_form import Spectrum, narrowed, span
from ..options import TrainingOptions
from ..trainer import device_for, each_in_threads, run_in_threads
from .cross_fitting import Fold, QueryBasis, folds
from .pipelines import IDENTITY, NudgeSpec, PipelineFitter, PipelineSpec, QueryOnMappedSpec, work

_SHARES = (0.25, 0.5)  # of the training queries, of a learning curve, before all of them
_WORTH = 0.1  # of the gain: what twice the queries have to add
_FINALISTS = 2  # that a mixture with words is chosen among; 3 and 5 gave about the same
_HEAT = 2  # folds, after which specs that cannot win are left out
_AHEAD = 2.33  # standard errors: one-sided 1 %
_LEAST = 10  # judgements of a kind: fewer put none out
_MOST_JUDGED = 800  # of a fold: 4,000 in all prove a gain of .016 NDCG@10, mostly much less

#: What leaves a candidate out and lets the others go on; torch runs out of memory by RuntimeError.
FAILURES = (AdaptedError, np.linalg.LinAlgError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class QueryMix:
    """Which queries will come.

    ``known_share``, in [0, 1], is that of live queries about documents that training has questions
    for; ``given``: the user said so, and accepts a loss on the others if the mixture gains.
    """

    known_share: float
    given: bool

    @classmethod
    def of(cls, given: float | None, data: EncodedDataset) -> QueryMix:
        """Take what the user said, or estimate it.

        The estimate is the Good-Turing one: the share of relevance judgements whose document is
        asked for by other training queries too. As the questions at hand may have been written
        evenly over the documents, it is not trusted beyond one half. Source: Good 1953, The
        population frequencies of species.
        """
        if given is not None:
            return cls(float(given), True)
        documents = data.canonical_rows[data.relevance.documents]
        asked = np.bincount(documents)
        return cls(float(min(0.5, 1.0 - (asked == 1).sum() / len(documents))), False)


class CrossFittedScores:
    """NDCG@10 of candidates on the judgements of all folds."""

    def __init__(self, parts: Sequence[Fold], mix: QueryMix, same: Rows, clusters: Rows) -> None:
        self.mix = mix
        self.known: Mask = np.concatenate([fold.test.known for fold in parts])
        rows = np.concatenate([fold.test.rows for fold in parts])
        self.groups, self.clusters = same[rows], clusters[rows]
        self.fold = np.repeat(np.arange(len(parts)), [len(fold.test) for fold in parts])
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
        return self._by_part(spec, 1, lambda gain: gain.mean())

    def margins(self, spec: PipelineSpec) -> tuple[float | None, float | None]:
        """Return half the 95 % interval of both means, by the normal distribution."""
        return self._by_part(spec, 2, lambda gain: 1.96 * gain.std(ddof=1) / len(gain) ** 0.5)

    def _by_part(
        self, spec: PipelineSpec, least: int, of: Callable[[PerQuery], Any]
    ) -> tuple[float | None, float | None]:
        gains = (self.gain(spec)[part] for part in (self.known, ~self.known))
        known, new = (float(of(gain)) if len(gain) >= least else None for gain in gains)
        return known, new

    def weights(self, among: Mask) -> PerQuery:
        """Return what each judgement weighs, so that the weighted sum is the expected gain."""
        weights = np.zeros(len(self.known))
        shares = [self.mix.known_share, 1.0 - self.mix.known_share]
        parts = [among & self.known, among & ~self.known]
        if not all(part.any() for part in parts):  # one kind cannot be judged: the other speaks
            shares = [1.0, 1.0]
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

    def racing(self, scores: Mapping[PipelineSpec, PerQuery], among: Mask) -> list[PipelineSpec]:
        """Return the specs that no other beats both on known and on new documents, so far.

        To beat is to lead, in these judgements, by 2.33 standard errors. Source: Maron and Moore
        1993, Hoeffding races; paired differences are taken as normal here.
        """
        parts = [among & kind for kind in (self.known, ~self.known) if kind.any()]

        def beats(one: PerQuery, other: PerQuery) -> bool:
            leads = [(one - other)[part] for part in parts]
            return all(lead.mean() > _AHEAD * lead.std() / len(lead) ** 0.5 for lead in leads)

        if any(part.sum() < _LEAST for part in parts):
            return list(scores)
        return [s for s, own in scores.items() if not any(beats(o, own) for o in scores.values())]

    def choose(self, specs: Sequence[PipelineSpec], among: Mask) -> PipelineSpec:
        """Return the simplest spec that is as good as the best within one standard error.

        Specs are given simplest first, the identity among them; ``among`` says which judgements may
        be looked at. Where there is none, nothing is better than the identity. Source: Breiman et
        al. 1984, section 3.4.3, with the error of the paired difference.
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
    """Mean gains in NDCG@10 of a spec over the base model, 0 where no such query was judged."""

    known: float
    new: float
    expected: float  #: In the mixture.
    no_regression: bool  #: Whether neither part loses, or the user has given the mixture.
    clear: bool = False  #: Whether each part gains by more than a standard error.


@dataclass(frozen=True)
class SearchState:
    """What proposers see: the gains of each candidate so far, simplest first, the identity too."""

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
            pairs = zip((known, new), scores.margins(spec), strict=True)
            clear = all(m is not None and 1.96 * g > m for g, m in pairs if g is not None)
            found[spec] = MeanGains(known or 0.0, new or 0.0, expected, allowed, clear)
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
    """What cross-fitting chose, and the gain it proves."""

    spec: PipelineSpec  #: Chosen on all judgements; to be fitted on everything.
    scores: CrossFittedScores  #: Of all candidates, simplest first.
    chosen: PerQuery  #: The score of each judgement by the spec that the other folds chose.
    failed: dict[PipelineSpec, str]  #: Candidates that could not be fitted, and why.
    #: ``"base"`` and ``"adapted"``: what an exact search finds for each judgement.
    judged: dict[str, RetrievalScores] = field(default_factory=dict)
    finalists: Sequence[PipelineSpec] = ()  #: What a mixture with words may take, identity first.
    parts: Sequence[JudgedPart] = ()  #: What each of them finds by both, fold after fold.
    curve: LearningCurve | None = None  #: What fewer queries gain, where that was asked.


def select(
    data: EncodedDataset,
    search_space: Sequence[Proposer],
    mix: QueryMix,
    options: TrainingOptions,
    *,
    words: ScoreWords | None = None,
    kept: Path | None = None,
    curve: bool = False,
    prove: bool = True,
    judging: Mask | None = None,
    bar: Any = None,
    meanwhile: Callable[[PipelineSpec], Any] | None = None,
) -> Selection:
    """Choose a spec and judge the choice.

    Each proposer builds on what is best so far. In the end, every fold is judged by the spec that
    the *other* folds find best, so that a judgement never takes part in the choice it judges (only
    in which specs are proposed, and race on); the spec to follow is chosen on all.

    On processors, folds are fitted at once, on as many threads as torch has. ``words`` are those of
    the queries; adapters go half of their way beside them where queries cannot ``prove`` a gain;
    queries that are not ``judging``, ``(n,)``, only train; trained maps are in ``kept`` for a run
    after a kill; ``curve`` asks what fewer queries gain; ``bar`` shows :func:`work` done;
    ``meanwhile`` works beside it on the choice.
    """
    search = _Search(data, mix, options, kept, bar, judging)
    search.score([IDENTITY])
    for propose in search_space:
        search.score(propose(SearchState.of(search.scores)))
    found = search.conclude(words, meanwhile, prove)
    return replace(found, curve=search.curve(found.spec)) if curve else found


@dataclass(frozen=True, eq=False)
class FoldJudge:
    """Scores specs on a fold, by a fitter of its training set."""

    fold: Fold
    fitter: PipelineFitter

    def with_share(self, share: float) -> FoldJudge:
        """Return the judge of a fold that trains on a share of the queries, in (0, 1]."""
        train, options = self.fold.train, self.fitter.options
        count = len(train.relevance)
        order = np.random.default_rng(options.seed).permutation(count)
        fewer = train.take(np.sort(order[: max(1, round(share * count))]))
        fitter = PipelineFitter(fewer, options, self.fitter.spectrum)
        return FoldJudge(Fold(fewer, self.fold.test), fitter)

    def prepared(self, spec: PipelineSpec) -> Callable[[], PerQuery]:
        """Fit a spec, and return what scores it; many are best prepared before one is scored."""
        fitter = self.fitter
        if isinstance(spec, NudgeSpec):
            return partial(self._nudged, spec, fitter.nudges(spec.base.lowest_map))
        if isinstance(spec, QueryOnMappedSpec):
            fitter, spec = fitter.on_mapped(spec.document_map), spec.query_side
        elif spec.adapts_documents:
            return partial(self.fold.score, spec.fit(fitter))
        documents = fitter.train.documents
        view = fitter.once("view", "", lambda: QueryBasis(self.fold.test, l2_normalize(documents)))
        return partial(view.score, spec.mixture(view, fitter))

    def _nudged(self, spec: NudgeSpec, nudges: NudgeAdapter) -> PerQuery:
        """Score a spec that moves documents once more, where others of its base came before."""
        fitter, fold = self.fitter, self.fold
        below = fitter.once("adapted", spec.base, lambda: fold.adapted(fitter.fit(spec.base)))
        queries, documents = below
        moved = nudges.scaled(spec.alpha).apply(documents, "document", fold.train.keys)
        return fold.test.score(queries, moved)


class _Search:
    """Folds, what is fitted on each, and the scores so far."""

    def __init__(
        self,
        data: EncodedDataset,
        mix: QueryMix,
        options: TrainingOptions,
        kept: Path | None,
        bar: Any,
        judging: Mask | None = None,
    ) -> None:
        self._data, self._bar = data, bar or tqdm(disable=True)
        self._directions = span(data, seed=options.seed)
        narrow = narrowed(data, self._directions)
        spectrum = Spectrum(narrow.documents)  # the same in all folds
        self._judges = [
            FoldJudge(
                fold,
                PipelineFitter(fold.train, options, spectrum, kept=kept and kept / f"fold {k}"),
            )
            for k, fold in enumerate(folds(narrow, judging, seed=options.seed, most=_MOST_JUDGED))
        ]
        # At once on processor cores; a GPU is busy with one.
        self._at_once = None if device_for(options).type == "cpu" else 1
        self._groups = data.groups
        parts, alike = [judge.fold for judge in self._judges], (data.same, data.clusters)
        self.scores = CrossFittedScores(parts, mix, *alike)
        self._failed: dict[PipelineSpec, str] = {}
        self._tried: set[PipelineSpec] = set()

    def score(self, proposed: Sequence[PipelineSpec]) -> None:
        """Cross-fit specs that were not tried before."""
        specs = [spec for spec in dict.fromkeys(proposed) if spec not in self._tried]
        self._tried.update(specs)
        scores = {spec: np.zeros(len(self.scores.known)) for spec in specs}
        failed: dict[PipelineSpec, str] = {}
        done: set[PipelineSpec] = set()  # in all folds
        every = range(len(self._judges))
        lock = threading.Lock()  # a bar counts for one thread

        def judge(k: int, racing: Collection[PipelineSpec]) -> Iterator[None]:
            judge, mine, prepared = self._judges[k], self.scores.fold == k, {}
            for spec in specs:
                if spec in racing and spec not in failed and spec not in done:
                    try:
                        prepared[spec] = judge.prepared(spec)
                    except FAILURES as cause:
                        failed.setdefault(spec, str(cause))
                share = 0 if done else work(spec, len(judge.fold.train.relevance)) / len(every)
                with lock:
                    if spec in racing:
                        self._bar.update(share)
                    elif self._bar.total:  # less is left than was planned
                        self._bar.total -= share
                yield
            for spec, score in prepared.items():
                try:
                    scores[spec][mine] = score()
                except FAILURES as cause:
                    failed.setdefault(spec, str(cause))
                yield

        def ahead() -> list[PipelineSpec]:
            found = {spec: scores[spec] for spec in specs if spec not in failed}
            return self.scores.racing(found, self.scores.fold < _HEAT)

        run_in_threads([judge(k, specs) for k in every[:_HEAT]], self._at_once)
        while not done.issuperset(left := ahead()):  # again, if what beat others fails later
            run_in_threads([judge(k, left) for k in every[_HEAT:]], self._at_once)
            done.update(left)
        for spec, why in failed.items():
            warnings.warn(f"{spec} cannot be fitted and is left out: {why}", stacklevel=3)
        self._failed.update(failed)
        self.scores.scores.update({spec: scores[spec] for spec in left})

    def conclude(
        self, words: ScoreWords | None, meanwhile: Callable[[PipelineSpec], Any] | None, prove: bool
    ) -> Selection:
        """Choose for each fold on the others, and on all."""
        scores, specs = self.scores, list(self.scores.scores)
        picks = [scores.choose(specs, among) for among in apart(scores.fold, scores.groups)]
        judged = {"base": self._found([IDENTITY] * len(picks)), "adapted": self._found(picks)}
        best = scores.choose(specs, scores.everything)
        finalists = [] if words is None else self._finalists(best)
        works: list[Callable[[], Any]] = [partial(meanwhile, best)] if meanwhile else []
        last = len(works)
        if words is not None:
            asked = finalists, words, prove
            works += [partial(self._with_words, each, *asked) for each in self._judges]
        done = each_in_threads(lambda k: works[k](), len(works), self._at_once)
        chosen = judged["adapted"].values(METRIC)
        return Selection(best, scores, chosen, self._failed, judged, finalists, done[last:])

    def curve(self, spec: PipelineSpec) -> LearningCurve | None:
        """Return what a spec gains by fewer queries; None for the identity and where it fails."""
        if spec == IDENTITY:
            return None
        every = [[judge.with_share(share) for judge in self._judges] for share in _SHARES]
        try:
            scores = [np.concatenate([judge.prepared(spec)() for judge in each]) for each in every]
        except FAILURES:
            return None
        gains = [*(own - self.scores.scores[IDENTITY] for own in scores), self.scores.gain(spec)]
        every.append(self._judges)
        counts = [round(np.mean([len(j.fold.train.relevance) for j in each])) for each in every]
        weights, growth = self.scores.weights(self.scores.everything), gains[-1] - gains[-2]
        means = tuple(float(weights @ gain) for gain in gains)
        least = max(weighted_error(growth, weights), _WORTH * means[-1])
        return LearningCurve(tuple(counts), means, bool(weights @ growth > least))

    def _finalists(self, chosen: PipelineSpec) -> list[PipelineSpec]:
        """Return the best specs: what gains much beside words gains by vectors, too."""
        gains = SearchState.of(self.scores).gains
        allowed = [spec for spec in gains if gains[spec].no_regression]
        best = sorted(allowed, key=lambda spec: -gains[spec].expected)[:_FINALISTS]
        return [spec for spec in gains if spec in {IDENTITY, chosen, *best}]

    def _with_words(
        self, judge: FoldJudge, specs: Sequence[PipelineSpec], words: ScoreWords, prove: bool
    ) -> JudgedPart:
        """Return what specs find in a fold, by words and vectors."""
        train, test = judge.fold.train, judge.fold.test
        given = (test.queries, train.queries, (train.documents, train.keys))
        own = (words(test.rows), test.excluded)
        models = (judge.fitter.fit(spec) for spec in specs)
        found = (candidates_of(m if prove else halfway(m), *given, *own) for m in models)
        groups = self._groups[test.rows]
        part = JudgedPart(test.relevance, *self._ids(test.rows), tuple(found), prove, groups)
        _ = part.grids  # computed here, where folds are at work at once
        return part

    def _ids(self, rows: Rows) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(self._data.query_ids[row] for row in rows), self._data.document_ids

    def _found(self, picks: Sequence[PipelineSpec]) -> RetrievalScores:
        """Return what the judgements of each fold find with its spec, exactly, by whole vectors."""

        def found(k: int) -> RetrievalScores:
            fold, fitter = self._judges[k].fold, self._judges[k].fitter
            train = replace(fold.train, documents=self._data.documents)
            test = replace(fold.test, queries=self._data.queries[fold.test.rows])
            ranked = Fold(train, test).ranked(fitter.fit_whole(picks[k], self._directions), DEPTH)
            known: Any = {"groups": self._groups[test.rows]}
            return RetrievalScores(ranked, test.relevance, *self._ids(test.rows), **known)

        return joined(each_in_threads(found, len(picks), self._at_once))


def weighted_error(values: PerQuery, weights: PerQuery) -> float:
    """Return the standard error of a weighted sum of judgements, weights adding up to 1."""
    there = weights > 0
    centred = values[there] - np.average(values[there], weights=weights[there])
    return float(np.sqrt((weights[there] ** 2 * centred**2).sum()))
