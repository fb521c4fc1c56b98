"""Words and a prior beside vectors, judged on held-out queries: their weights, and what each adds.

A mixture ranks what vectors and words find first for each query. A weight that is judged was chosen
on other queries than those that judge it, 0 among its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from threading import Lock
from typing import Any

import numpy as np

from ..adapters.base import Adapter
from ..adapters.composites import halfway
from ..adapters.maps import LinearAdapter
from ..adapters.prior import WEIGHT as PENALTY
from ..adapters.prior import DocumentPrior
from ..core import arrays
from ..core.arrays import Keys, Mask, Rows, RowSource, Vectors, first_k, l2_normalize
from ..core.encoded import NO_DOCUMENT, EncodedDataset, Qrels, Shortlist
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..lexical.bm25 import WEIGHT, BM25Index, best_rows
from . import verdict as verdicts
from .held_out import Parts, Validation, compare_by_part
from .page import Texts
from .retrieval import DEPTH, PerQuery, RetrievalScores, joined
from .verdict import METRIC, Decision, Verdict

#: Of words and of the prior, in cosine units; simplest first.
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)
PENALTIES = (0.0, 0.1, 0.2, 0.3, 0.5)
GRID = tuple(product(WEIGHTS, PENALTIES))
#: What is served of each pair where no gain is proven: queries that an LLM wrote, or headings, have
#: more words of their documents than those of people, so that by them no weight is too high.
SAFE_GRID = tuple((min(words, WEIGHT), min(prior, PENALTY)) for words, prior in GRID)

_FOLDS = 5
_CUT = 10
_MOST_QUERIES = 1_000  # of a bank
_RANK_CONSTANT = 60.0  # of LlamaIndex's reciprocal rank fusion
_HALF = np.float16  # 32 MB for 800 queries of 20,000 documents


@dataclass(frozen=True, eq=False)
class WordScores:
    """What words say of all documents for some queries."""

    shares: Any  #: ``(n, m)``, in [0, 1], see :meth:`BM25Index.shares`.
    first: Rows  #: ``(n, 100)`` found first, in no order; or fewer, then :data:`NO_DOCUMENT`.

    @classmethod
    def of(cls, words: BM25Index, queries: Sequence[str]) -> WordScores:
        """Score queries against an index."""
        shares = np.empty((len(queries), len(words)), dtype=_HALF)
        first = np.full((len(queries), min(DEPTH, len(words))), NO_DOCUMENT, dtype=np.int64)
        for row, query in enumerate(queries):
            scores = words.shares(query)
            best = best_rows(scores, DEPTH)
            shares[row], first[row, : len(best)] = scores, best
        return cls(shares, first)

    @classmethod
    def within(cls, dataset: EmbeddingQAFinetuneDataset, data: EncodedDataset) -> ScoreWords:
        """Return what scores rows of an encoded part of a dataset, indexed when first asked for.

        All its queries say which words are usual.
        """

        lock = Lock()  # many threads ask at once

        @cache
        def index() -> BM25Index:
            corpus = {name: dataset.corpus[name] for name in data.document_ids}
            return BM25Index.of(corpus, dataset.queries.values())

        def score(rows: Rows) -> WordScores:
            once, again = np.unique(rows, return_inverse=True)
            with lock:
                words = index()
            found = cls.of(words, [dataset.queries[data.query_ids[row]] for row in once])
            return cls(found.shares[again], found.first[again])

        return score


#: Says what words find for these rows of queries.
ScoreWords = Callable[[Rows], WordScores]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The documents that vectors or words find first for each query, and what each view says.

    A mixture of the three ranks these; what is among the first 100 of neither is not looked at.
    """

    rows: Rows  #: ``(n, c)``, ascending; :data:`NO_DOCUMENT` where there are fewer.
    cosines: Vectors  #: ``(n, c)``; minus infinity where there are fewer.
    words: Vectors  #: ``(n, c)``, in [0, 1].
    nearness: Vectors  #: ``(n, c)``, see :meth:`DocumentPrior.nearness`; 0 without a prior.

    @classmethod
    def of(
        cls,
        queries: Vectors,
        documents: RowSource,
        words: WordScores,
        nearness: Vectors | None = None,
        excluded: Qrels | None = None,
    ) -> Candidates:
        """Search by both: ``(n, dim)`` queries, ``(m, dim)`` documents, unit rows, adapted or not.

        ``nearness`` is ``(m,)``; ``excluded`` are documents that do not compete, by query.
        """
        count = min(DEPTH, len(documents))
        rows = np.empty((len(queries), count + words.first.shape[1]), dtype=np.int64)
        cosines = np.empty(rows.shape, dtype=np.float32)
        for part, _, scores in arrays.score_blocks(queries, documents, width=len(documents)):
            if excluded is not None:
                hidden = excluded.take(np.arange(part.start, part.stop))
                scores[hidden.queries, hidden.documents] = -np.inf
            both = [first_k(scores, count), words.first[part]]
            rows[part] = np.sort(np.concatenate(both, axis=1), axis=1)
            cosines[part] = np.take_along_axis(scores, rows[part], axis=1)
        again = np.diff(rows, axis=1, prepend=NO_DOCUMENT) == 0  # found by both, or by none
        cosines[again] = -np.inf
        rows = np.where(np.isfinite(cosines), rows, NO_DOCUMENT)
        shares = np.take_along_axis(words.shares, np.maximum(rows, 0), axis=1).astype(np.float32)
        near = np.zeros_like(cosines) if nearness is None else nearness[rows]
        return cls(rows, cosines, shares, near.astype(np.float32))

    def mixed(self, weight: float, penalty: float) -> Vectors:
        """Return ``cosine + weight · words - penalty · nearness``, ``(n, c)``."""
        scores: Vectors = self.cosines + np.float32(weight) * self.words
        return scores - np.float32(penalty) * self.nearness

    def by_words(self) -> Vectors:
        """Return the words' scores; documents that share no word are not found, ``(n, c)``."""
        found = (self.words > 0) & np.isfinite(self.cosines)
        return np.where(found, self.words, np.float32(-np.inf))

    def fused(self) -> Vectors:
        """Return the scores of LlamaIndex's reciprocal rank fusion of 100 a side, ``(n, c)``."""
        total = np.zeros_like(self.cosines)
        for scores in (self.mixed(0.0, 0.0), self.by_words()):
            rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
            found = (rank < DEPTH) & np.isfinite(scores)
            total += (found / (rank + _RANK_CONSTANT)).astype(np.float32)
        return np.where(np.isfinite(self.cosines), total, np.float32(-np.inf))

    def ranked(self, scores: Vectors) -> Rows:
        """Return the documents by such scores, best first, ``(n, at most 100)``, ties by row."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        found = np.take_along_axis(self.rows, order, axis=1)
        there = np.isfinite(np.take_along_axis(scores, order, axis=1))
        return np.where(there, found, NO_DOCUMENT)

    def grid(self, relevance: Qrels, pairs: Sequence[tuple[float, float]] = GRID) -> PerQuery:
        """Return NDCG@10 of each query at each of 40 pairs of weights, ``(40, n)``."""
        shortlist = Shortlist(self.rows, relevance, _CUT)
        found = {pair: shortlist.ndcg(self.mixed(*pair)) for pair in dict.fromkeys(pairs)}
        return np.stack([found[pair] for pair in pairs])


# --- which weights, and what they bring ---------------------------------------------------------
#: Takes scores of candidates ``(k, n)`` and which queries may be looked at, and says what each is
#: worth ``(k,)``; minus infinity for one that does harm.
Worth = Callable[[PerQuery, Mask], PerQuery]


def expected_gain(base: PerQuery, known: Mask, share: float | None, *, given: bool) -> Worth:
    """Return what says how much is to be gained over the base model, where neither part loses.

    ``base`` is NDCG@10 of the base model, ``known`` says which queries are about known documents,
    ``(n,)`` each; ``share`` of live queries will be, None: as of the judged ones. Where the user
    said so, it is ``given``, and either part may lose. Nor may weights take from a part what the
    same model gains there without them, :data:`GRID`'s first, by more than a standard error.
    """

    def worth(scores: PerQuery, among: Mask) -> PerQuery:
        parts = [(kind, among & (known == kind)) for kind in (True, False)]
        changes = [(kind, (scores - base)[:, part]) for kind, part in parts if part.any()]
        counts = [change.shape[1] for _, change in changes]
        shares = counts if share is None else [share if kind else 1 - share for kind, _ in changes]
        weights = np.array(shares if sum(shares) else counts, dtype=np.float64)
        total = weights @ np.stack([change.mean(axis=1) for _, change in changes]) / weights.sum()
        harmless = np.all([_harmless(change) for _, change in changes], axis=0)
        return np.where(harmless | given, total, -np.inf)

    return worth


def _harmless(change: PerQuery) -> Mask:
    """Say of which rows of ``(k, n)`` the mean is no loss, nor less than that of the first."""
    behind = change[:1] - change
    error = behind.std(axis=1) / change.shape[1] ** 0.5
    found: Mask = (change.mean(axis=1) >= 0) & (behind.mean(axis=1) <= error)
    return found


def pick(grids: Sequence[PerQuery], among: Mask, worth: Worth) -> tuple[int, int]:
    """Pick the simplest model as good as the best within a standard error, and its best weights.

    ``grids`` are of each model, simplest first, see :meth:`Candidates.grid`; ``among``, ``(n,)``,
    says which queries may be looked at. Returns which model, and which of :data:`GRID`; of equal
    ones, the first.
    """
    if not among.any():
        return 0, 0
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
    grids: Sequence[PerQuery], fold: Rows, groups: Keys | None, worth: Worth
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Pick for each fold, ``(n,)`` from 0, apart from it, and once on all; see :func:`pick`."""
    others = apart(fold, groups)
    return [pick(grids, each, worth) for each in others], pick(grids, fold >= 0, worth)


