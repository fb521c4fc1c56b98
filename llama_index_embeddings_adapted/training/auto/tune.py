"""``method="auto"`` and the single methods: choose, judge, refit on everything, decide."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...adapters.base import Adapter
from ...adapters.maps import LinearAdapter
from ...core.arrays import Mask, Rows, Vectors
from ...core.encoded import EncodedDataset
from ...core.files import library_version
from ...evaluation import verdict as verdicts
from ...evaluation.held_out import PartReport, Parts, labels_look_random
from ...evaluation.reports import SelectionReport
from ...evaluation.retrieval import PerQuery, RetrievalScores, search
from ...evaluation.verdict import METRIC, PROVABLE, Decision, Verdict
from ...evaluation.views import ScoreWords, ViewsReport, judge_views
from ..closed_form import MOST_KEYS, narrowed, span
from ..options import LOOP, TrainingOptions
from .cross_fitting import TooLittleError
from .pipelines import IDENTITY, PipelineFitter, PipelineSpec
from .search_space import check_methods, planned, search_space
from .selection import FAILURES, CrossFittedScores, QueryMix, Selection, select

MOST_QUERIES = 6_000  # that are cross-fitted; beyond, a sample stands for all
MOST_DOCUMENTS = 20_000
_OF_A_FOLD = 0.64  # of the queries are trained on
_CANDIDATES = 1_024  # documents that compete in a training step
_FINER = 2.0  # steps of the fit on everything, which is one of dozens; documents do not gain by it
_LARGEST_DEVIATION = 0.34  # of the per-query difference, measured on six sets: .14 to .34
_LEVEL = 0.05  # two-sided, as that of the interval
_TOLERANCE = 0.005  # of the base model's score: a loss this small speaks against no verdict


@dataclass(frozen=True, eq=False)
class AutoResult:
    """What tuning found."""

    adapter: Adapter  #: To be served: the candidate, or the identity if the verdict is against it.
    candidate: Adapter  #: The chosen spec, fitted on everything.
    choice: SelectionReport
    parts: Parts  #: Candidate against base model; all queries weighted as live ones are expected.
    #: ``"base"`` and ``"adapted"``: every judgement, unweighted.
    judged: dict[str, RetrievalScores]
    views: ViewsReport | None = None  #: What words and a prior add, where that was asked.
    mixed: Adapter | None = None  #: The adapter of the mixture, fitted on everything.


def tune(
    data: EncodedDataset,
    options: TrainingOptions,
    *,
    words: Callable[[EncodedDataset], ScoreWords] | None = None,
    kept: Path | None = None,
    curve: bool = False,
    prove: bool = True,
    judges: Collection[str] | None = None,
    show_progress: bool = True,
) -> AutoResult:
    """Choose a pipeline by cross-fitting, fit it on everything, and say whether to ship it.

    No query is judged by what saw it. ``words`` says what they find, None: vectors only; ``kept``
    is a folder for what a run after a kill need not train again, gone after success; ``curve`` asks
    what fewer queries gain; ``prove`` says whether the queries can prove a gain; ``judges`` are the
    ids of those that judge, others only train; None: all.
    """
    methods = check_methods(options.method, options.adapts)
    sample, sampled = _sampled(data, options.seed, judges)
    judging = _judging(sample, judges)
    mix, count = QueryMix.of(options.expect, data), len(np.unique(sample.same[judging]))
    provable = PROVABLE * _LARGEST_DEVIATION / count**0.5
    if show_progress:
        tqdm.write(_announcement(count, provable, mix, sampled))
    looks_random = labels_look_random(sample, seed=options.seed, tell=show_progress)
    options = replace(options, max_candidates=min(options.max_candidates, _CANDIDATES))
    identity = LinearAdapter.identity(data.queries.shape[1])
    known: Any = {"expect": mix.known_share, "expect_told": mix.given, "provable": provable}
    choice: Callable[..., SelectionReport] = partial(SelectionReport, sampled=sampled, **known)
    everything = _Everything(data, options)
    queries = len(sample.relevance), len(data.relevance)
    with _bar(methods, options.adapts, *queries, words is not None, show_progress) as bar:
        try:
            found = words(sample) if words and not looks_random else None
            place = kept and _place(kept, sample, judging, options)
            space = search_space(methods, options.adapts)
            asked: Any = {"words": found, "kept": place, "curve": curve, "bar": bar, "prove": prove}
            asked["judging"] = judging
            selection = select(sample, space, mix, options, meanwhile=everything.beside, **asked)
        except TooLittleError as cause:
            return _base_kept(data, identity, choice, str(cause))
        candidate, failure = everything.fit(selection.spec)
        bar.update(bar.total - bar.n if show_progress else 0)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    base = selection.judged["base"].values(METRIC)
    parts = _parts(selection.scores, base, selection.chosen)
    verdict = _judge(selection, parts)
    if candidate is None:
        candidate, verdict = identity, Verdict(Decision.DO_NOT_SHIP, failure)
    if looks_random and not (parts.new and parts.new.difference.beyond_luck):
        verdict = verdicts.LOOKS_RANDOM  # generalising would be no artefact
    report = choice(str(selection.spec), verdict, **_candidates(selection))
    served = candidate if report.ship or options.ship == "always" else identity
    mixture = _mixture(selection, base, candidate, everything)
    return AutoResult(served, candidate, report, parts, selection.judged, *mixture)


def _candidates(selection: Selection) -> dict[str, Any]:
    """Return what a report says of all candidates."""
    scores, named = selection.scores, {"gains": "mean_gains", "margins": "margins"}
    found: dict[str, Any] = {
        name: {str(spec): getattr(scores, of)(spec) for spec in scores.scores}
        for name, of in named.items()
    }
    failed = {str(spec): why for spec, why in selection.failed.items()}
    return {**found, "failed": failed, "curve": selection.curve}


def _base_kept(
    data: EncodedDataset, base: Adapter, choice: Callable[..., SelectionReport], why: str
) -> AutoResult:
    """Keep the base model where nothing can be judged, and say what is missing."""
    found = search(data, data.queries, data.documents)
    part = _part(found.values(METRIC), found.values(METRIC), found.groups)
    verdict = Verdict(Decision.KEEP_BASE, why)
    report = choice(str(IDENTITY), verdict, sampled="", gains={}, failed={})
    judged = {"base": found, "adapted": found}
    return AutoResult(base, base, report, Parts(part, None, None), judged)


def _bar(
    methods: Sequence[str], adapts: str, sample: int, queries: int, words: bool, show: bool
) -> Any:
    """Return a bar with an estimate of the time for all that follows.

    The fit on everything grows with the third power of the queries, as kernels do.
    """
    fold = _OF_A_FOLD * sample
    last = 1.0 + 4.0 * words + 0.4 * (min(queries, MOST_KEYS) / fold) ** 3
    return tqdm(
        total=planned(methods, adapts, int(fold)) + last,
        desc="Cross-fitting",
        bar_format="{l_bar}{bar}| {elapsed}<{remaining}",
        smoothing=0.0,  # remaining by the mean rate
        disable=not show,
    )


def _mixture(
    selection: Selection, base: PerQuery, candidate: Adapter, everything: _Everything
) -> tuple[ViewsReport | None, Adapter | None]:
    """Choose among the finalists beside words and a prior, and fit the choice on everything."""
    scores = selection.scores
    if not selection.parts:
        return None, None
    views = judge_views(
        selection.parts,
        scores.fold,
        scores.known,
        share=scores.mix.known_share,
        given=scores.mix.given,
        summarise=lambda _, chosen: _parts(scores, base, chosen.values(METRIC)),
    )
    spec = selection.finalists[views.model]
    if spec == selection.spec:
        return views, candidate
    mixed, _ = everything.fit(spec)
    return (views, mixed) if mixed is not None else (None, None)


def _place(kept: Path, data: EncodedDataset, judging: Mask, options: TrainingOptions) -> Path:
    """Return the folder of this data and these options; those of others are removed."""
    trained = [getattr(options, name) for name in sorted(LOOP | {"device", "seed"})]
    digest = hashlib.sha256(repr((trained, library_version())).encode())
    qrels = (vars(each).values() for each in (data.relevance, data.negatives, data.hidden) if each)
    for array in (data.queries, data.documents, data.groups, judging, *chain(*qrels)):
        digest.update(np.ascontiguousarray(array).tobytes())
    place = kept / digest.hexdigest()[:16]
    for other in kept.glob("*") if kept.exists() else ():
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    return place


class _Everything:
    """Fits specs on all queries; what they share is fitted once."""

    def __init__(self, data: EncodedDataset, options: TrainingOptions) -> None:
        self._data, self._options = data, options
        self.fit = cache(self._fit)

    @cached_property
    def _fitter(self) -> tuple[PipelineFitter, Vectors]:
        directions = span(self._data, seed=self._options.seed)
        # As queries are more, so that each is learned from about as often as in a fold.
        longer = 1 / _OF_A_FOLD
        narrow = narrowed(self._data, directions)
        finer = _FINER if self._options.adapts == "query" else 1.0
        return PipelineFitter(narrow, self._options, longer=longer, finer=finer), directions

    @property
    def beside(self) -> Callable[[PipelineSpec], Any] | None:
        """What fits it beside the folds; none of far more than they have: it takes all threads."""
        data = self._data
        many = len(data.relevance) > 2 * MOST_QUERIES or len(data.documents) > 2 * MOST_DOCUMENTS
        return None if many else self.fit

    def _fit(self, spec: PipelineSpec) -> tuple[Adapter | None, str]:
        """Return the adapter; or None and why it fails, as cross-fitting is not lost."""
        try:
            fitter, directions = self._fitter
            return fitter.fit_whole(spec, directions), ""
        except FAILURES as cause:
            failure = f"{spec} fails on all pairs: {cause}"
            warnings.warn(f"The base model is kept, as {failure}", stacklevel=3)
            return None, failure


def _announcement(queries: int, provable: float, mix: QueryMix, sampled: str) -> str:
    source = "as you said" if mix.given else "estimated; pass expect=… if you know better"
    return (
        f"{queries} judged queries can prove a gain of {provable:.3f} NDCG@10, often less. "
        f"{mix.known_share:.0%} of live queries are taken to ask for documents that have "
        f"training questions ({source}).{' ' + sampled if sampled else ''}"
    )


def _judging(data: EncodedDataset, judges: Collection[str] | None) -> Mask:
    return np.isin(data.query_ids, data.query_ids if judges is None else list(judges))


def _sampled(
    data: EncodedDataset, seed: int, judges: Collection[str] | None = None
) -> tuple[EncodedDataset, str]:
    """Cut a large set, queries that judge last, to what cross-fitting takes minutes for."""
    random = np.random.default_rng(seed)
    said = []
    if len(data.relevance) > MOST_QUERIES:
        said.append(f"{MOST_QUERIES} of {len(data.relevance)} queries")
        order = random.permutation(len(data.relevance))
        order = order[np.argsort(~_judging(data, judges)[order], kind="stable")]
        data = data.take(np.sort(order[:MOST_QUERIES]))
    if len(data.documents) > MOST_DOCUMENTS:
        asked = np.unique(data.canonical_rows[data.relevance.documents])
        others = np.setdiff1d(np.unique(data.canonical_rows), asked)
        room = max(0, MOST_DOCUMENTS - len(asked))
        if room < len(others):
            kept = np.union1d(asked, random.choice(others, size=room, replace=False))
            said.append(f"{len(kept)} of {len(data.documents)} documents")
            data = with_documents(data, kept)
    return data, f"Cross-fitting takes a sample of {' and '.join(said)}." if said else ""


def with_documents(data: EncodedDataset, rows: Rows) -> EncodedDataset:
    """Keep these documents, which hold every relevant one's first twin."""
    first = data.canonical_rows[data.relevance.documents]
    return replace(
        data,
        documents=data.documents[rows],
        relevance=replace(data.relevance, documents=first).among(rows),
        document_ids=tuple(data.document_ids[row] for row in rows),
        canonical_rows=np.arange(len(rows)),
        keys=data.keys[rows],
        negatives=None if data.negatives is None else data.negatives.among(rows),
        hidden=None if data.hidden is None else data.hidden.among(rows),
    )


