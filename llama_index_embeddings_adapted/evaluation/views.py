"""Words and a prior beside vectors, judged on held-out queries: their weights, and what each adds.

A weight that is judged was chosen on other queries than those that judge it, 0 among its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..adapters.base import Adapter
from ..adapters.maps import LinearAdapter
from ..adapters.prior import WEIGHT as PENALTY
from ..adapters.prior import DocumentPrior
from ..core.arrays import DOCUMENTS_PER_BLOCK, Keys, Rows, Vectors, l2_normalize
from ..core.encoded import NO_DOCUMENT, Qrels
from ..lexical.bm25 import WEIGHT, BM25Index
from .candidates import GRID, PENALTIES, WEIGHTS, Candidates, WordScores
from .held_out import METRIC, Mask, PartReport, Parts, PerQuery, Validation, compare_by_part
from .retrieval import DEPTH, RetrievalScores, Texts, joined
from .verdict import (
    FEWEST,
    Decision,
    Verdict,
    dropping,
    gaining,
    inconclusive,
    paired_difference,
    real_queries,
)

_FOLDS = 5
_MOST_QUERIES = 1_000  # of a bank

#: Takes scores of candidates ``(k, n)`` and which queries may be looked at, and says what each is
#: worth ``(k,)``; minus infinity for one that does harm.
Worth = Callable[[PerQuery, Mask], PerQuery]


def expected_gain(base: PerQuery, known: Mask, share: float | None, *, given: bool) -> Worth:
    """Return what says how much is to be gained over the base model, where neither part loses.

    Args:
        base: ``(n,)``, NDCG@10 of the base model.
        known: ``(n,)``, which queries are about known documents.
        share: Of live queries about known documents; None: that of the judged ones.
        given: Whether the user said so; then either part may lose.
    """

    def worth(scores: PerQuery, among: Mask) -> PerQuery:
        change = scores - base
        kinds = [(kind, part) for kind, part in ((1, known), (0, ~known)) if (among & part).any()]
        gains = np.stack([change[:, among & part].mean(axis=1) for _, part in kinds])
        counts = [(among & part).sum() for _, part in kinds]
        shares = counts if share is None else [share if kind else 1 - share for kind, _ in kinds]
        weights = np.array(shares if sum(shares) else counts, dtype=np.float64)
        total = weights @ gains / weights.sum()
        return total if given else np.where((gains >= 0).all(axis=0), total, -np.inf)

    return worth


def pick(grids: Sequence[PerQuery], among: Mask, worth: Worth) -> tuple[int, int]:
    """Pick the simplest model as good as the best within a standard error, and its best weights.

    ``grids`` are of each model, simplest first, see :meth:`Candidates.grid`; ``among``, ``(n,)``,
    says which queries may be looked at. Returns which model, and which of :data:`GRID`; of equal
    ones, the first.
    """
    values = [worth(grid, among) for grid in grids]
    pairs = [int(value.argmax()) for value in values]
    best = max(range(len(grids)), key=lambda at: values[at][pairs[at]])
    if np.isneginf(values[best][pairs[best]]):  # all harm, as among equal documents
        return 0, 0
    for at, pair in enumerate(pairs):
        behind = (grids[best][pairs[best]] - grids[at][pair])[among]
        error = behind.std(ddof=1) / len(behind) ** 0.5 if len(behind) > 1 else 0.0
        if values[best][pairs[best]] - values[at][pair] <= error:
            return at, pair
    return best, pairs[best]


def cross_fitted_picks(
    grids: Sequence[PerQuery], fold: Rows, worth: Worth
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Pick for each fold, ``(n,)`` from 0, on the others, and once on all; see :func:`pick`."""
    count = int(fold.max()) + 1
    return [pick(grids, fold != k, worth) for k in range(count)], pick(grids, fold >= 0, worth)


def folds_of(queries: int, seed: int) -> Rows:
    """Assign queries to at most five folds of equal size, ``(n,)``."""
    return np.random.default_rng(seed).permutation(queries) % max(1, min(_FOLDS, queries))