def apart(fold: Rows, groups: Keys | None) -> list[Mask]:
    """Return for each fold the judgements outside it, ``(n,)``, of queries that are not in it."""
    asked = np.arange(len(fold)) if groups is None else groups
    return [(fold != k) & ~np.isin(asked, asked[fold == k]) for k in range(int(fold.max()) + 1)]


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
    prove: bool = True  #: Whether they can prove a gain; else weights are safe ones.
    groups: Keys | None = None  #: ``(n,)``, see :class:`RetrievalScores`.

    @property
    def pairs(self) -> Sequence[tuple[float, float]]:
        """The weights to choose from."""
        return GRID if self.prove else SAFE_GRID

    @cached_property
    def grids(self) -> list[PerQuery]:
        """See :meth:`Candidates.grid`; of each model."""
        return [each.grid(self.relevance, self.pairs) for each in self.candidates]

    def ranked(self, rows: Rows) -> RetrievalScores:
        """Return the scores of a ranking, ``(n, depth)``."""
        ids = self.query_ids, self.document_ids
        return RetrievalScores(rows, self.relevance, *ids, groups=self.groups)

    def picked(self, picks: Sequence[tuple[int, int]], fold: Rows) -> RetrievalScores:
        """Return what the model and weights of each query's fold find."""
        rows = np.full((len(fold), DEPTH), NO_DOCUMENT, dtype=np.int64)
        for k, (model, pair) in enumerate(picks):
            mine = np.flatnonzero(fold == k)
            if len(mine):
                candidates = self.candidates[model]
                found = candidates.ranked(candidates.mixed(*self.pairs[pair]))[mine]
                rows[mine, : found.shape[1]] = found
        return self.ranked(rows[:, : min(DEPTH, len(self.document_ids))])


