"""What vectors and words find first for each query, and what each view says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ..core.arrays import Rows, RowSource, Vectors, score_blocks
from ..core.encoded import NO_DOCUMENT, EncodedDataset, Qrels
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..lexical.bm25 import BM25Index, best_rows
from . import metrics
from .held_out import PerQuery
from .retrieval import DEPTH

#: Of words and of the prior, in cosine units; simplest first.
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)
PENALTIES = (0.0, 0.1, 0.2, 0.3, 0.5)
GRID = tuple(product(WEIGHTS, PENALTIES))

_CUT = 10
_RANK_CONSTANT = 60.0  # of LlamaIndex's reciprocal rank fusion
_HALF = np.float16  # 240 MB for 6,000 queries of 20,000 documents


@dataclass(frozen=True, eq=False)
class WordScores:
    """What words say of all documents for some queries.

    ``shares``, ``(n, m)``, in [0, 1], see :meth:`BM25Index.shares`; ``first``, ``(n, 100)``, the
    documents that words find first, in no order; or fewer, and then :data:`NO_DOCUMENT`.
    """

    shares: Any
    first: Rows

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
    def within(cls, dataset: EmbeddingQAFinetuneDataset, data: EncodedDataset) -> WordScores:
        """Score the queries of an encoded part of a dataset against its documents.

        Which words are usual is learnt from all of its queries: no label takes part.
        """
        corpus = {name: dataset.corpus[name] for name in data.document_ids}
        index = BM25Index.of(corpus, dataset.queries.values())
        return cls.of(index, [dataset.queries[name] for name in data.query_ids])

    def take(self, queries: Rows) -> WordScores:
        """Keep these queries."""
        return WordScores(self.shares[queries], self.first[queries])


@dataclass(frozen=True, eq=False)
class Candidates:
    """The documents that vectors or words find first for each query, and what each view says.

    A mixture of the three ranks these; what is among the first 100 of neither is not looked at.

    Args:
        rows: ``(n, c)``, ascending; :data:`NO_DOCUMENT` where there are fewer.
        cosines: ``(n, c)``.
        words: ``(n, c)``, in [0, 1].
        nearness: ``(n, c)``, see :meth:`DocumentPrior.nearness`; 0 without a prior.
    """

    rows: Rows
    cosines: Vectors
    words: Vectors
    nearness: Vectors

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
        for part, _, scores in score_blocks(queries, documents, width=len(documents)):
            if excluded is not None:
                hidden = excluded.take(np.arange(part.start, part.stop))
                scores[hidden.queries, hidden.documents] = -np.inf
            dense = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            rows[part] = np.sort(np.concatenate([dense, words.first[part]], axis=1), axis=1)
            cosines[part] = np.take_along_axis(scores, rows[part], axis=1)
        again = np.diff(rows, axis=1, prepend=NO_DOCUMENT) == 0  # found by both, or by none
        rows = np.where(again | ~np.isfinite(cosines), NO_DOCUMENT, rows)
        shares = np.take_along_axis(words.shares, np.maximum(rows, 0), axis=1).astype(np.float32)
        near = np.zeros_like(cosines) if nearness is None else nearness[rows]
        return cls(rows, cosines, shares, near.astype(np.float32))

    def mixed(self, weight: float, penalty: float) -> Vectors:
        """Return ``cosine + weight · words - penalty · nearness``, ``(n, c)``."""
        scores = self.cosines + np.float32(weight) * self.words
        return self._there(scores - np.float32(penalty) * self.nearness)

    def by_words(self) -> Vectors:
        """Return the words' scores; documents that share no word are not found, ``(n, c)``."""
        return np.where(self.words > 0, self._there(self.words), np.float32(-np.inf))

    def fused(self) -> Vectors:
        """Return the scores of LlamaIndex's reciprocal rank fusion of 100 a side, ``(n, c)``."""
        total = np.zeros_like(self.cosines)
        for scores in (self.mixed(0.0, 0.0), self.by_words()):
            rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
            found = (rank < DEPTH) & np.isfinite(scores)
            total += np.where(found, 1.0 / (rank + _RANK_CONSTANT), 0.0).astype(np.float32)
        return self._there(total)

    def _there(self, scores: Vectors) -> Vectors:
        return np.where(self.rows == NO_DOCUMENT, np.float32(-np.inf), scores)

    def ranked(self, scores: Vectors) -> Rows:
        """Return the documents by such scores, best first, ``(n, at most 100)``, ties by row."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        found = np.take_along_axis(self.rows, order, axis=1)
        there = np.isfinite(np.take_along_axis(scores, order, axis=1))
        return np.where(there, found, NO_DOCUMENT)

    def grid(self, relevance: Qrels) -> PerQuery:
        """Return NDCG@10 of each query at each pair of :data:`GRID`, ``(40, n)``."""
        grades = relevance.grades_at(self.rows)
        discounts = 1.0 / np.log2(np.arange(2, 2 + min(_CUT, self.rows.shape[1])))
        ideal = metrics.ideal_gain(relevance, _CUT)
        found: list[PerQuery] = []
        for weight, penalty in GRID:
            scores = -self.mixed(weight, penalty)
            best = np.argpartition(scores, len(discounts) - 1, axis=1)[:, : len(discounts)]
            order = np.argsort(np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
            gains = np.take_along_axis(grades, np.take_along_axis(best, order, axis=1), axis=1)
            found.append(gains @ discounts / ideal)
        return np.stack(found)