@dataclass(frozen=True, eq=False)
class JudgedPart:
    """Held-out queries over one corpus, and the candidates of several models, the base first."""

    relevance: Qrels
    query_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    candidates: tuple[Candidates, ...]

    def ranked(self, rows: Rows) -> RetrievalScores:
        """Return the scores of a ranking, ``(n, depth)``."""
        return RetrievalScores(rows, self.relevance, self.query_ids, self.document_ids)

    def picked(self, picks: Sequence[tuple[int, int]], fold: Rows) -> RetrievalScores:
        """Return what the model and weights of each query's fold find."""
        rows = np.full((len(fold), DEPTH), NO_DOCUMENT, dtype=np.int64)
        for k, (model, pair) in enumerate(picks):
            mine = np.flatnonzero(fold == k)
            if len(mine):
                candidates = self.candidates[model]
                found = candidates.ranked(candidates.mixed(*GRID[pair]))[mine]
                rows[mine, : found.shape[1]] = found
        return self.ranked(rows[:, : min(DEPTH, len(self.document_ids))])


@dataclass(frozen=True, eq=False)
class ViewsReport:
    """What words and a prior add, on held-out queries; every weight was chosen on other queries.

    Args:
        words: The weight of words to serve with, in cosine units; 0 leaves them out.
        prior: λ of the document prior to serve with; 0 leaves it out.
        model: Beside them: 0 is the base model, others are adapted.
        parts: The mixture against the base model: on all queries, on known and on new documents.
        base: What the base model finds.
        scores: View → what it finds: ``"BM25"``, ``"base + BM25"``, ``"rank fusion"``,
            ``"base + words + prior"`` and ``"mixture"``, with the best of all models.
        real: Judged queries of people; None for all.
    """

    words: float
    prior: float
    model: int
    parts: Parts
    base: RetrievalScores = field(repr=False)
    scores: Mapping[str, RetrievalScores] = field(repr=False)
    real: int | None = None

    @property
    def verdict(self) -> Verdict:
        """What to make of the mixture."""
        difference = self.parts.overall.difference
        if not (self.words or self.prior or self.model):
            return Verdict(Decision.KEEP_BASE, "neither words nor a prior gain on held-out queries")
        if self.parts.known is not None and _loses(self.parts.known):
            return dropping("known", self.parts.known.difference)
        if self.parts.new is not None and _loses(self.parts.new):
            return dropping("new", self.parts.new.difference)
        gains = difference.low > 0
        return gaining(difference, real=self.real) if gains else inconclusive(difference)

    def judged_by(self, sources: Mapping[str, int]) -> ViewsReport:
        """Return the report, knowing whose queries judged: how many by source."""
        return replace(self, real=real_queries(sources))

    @property
    def weights(self) -> tuple[float, float]:
        """Of words and prior, to serve with: no more than is safe where no gain is proven."""
        if self.verdict.decision is Decision.SHIP:
            return self.words, self.prior
        return min(self.words, WEIGHT), min(self.prior, PENALTY)

    @property
    def is_served(self) -> bool:
        """Whether the verdict is not against it."""
        return self.verdict.decision.stance != "against"

    def __str__(self) -> str:
        part, vectors = self.parts.overall, "adapted" if self.model else "base"
        return (
            f"{vectors} vectors + {self.words:g} · words - {self.prior:g} · prior: NDCG@10 "
            f"{part.base[METRIC]:.4f} → {part.adapted[METRIC]:.4f} "
            f"[{part.difference.low:+.4f}, {part.difference.high:+.4f}]; {self.verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return weights, verdict, and NDCG@10 of each view with the interval of its gain."""
        parts, base = self.parts._asdict(), self.base.values(METRIC)
        scores = {"base": self.base, **self.scores}
        gains = {
            name: paired_difference(base, found.values(METRIC), metric=METRIC)
            for name, found in scores.items()
        }
        return {
            "words": self.words,
            "prior": self.prior,
            "adapted": bool(self.model),
            "verdict": self.verdict,
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
            "views": {
                name: {METRIC: scores[name][METRIC], "interval": [gain.low, gain.high]}
                for name, gain in gains.items()
            },
        }


def _loses(part: PartReport) -> bool:
    return part.queries >= FEWEST and part.difference.high < 0


def candidates_of(
    model: Adapter,
    queries: Vectors,
    train: Vectors,
    documents: tuple[Vectors, Keys],
    words: WordScores,
    excluded: Qrels | None = None,
) -> Candidates:
    """Search by words, by the vectors of a model trained without the queries, and with its prior.

    ``queries`` are ``(n, dim)``, held out, of the base model; likewise ``train``, ``(k, dim)``,
    other queries, the bank of the prior, and ``documents``, ``(m, dim)``, with their content keys.
    """
    adapted = l2_normalize(model.apply(documents[0], "document", documents[1]))
    nearness = DocumentPrior(model.apply(bank_of(train))).nearness(adapted)
    asked = l2_normalize(model.apply(queries))
    return Candidates.of(asked, adapted, words, nearness, excluded)


def bank_of(queries: Vectors) -> Vectors:
    """Return at most 1,000 of the queries, the same each time, for a prior."""
    return queries[np.sort(np.random.default_rng(0).permutation(len(queries))[:_MOST_QUERIES])]


def judge_views(
    parts: Sequence[JudgedPart],
    fold: Rows,
    known: Mask,
    *,
    share: float | None = None,
    given: bool = False,
    summarise: Callable[[RetrievalScores, RetrievalScores], Parts] | None = None,
) -> ViewsReport:
    """Choose model and weights, and judge the choice and single views.

    Args:
        parts: With the same models.
        fold: ``(n,)``, of all queries, part after part: those of a fold are judged by weights that
            were chosen on the others.
        known: ``(n,)``, which queries are about known documents.
        share: See :func:`expected_gain`.
        given: Likewise.
        summarise: Compares base model and mixture; :func:`compare_by_part` by default.
    """
    ends = np.cumsum([len(part.query_ids) for part in parts])
    folds = np.split(fold, ends[:-1])

    def found(rows: Callable[[Candidates], Vectors]) -> RetrievalScores:
        first = ((part, part.candidates[0]) for part in parts)
        return joined([part.ranked(each.ranked(rows(each))) for part, each in first])

    base = found(lambda each: each.mixed(0.0, 0.0))
    worth = expected_gain(base.values(METRIC), known, share, given=given)
    grids = [
        np.concatenate([part.candidates[at].grid(part.relevance) for part in parts], axis=1)
        for at in range(len(parts[0].candidates))
    ]
    single = {"base + BM25": [_without_prior(grids[0])], "base + words + prior": grids[:1]}
    picked = {}
    for name, some in {**single, "mixture": grids}.items():
        picks, (model, pair) = cross_fitted_picks(some, fold, worth)
        each = zip(parts, folds, strict=True)
        picked[name] = joined([part.picked(picks, mine) for part, mine in each])
    words, prior = GRID[pair]
    scores = {"BM25": found(Candidates.by_words), "rank fusion": found(Candidates.fused), **picked}
    compare = summarise or (lambda one, other: compare_by_part(one, other, known))
    return ViewsReport(words, prior, model, compare(base, picked["mixture"]), base, scores)


def beside(views: ViewsReport | None) -> dict[str, RetrievalScores]:
    """Return what is compared besides base and adapted model."""
    return {} if views is None else dict(views.scores)


def _without_prior(grid: PerQuery) -> PerQuery:
    """Let pairs that use the prior score as those that do not, so that none is picked."""
    shaped = grid.reshape(len(WEIGHTS), len(PENALTIES), -1)
    return np.broadcast_to(shaped[:, :1], shaped.shape).reshape(grid.shape)


def judge_on(
    validation: Validation,
    texts: Sequence[Texts],
    adapter: Adapter,
    bank: Vectors,
    queries: Sequence[str],
    *,
    seed: int,
) -> ViewsReport | None:
    """Judge words and a prior beside base model and adapter, on queries held out of training.

    ``bank`` are base vectors of the training queries, ``(n, dim)``, ``queries`` their texts,
    ``texts`` those of each part of the validation. Returns None for one query, and for more
    documents than are scored at once, 65,536.
    """
    most = max(len(part.data.documents) for part in validation.parts)
    if len(validation) < 2 or most > DOCUMENTS_PER_BLOCK:
        return None
    identity = LinearAdapter.identity(adapter.input_dim)
    models, parts = [identity] if adapter.is_identity else [identity, adapter], []
    for data, own in zip((part.data for part in validation.parts), texts, strict=True):
        corpus = dict(zip(data.document_ids, own.documents, strict=True))
        index = BM25Index.of(corpus, queries)
        words = WordScores.of(index, own.queries)
        given = (data.queries, bank, (data.documents, data.keys), words, data.hidden)
        found = tuple(candidates_of(model, *given) for model in models)
        parts.append(JudgedPart(data.scored, data.query_ids, data.document_ids, found))
    folds, expect = folds_of(len(validation), seed), validation.expect
    return judge_views(parts, folds, validation.known, share=expect, given=expect is not None)
