"""Cross-fitting: every query judged by adapters that saw neither it nor, for the new part, its
documents. A gate learns from the same folds which queries ask for documents that training knows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from ...adapters.base import Adapter
from ...adapters.composites import FEATURES, Gate
from ...adapters.maps import LinearAdapter
from ...core.arrays import Mask, Rows, Vectors, l2_normalize, top_k
from ...core.encoded import NO_DOCUMENT, EncodedDataset, Qrels, Shortlist
from ...errors import DatasetError
from ...evaluation.retrieval import PerQuery

_DEPTH = 10
_FOLDS = 5


class TooLittleError(DatasetError):
    """Too few queries, or too much alike, to hold some of them out."""


@dataclass(frozen=True, eq=False)
class TestFold:
    """Queries judged apart from training, each on its known or on its new documents."""

    queries: Vectors  #: ``(n, dim)``, base vectors.
    rows: Rows  #: ``(n,)``, their rows in the whole dataset.
    relevance: Qrels  #: Of each query the relevant documents of its kind.
    excluded: Qrels  #: Its relevant documents of the other kind, which do not compete.
    known: Mask  #: ``(n,)``, whether the judged documents have training queries.

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Rows) -> TestFold:
        """Keep these judgements."""
        relevance, excluded = self.relevance.take(rows), self.excluded.take(rows)
        return TestFold(self.queries[rows], self.rows[rows], relevance, excluded, self.known[rows])

    def score(self, queries: Vectors, documents: Vectors) -> PerQuery:
        """Return NDCG@10 of each judgement; ``(n, dim)`` and ``(m, dim)`` are adapted unit rows."""
        return self.relevance.ndcg(queries, documents, _DEPTH, self.excluded)


@dataclass(frozen=True, eq=False)
class Fold:
    """What one adapter is trained on, and what judges it."""

    train: EncodedDataset
    test: TestFold

    def adapted(self, adapter: Adapter) -> tuple[Vectors, Vectors]:
        """Return the judged queries and all documents as an adapter has them, unit rows."""
        documents = adapter.apply(self.train.documents, "document", self.train.keys)
        return l2_normalize(adapter.apply(self.test.queries)), l2_normalize(documents)

    def score(self, adapter: Adapter) -> PerQuery:
        """Return NDCG@10 of each judgement."""
        return self.test.score(*self.adapted(adapter))

    def ranked(self, adapter: Adapter, depth: int) -> Rows:
        """Return what judgements find first, ``(n, at most depth)``; excluded ones come last."""
        queries, documents = self.adapted(adapter)
        found, _ = top_k(queries, documents, depth + int(self.test.excluded.counts.max(initial=0)))
        return self.test.excluded.last(found)[:, :depth]


def folds(
    data: EncodedDataset, judging: Mask | None = None, *, seed: int = 0, most: int | None = None
) -> Iterator[Fold]:
    """Divide the relevance judgements so that each query is judged as known and as new.

    Documents are assigned to five parts, and so are queries. Fold ``k`` trains on pairs of
    which neither the query nor the document is in part ``k``. It judges the queries of part ``k``
    on those of their documents that it trains on with other queries (*known*), and all queries it
    does not train on by their documents of part ``k`` (*new*). Where documents form groups by
    shared queries, groups stay together; where all hang together, as with dozens of relevant
    documents per query, single documents are assigned and a query's other relevant documents do not
    compete. Queries that are not ``judging``, ``(n,)``, only train. A fold that would train on
    nothing or judge nothing is left out. Of more than ``most`` judgements in a fold, a sample
    stands for all.

    Raises:
        TooLittleError: Fewer queries than folds, or queries so alike that every fold is left out.
    """
    relevance = replace(data.relevance, documents=data.canonical_rows[data.relevance.documents])
    if len(relevance) < _FOLDS:
        raise TooLittleError(
            f"Cross-fitting in {_FOLDS} folds needs at least {_FOLDS} queries, got {len(relevance)}"
        )
    random = np.random.default_rng(seed)
    same = data.same
    document_part = _assign_documents(relevance, same, len(data.documents), random)
    query_part = _assign_queries(same, relevance, document_part, random)
    usable = 0
    for k in range(_FOLDS):
        fold = _fold(data, relevance, same, document_part == k, query_part == k, judging)
        if len(fold.train.relevance) and len(fold.test):
            usable += 1
            if most is not None and len(fold.test) > most:
                drawn = np.sort(random.permutation(len(fold.test))[:most])
                fold = replace(fold, test=fold.test.take(drawn))
            yield fold
    if not usable:
        raise TooLittleError(
            f"{len(relevance)} queries cannot be cross-validated: every split leaves an empty "
            "training or test fold, as they are all the same, or few and about one document. Add "
            "other queries"
        )


def _assign_documents(relevance: Qrels, same: Rows, total: int, random: Generator) -> Rows:
    asked = np.unique(relevance.documents)
    group, size = _groups(relevance, same, total, asked)
    if size.max() > len(asked) / _FOLDS:  # all hangs together: single documents
        group, size = np.arange(len(asked)), np.ones(len(asked), dtype=np.int64)
    order = random.permutation(len(size))
    order = order[np.argsort(-size[order], kind="stable")]
    part = np.empty(len(size), dtype=np.int64)
    load = np.zeros(_FOLDS, dtype=np.int64)
    for one in order:  # the largest first, each to the emptiest part
        part[one] = load.argmin()
        load[part[one]] += size[one]
    assigned = np.full(total, -1, dtype=np.int64)
    assigned[asked] = part[group]
    return assigned


def _groups(relevance: Qrels, same: Rows, total: int, asked: Rows) -> tuple[Rows, Rows]:
    """Return the group of each asked document, connected by queries, and the groups' sizes."""
    queries = len(relevance)
    ends, shape = (same[relevance.queries], queries + relevance.documents), 2 * (queries + total,)
    links = coo_matrix((np.ones(len(ends[0]), dtype=np.int8), ends), shape=shape)
    labels = connected_components(links, directed=False)[1][queries:][asked]
    _, group, size = np.unique(labels, return_inverse=True, return_counts=True)
    return group, size