@dataclass(frozen=True, eq=False)
class ViewsReport:
    """What words and a prior add, on held-out queries; every weight was chosen on other queries."""

    words: float  #: The weight of words to serve with, in cosine units; 0 leaves them out.
    prior: float  #: λ of the document prior to serve with; 0 leaves it out.
    model: int  #: Beside them: 0 is the base model, others are adapted.
    parts: Parts  #: The mixture against the base model: on all, on known and on new documents.
    base: RetrievalScores = field(repr=False)
    #: View → what it finds: ``"BM25"``, ``"base + BM25"``, ``"rank fusion"``,
    #: ``"base + words + prior"`` and ``"mixture"``, with the best of all models.
    scores: dict[str, RetrievalScores] = field(repr=False)
    given: bool = False  #: Whether the user said which queries come, so that a part may lose.
    sources: Mapping[str, int] | None = None  #: How many judged queries are from where, if known.

    @property
    def verdict(self) -> Verdict:
        """What to make of the mixture."""
        difference = self.parts.overall.difference
        if not (self.words or self.prior or self.model):
            return Verdict(Decision.KEEP_BASE, "neither words nor a prior gain on held-out queries")
        if self.parts.loss and not self.given:
            return self.parts.loss
        if difference.low > 0:
            return verdicts.gaining(difference, self.sources)
        return verdicts.inconclusive(difference)

    def judged_by(self, sources: Mapping[str, int]) -> ViewsReport:
        """Return the report, knowing whose queries judged: how many by source."""
        return replace(self, sources=sources)

    @property
    def weights(self) -> tuple[float, float]:
        """Of words and prior, to serve with: no more than is safe where no gain is proven."""
        if self.verdict.decision is Decision.SHIP:
            return self.words, self.prior
        return min(self.words, WEIGHT), min(self.prior, PENALTY)

    def beside(self, model: Adapter) -> Adapter:
        """Return what to serve of the model: half of the way where no gain is proven."""
        if not self.model:
            return LinearAdapter.identity(model.input_dim)
        return model if self.verdict.decision is Decision.SHIP else halfway(model)

    def __str__(self) -> str:
        vectors = f"{'adapted' if self.model else 'base'} vectors"
        words = f" + {self.words:g} · words" if self.words else ""
        prior = f" - {self.prior:g} · prior" if self.prior else ""
        return f"{vectors}{words + prior or ' alone'}: {self.parts.overall}; {self.verdict}"

    def to_dict(self) -> dict[str, Any]:
        """Return weights, verdict, and NDCG@10 of each view with the interval of its gain."""
        parts, found = self.parts._asdict(), {"base": self.base, **self.scores}
        values = np.stack([each.values(METRIC) for each in found.values()], axis=1)
        gains = verdicts.mean_intervals(values - values[:, :1])
        views = {
            name: {METRIC: each[METRIC], "interval": list(gain)}
            for (name, each), gain in zip(found.items(), gains, strict=True)
        }
        return {
            "words": self.words,
            "prior": self.prior,
            "adapted": bool(self.model),
            "verdict": self.verdict,
            "summary": str(self),
            **{name: part and part.to_dict() for name, part in parts.items()},
            "views": views,
        }


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
    return Candidates.of(l2_normalize(model.apply(queries)), adapted, words, nearness, excluded)


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

    All ``parts`` have the same models; of all queries, part after part, those of a ``fold``,
    ``(n,)``, are judged by weights that were chosen on the others. ``known``, ``share`` and
    ``given`` are those of :func:`expected_gain`; ``summarise`` compares base model and mixture,
    :func:`compare_by_part` by default.
    """
    folds = np.split(fold, np.cumsum([len(part.query_ids) for part in parts])[:-1])

    def found(rows: Callable[[Candidates], Vectors]) -> RetrievalScores:
        first = ((part, part.candidates[0]) for part in parts)
        return joined([part.ranked(each.ranked(rows(each))) for part, each in first])

    base = found(lambda each: each.mixed(0.0, 0.0))
    worth = expected_gain(base.values(METRIC), known, share, given=given)
    grids = [
        np.concatenate(each, axis=1) for each in zip(*(part.grids for part in parts), strict=True)
    ]
    # Pairs that use the prior score as those that do not, so that none of them is picked.
    plain = grids[0][np.arange(len(GRID)) // len(PENALTIES) * len(PENALTIES)]
    compared = {"base + BM25": [plain], "base + words + prior": grids[:1], "mixture": grids}
    picked = {}
    for name, some in compared.items():
        picks, (model, pair) = cross_fitted_picks(some, fold, base.groups, worth)
        each = zip(parts, folds, strict=True)
        picked[name] = joined([part.picked(picks, mine) for part, mine in each])
    words, prior = parts[0].pairs[pair]
    scores = {"BM25": found(Candidates.by_words), "rank fusion": found(Candidates.fused), **picked}
    compare = summarise or (lambda one, other: compare_by_part(one, other, known))
    parted = compare(base, picked["mixture"])
    return ViewsReport(words, prior, model, parted, base, scores, given)


def judge_on(
    validation: Validation,
    texts: Sequence[Texts],
    adapter: Adapter,
    bank: Vectors,
    queries: Sequence[str],
    *,
    seed: int,
    prove: bool = True,
) -> ViewsReport | None:
    """Judge words and a prior beside base model and adapter, on queries held out of training.

    ``bank`` are base vectors of the training queries, ``(n, dim)``, ``queries`` their texts,
    ``texts`` those of each part of the validation; ``prove`` says whether they can prove a gain.
    Returns None for one query, and for more documents than are scored at once, 65,536.
    """
    most = max(len(part.data.documents) for part in validation.parts)
    if len(validation) < 2 or most > arrays.DOCUMENTS_PER_BLOCK:
        return None
    identity = LinearAdapter.identity(adapter.input_dim)
    judged = adapter if prove else halfway(adapter)
    models, parts = [identity] if adapter.is_identity else [identity, judged], []
    for data, own in zip((part.data for part in validation.parts), texts, strict=True):
        index = BM25Index.of(dict(zip(data.document_ids, own.documents, strict=True)), queries)
        words = WordScores.of(index, own.queries)
        given = (data.queries, bank, (data.documents, data.keys), words, data.hidden)
        found = tuple(candidates_of(model, *given) for model in models)
        ids = data.query_ids, data.document_ids
        parts.append(JudgedPart(data.scored, *ids, found, prove, data.groups))
    folds, expect = folds_of(len(validation), seed), validation.expect
    return judge_views(parts, folds, validation.known, share=expect, given=expect is not None)
