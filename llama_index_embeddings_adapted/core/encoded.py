"""Which rows of the documents answer which row of the queries, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import arrays
from .arrays import Floats, Keys, Mask, Rows, RowSource, Vectors, ahead, content_hashes

#: Stands in a ranking of a corpus that is smaller than others where no document is left.
NO_DOCUMENT = -1
_NOISE = 1e-6  # scores of unit vectors this near are equal: blocks round differently


@dataclass(frozen=True, eq=False)
class Qrels:
    """Relevant documents per query, in compressed rows."""

    offsets: Rows  #: ``(n + 1,)``; query ``i`` owns entries ``offsets[i]:offsets[i + 1]``.
    documents: Rows  #: ``(entries,)``, rows into the document vectors.
    grades: Floats  #: ``(entries,)``, ``> 0``.

    @classmethod
    def from_lists(
        cls, documents: Sequence[Sequence[int]], grades: Sequence[Sequence[float]] | None = None
    ) -> Qrels:
        """Build from one list of rows (and one of grades) per query; grades default to 1."""
        flat = [row for rows in documents for row in rows]
        flat_grades = [1.0] * len(flat) if grades is None else [g for gs in grades for g in gs]
        counts = np.array([len(rows) for rows in documents], dtype=np.int64)
        return cls._of(counts, np.array(flat, dtype=np.int64), np.array(flat_grades, np.float64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Rows:
        """``(n,)``: the number of relevant documents of each query."""
        return np.diff(self.offsets)

    @property
    def queries(self) -> Rows:
        """``(entries,)``: the query row of each entry."""
        return np.repeat(np.arange(len(self)), self.counts)

    def relevant_to(self, query: int) -> Rows:
        """Return the rows relevant to one query."""
        return self.documents[self.offsets[query] : self.offsets[query + 1]]

    @classmethod
    def _of(cls, counts: Rows, documents: Rows, grades: Floats) -> Qrels:
        """Build from how many entries each query has."""
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), documents, grades)

    def take(self, queries: Rows) -> Qrels:
        """Keep these queries, in this order."""
        counts = self.counts[queries]
        starts = np.repeat(self.offsets[queries], counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Qrels._of(counts, self.documents[starts + within], self.grades[starts + within])

    @classmethod
    def joined(cls, parts: Sequence[Qrels]) -> Qrels:
        """Return the queries of all parts, over the same documents, one part after the other."""
        names = ("counts", "documents", "grades")
        return cls._of(*(np.concatenate([getattr(part, n) for part in parts]) for n in names))

    def where(self, keep: Mask) -> Qrels:
        """Keep these entries, ``(entries,)``, and all queries, of which some may have none left."""
        counts = np.bincount(self.queries[keep], minlength=len(self))
        return Qrels._of(counts, self.documents[keep], self.grades[keep])

    def plus(self, other: Qrels) -> Qrels:
        """Return the entries of both for each query, those of ``other`` last."""
        order = np.argsort(np.concatenate([self.queries, other.queries]), kind="stable")
        documents = np.concatenate([self.documents, other.documents])[order]
        grades = np.concatenate([self.grades, other.grades])[order]
        return Qrels(self.offsets + other.offsets, documents, grades)

    def with_twins(self, first: Rows) -> Qrels:
        """Return these and every document of equal text, once per query, with its highest grade."""
        size = np.bincount(first, minlength=len(first))
        own = first[self.documents]
        if (size[own] == 1).all():
            return self
        alike = Qrels._of(size, np.argsort(first, kind="stable"), np.ones(len(first))).take(own)
        queries, documents = self.queries[alike.queries], alike.documents
        grades = self.grades[alike.queries]
        order = np.lexsort((-grades, documents, queries))
        _, once = np.unique(np.stack([queries, documents])[:, order], axis=1, return_index=True)
        kept = order[once]
        counts = np.bincount(queries[kept], minlength=len(self))
        return Qrels._of(counts, documents[kept], grades[kept])

    def among(self, rows: Rows) -> Qrels:
        """Keep the documents of these rows, ascending, and count them anew."""
        place = np.minimum(np.searchsorted(rows, self.documents), len(rows) - 1)
        return replace(self, documents=place).where(rows[place] == self.documents)

    def last(self, ranked: Rows) -> Rows:
        """Return rankings, ``(n, k)``, with these documents at their end."""
        order = np.argsort(self.grades_at(ranked) > 0, axis=1, kind="stable")
        return np.take_along_axis(ranked, order, axis=1)

    def discounted_gain(self, rank: Rows, k: int) -> Floats:
        """Return the discounted gain, ``(n,)``, of entries whose rank, from 0, is below ``k``."""
        gains = np.where(rank < k, self.grades / np.log2(rank + 2), 0.0)
        total = np.bincount(self.queries, weights=gains, minlength=len(self))
        return np.asarray(total, dtype=np.float64)

    def ideal_gain(self, k: int) -> Floats:
        """Return the discounted gain of the best order, ``(n,)``."""
        best = np.lexsort((-self.grades, self.queries))
        rank = np.arange(len(best)) - np.repeat(self.offsets[:-1], self.counts)
        return replace(self, grades=self.grades[best]).discounted_gain(rank, k)

    def ndcg(
        self, queries: Vectors, documents: RowSource, k: int, hidden: Qrels | None = None
    ) -> Floats:
        """Return NDCG@k, ``(n,)``, of an exact search: ``(n, dim)`` and ``(m, dim)`` unit rows.

        ``hidden`` documents do not compete.
        """
        found = self.ranks(queries, documents, k, hidden)
        return self.discounted_gain(found, k) / self.ideal_gain(k)

    def ranks(
        self,
        queries: Vectors,
        documents: RowSource,
        depth: int | None = None,
        hidden: Qrels | None = None,
    ) -> Rows:
        """Return the rank of each entry, ``(entries,)``, 0 is first, much cheaper than sorting.

        Ties go to the document that stands first, as in :func:`top_k`. Where documents are more
        than a block, scores within ``1e-6`` count as equal, so vectors are to be of length 1. Ranks
        from ``depth`` on need only be at least this. The rest is as in :meth:`ndcg`.
        """
        found = np.zeros(len(self.documents), dtype=np.int64)
        asked, whole = self.queries, len(documents) <= arrays.DOCUMENTS_PER_BLOCK
        if not whole:
            own = np.einsum("ij,ij->i", queries[asked], documents[self.documents])
        for part, block, scores in arrays.score_blocks(queries, documents):
            if hidden is not None:
                out = hidden.take(np.arange(part.start, part.stop))
                places = out.documents - block.start
                inside = (places >= 0) & (places < scores.shape[1])
                scores[out.queries[inside], places[inside]] = -np.inf
            entries = slice(self.offsets[part.start], self.offsets[part.stop])
            lines, places = asked[entries] - part.start, self.documents[entries] - block.start
            if whole:
                found[entries] = ahead(scores, lines, places, scores[lines, places], depth)
            else:
                found[entries] += ahead(scores, lines, places, own[entries], depth, _NOISE)
        return found

    def grades_at(self, ranked: Rows) -> Floats:
        """Return grades, 0: not relevant, of ranked rows or :data:`NO_DOCUMENT`, ``(n, k)``."""
        width = 1 + max(int(ranked.max(initial=0)), int(self.documents.max(initial=0)))
        keys = self.queries * width + self.documents
        order = np.argsort(keys)
        wanted = np.arange(len(self))[:, None] * width + ranked
        if not len(keys):
            return np.zeros(ranked.shape)
        at = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
        hit = (keys[order[at]] == wanted) & (ranked != NO_DOCUMENT)
        return np.where(hit, self.grades[order[at]], 0.0)


class Shortlist:
    """Scores rankings of a few documents per query by the ranks of the relevant ones alone.

    ``rows`` are ``(n, c)`` documents, ascending, or :data:`NO_DOCUMENT`.
    """

    def __init__(self, rows: Rows, relevance: Qrels, k: int) -> None:
        grades = relevance.grades_at(rows)
        self._lines, self._places = np.nonzero(grades)
        counts, own = np.count_nonzero(grades, axis=1), grades[self._lines, self._places]
        self._relevance, self._k = Qrels._of(counts, self._places, own), k
        self._ideal = relevance.ideal_gain(k)

    def ndcg(self, scores: Vectors) -> Floats:
        """Return NDCG@k, ``(n,)``, by ``(n, c)`` scores; see :func:`ahead`."""
        found = ahead(scores, self._lines, self._places, scores[self._lines, self._places], self._k)
        return self._relevance.discounted_gain(found, self._k) / self._ideal


@dataclass(frozen=True, eq=False)
class EncodedDataset:
    """A dataset as arrays; what learns and what judges sees nothing else."""

    queries: Vectors  #: ``(n, dim)``, as the base model gave them.
    documents: Vectors  #: ``(m, dim)``, likewise.
    relevance: Qrels  #: Over the rows of both.
    query_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    canonical_rows: Rows  #: ``(m,)``, the first document with the same text, mostly its own row.
    keys: Keys  #: ``(m,)``, the content keys of the documents.
    negatives: Qrels | None = None  #: Documents mined as hard negatives.
    hidden: Qrels | None = None  #: Documents that do not compete for a query, as its own text.
    twins_count: bool = False  #: Whether a document of a relevant one's text counts as relevant.
    query_keys: Keys | None = None  #: ``(n,)``, content keys of the queries; else of their ids.

    @property
    def scored(self) -> Qrels:
        """What scores count as relevant."""
        first = self.canonical_rows
        return self.relevance.with_twins(first) if self.twins_count else self.relevance

    @property
    def groups(self) -> Keys:
        """``(n,)``: equal of queries with one text, also of those of other datasets."""
        return content_hashes(self.query_ids) if self.query_keys is None else self.query_keys

    @property
    def same(self) -> Rows:
        """``(n,)``: of each query the first that asks the same, by text or by vector."""
        texts, vectors, rows = dict[int, int](), dict[bytes, int](), []
        for row, key in enumerate(self.groups.tolist()):
            first = texts.setdefault(key, row)
            rows.append(vectors.setdefault(self.queries[first].tobytes(), first))
        return np.array(rows, dtype=np.int64)

    @property
    def clusters(self) -> Rows:
        """``(n,)``: of each query the first that asks the same, or for the very same documents."""
        found, truth = dict[bytes, int](), self.relevance
        answers = np.split(self.canonical_rows[truth.documents], truth.offsets[1:-1])
        sets = ((row, np.unique(answers[row]).tobytes()) for row in self.same.tolist())
        return np.array([found.setdefault(answer, row) for row, answer in sets], dtype=np.int64)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is scored otherwise than ids and judgements alone would have it, in words."""
        own = 0 if self.hidden is None else int((self.hidden.counts > 0).sum())
        twins = len(self.scored.documents) - len(self.relevance.documents)
        not_searched = "in the corpus under their own id, and are not searched for themselves"
        counted = "have the text of a relevant one, and count as relevant"
        told = {
            f"{own:,} queries stand {not_searched} (ignore_identical_ids)": own,
            f"{twins:,} documents {counted} (twins_count)": twins,
        }
        return tuple(words for words, count in told.items() if count)

    def take(self, queries: Rows) -> EncodedDataset:
        """Keep these queries and all documents."""
        parts = {name: getattr(self, name) for name in ("relevance", "negatives", "hidden")}
        taken: Any = {name: part and part.take(queries) for name, part in parts.items()}
        ids = tuple(self.query_ids[row] for row in queries)
        taken["query_keys"] = None if self.query_keys is None else self.query_keys[queries]
        return replace(self, queries=self.queries[queries], query_ids=ids, **taken)