def _assign_queries(same: Rows, relevance: Qrels, document_part: Rows, random: Generator) -> Rows:
    """Assign queries, equal ones together, each to another part than its first document."""
    firsts, group = np.unique(same, return_inverse=True)
    avoided = (document_part[relevance.relevant_to(row)[0]] for row in firsts)
    part = [(other + 1 + random.integers(_FOLDS - 1)) % _FOLDS for other in avoided]
    return np.array(part, dtype=np.int64)[group]


def _fold(
    data: EncodedDataset,
    relevance: Qrels,
    same: Rows,
    new_document: Mask,
    held_query: Mask,
    judging: Mask | None,
) -> Fold:
    new = new_document[relevance.documents]
    held = held_query[relevance.queries]
    kept = relevance.where(~new & ~held)
    train_rows = np.flatnonzero(kept.counts)
    train = kept.take(train_rows)
    trained = np.zeros(len(relevance), dtype=bool)
    trained[same[train_rows]] = True
    # A document all of whose queries are held out is not known, and is judged in its own part.
    on_known = held & ~new & np.isin(relevance.documents, train.documents)
    # Equal queries of which one is trained on judge nothing, as they memorised the answer.
    on_new = new & ~trained[same[relevance.queries]]
    if judging is not None:
        on_known &= judging[relevance.queries]
        on_new &= judging[relevance.queries]
    # Queries that own some entries are judged by these; their other documents are excluded.
    both = [relevance.where(judged) for judged in (on_known, on_new)]
    others = [relevance.where(~judged) for judged in (on_known, on_new)]
    if data.hidden is not None:
        others = [excluded.plus(data.hidden) for excluded in others]
    rows = [np.flatnonzero(judged.counts) for judged in both]
    judges = np.concatenate(rows)
    relevant, excluded = (
        Qrels.joined([qrels.take(own) for qrels, own in zip(each, rows, strict=True)])
        for each in (both, others)
    )
    known = np.arange(len(judges)) < len(rows[0])
    test = TestFold(data.queries[judges], judges, relevant, excluded, known)
    return Fold(replace(data.take(train_rows), relevance=train), test)


# --- scores of many candidates at the price of a few ----------------------------------------------
# All that is done to queries mixes a few vectors: queries as they are, as maps have them, and what
# kernels add. Cosines mix likewise, so documents are searched once per vector, what any finds is a
# shortlist, and a candidate costs a weighted sum over that.

#: What a query becomes, up to its length: the weight of each vector, one number per query or one
#: for all.
Mixture = Mapping[Hashable, "NDArray[Any] | float"]

_FOUND = 32  # documents that each vector brings to the shortlist
_AT_ONCE = 64  # queries