def _parts(scores: CrossFittedScores, base: PerQuery, chosen: PerQuery) -> Parts:
    """Compare what was chosen with the base model; overall as live queries are expected.

    A query that is judged twice is one observation, so that the interval is not too narrow; so are
    queries for the same documents, where these are new: whether live ones gain is up to documents.
    """
    known, new = (
        _part(base[keep], chosen[keep], who[keep], scores.groups[keep]) if keep.any() else None
        for keep, who in ((scores.known, scores.groups), (~scores.known, scores.clusters))
    )
    weights = scores.weights(scores.everything) * len(base)
    overall = _part(weights * base, weights * chosen, scores.clusters, scores.groups)
    return Parts(overall, known, new)


def _part(base: PerQuery, chosen: PerQuery, groups: Any = None, queries: Any = None) -> PartReport:
    counted = None if queries is None else len(np.unique(queries))
    difference = verdicts.paired_difference(base, chosen, groups=groups, queries=counted)
    return PartReport({METRIC: float(base.mean())}, {METRIC: float(chosen.mean())}, difference)


def _judge(selection: Selection, parts: Parts) -> Verdict:
    overall, known, new = parts
    difference = overall.difference
    if selection.spec == IDENTITY:
        if overall.base[METRIC] > 0.95:
            return verdicts.SATURATED
        return Verdict(
            Decision.KEEP_BASE,
            "no candidate gained on held-out queries without harm; more queries about more of the "
            "documents may change that",
        )
    gains = difference.low > 0 and difference.p_value <= _LEVEL
    verdict = verdicts.gaining(difference) if gains else verdicts.inconclusive(difference)
    if selection.scores.mix.given:
        return verdict
    for documents, part in (("known", known), ("new", new)):
        if part is not None and _harms(part):
            return verdicts.dropping(documents, part.difference)
    queries = (0 if part is None else part.queries for part in (known, new))
    return verdicts.with_small_parts(verdict, *queries)


def _harms(part: PartReport) -> bool:
    difference = part.difference
    noise = difference.deviation / difference.queries**0.5
    loses = difference.mean < -max(noise, _TOLERANCE * part.base[METRIC])
    return bool(loses and part.queries >= verdicts.FEWEST)