class QueryBasis:
    """The vectors that candidates mix, for the queries of a fold.

    What a mixture finds beyond the shortlist is missed, so scores are for choosing; what is chosen
    is judged by an exact search. ``documents`` are ``(m, dim)``, unit rows.
    """

    def __init__(self, test: TestFold, documents: Vectors) -> None:
        self._test, self._documents, self.queries = test, documents, test.queries
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
            out = self._test.excluded  # what does not compete takes no place
            depth = _FOUND + min(2 * _FOUND, int(out.counts.max(initial=0)))
            found, _ = top_k(l2_normalize(searching), self._documents, depth)
            self._found.append(out.last(found)[:, :_FOUND])
        return {name: 1.0}

    def mapped(self, adapter: LinearAdapter) -> Vectors:
        """Map the queries, and leave their length as it is."""
        return replace(adapter, normalize=False).apply(self.queries)

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
        scores = self._sum(mixture, self._scores)
        # What does not compete has no number, and comes last.
        return self._shortlist.ndcg(np.fmax(scores, -np.inf, out=scores))

    def _search(self) -> None:
        """Score everything on the shortlist, as it is now."""
        rows = _union(np.concatenate(self._found, axis=1))
        rows[self._test.excluded.grades_at(rows) > 0] = NO_DOCUMENT
        self._shortlist = Shortlist(rows, self._test.relevance, _DEPTH)
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


# --- a gate -------------------------------------------------------------------------------------
_MOST_QUERIES = 4096
_MOST_DOCUMENTS = 2048  # with training queries, and as many without
_MOST_TOLD = 512  # queries of a fold that a few coefficients are learnt from
_REGULARISATION = 1.0
_NEWTON_STEPS = 15


def fit_gate(train: EncodedDataset, *, seed: int = 0) -> Gate:
    """Learn to tell queries about documents with training queries from queries about others.

    The gate learns from folds of the training set, from 512 queries of each: one held out alone is
    about a known document, one held out with its documents about a new one. It compares base
    vectors only, so no map has to be trained for it. Both kinds weigh the same; shift the result by
    the log odds of the share of live queries about known documents with :meth:`Gate.with_odds`. Of
    more queries than 4,096, or documents than 2,048 with and without training queries, a sample is
    kept.
    """
    features, known = [], []
    for fold in folds(train, seed=seed, most=_MOST_TOLD):
        features.append(_untaught(fold.train, seed).features(l2_normalize(fold.test.queries)))
        known.append(fold.test.known)
    seen = np.concatenate(features)
    coefficients, low, high = _logistic(seen, np.concatenate(known)), seen.min(0), seen.max(0)
    return replace(_untaught(train, seed), coefficients=coefficients, low=low, high=high)


def _untaught(train: EncodedDataset, seed: int) -> Gate:
    """Return a gate that remembers a training set, with coefficients of zero."""
    random = np.random.default_rng(seed)
    asked = np.unique(train.canonical_rows[train.relevance.documents])
    others = np.setdiff1d(np.unique(train.canonical_rows), asked)
    documents = l2_normalize(train.documents)
    kept_asked, share_asked = _sample(asked, _MOST_DOCUMENTS, random)
    kept_others, share_others = _sample(others, _MOST_DOCUMENTS, random)
    kept_queries, _ = _sample(np.arange(len(train.queries)), _MOST_QUERIES, random)
    queries = l2_normalize(train.queries[kept_queries])
    zero = np.zeros(len(FEATURES) + 1, dtype=np.float32)
    memory = queries, documents[kept_asked], documents[kept_others]
    shares = np.array([share_asked, share_others], dtype=np.float32)
    return Gate(*memory, shares, coefficients=zero, low=zero[1:], high=zero[1:])


def _sample(rows: Rows, most: int, random: Generator) -> tuple[Rows, float]:
    if len(rows) <= most:
        return rows, 1.0
    return np.sort(random.choice(rows, size=most, replace=False)), most / len(rows)


def _logistic(features: Vectors, known: Mask) -> Vectors:
    """Return coefficients of a logistic regression with both classes weighing the same.

    Newton's method on ``Σ w log(1 + exp(-y f)) + ½ ‖slopes‖²`` over standardised features.
    """
    zero = np.zeros(len(FEATURES) + 1, dtype=np.float32)
    if known.all() or not known.any():
        return zero  # nothing to tell apart: one half for every query
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > 1e-6, deviation, 1.0)
    inputs = np.column_stack([(features - mean) / deviation, np.ones(len(known))])
    weights = np.where(known, 0.5 / known.mean(), 0.5 / (~known).mean())
    penalty = np.diag([_REGULARISATION] * len(FEATURES) + [0.0])
    found = np.zeros(len(penalty))
    for _ in range(_NEWTON_STEPS):
        chance = expit(inputs @ found)
        slope = inputs.T @ (weights * (chance - known)) + penalty @ found
        curvature = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + penalty
        found -= np.linalg.solve(curvature + 1e-9 * np.eye(len(found)), slope)
    slopes = found[:-1] / deviation
    return np.append(slopes, found[-1] - slopes @ mean).astype(np.float32)
