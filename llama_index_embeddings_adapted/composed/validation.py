"""How a small model beside a black box fares on held-out queries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.composed.small_model import SmallModel, compose, tune_weight
from llama_index_embeddings_adapted.core.arrays import Rows, Vectors, l2_normalize, top_k
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation import metrics
from llama_index_embeddings_adapted.evaluation.comparison import Comparison
from llama_index_embeddings_adapted.evaluation.held_out import PartReport, compare_by_part
from llama_index_embeddings_adapted.evaluation.retrieval import Texts, search

_ALWAYS = ("hit_rate@5", "mrr@10", "ndcg@10")


@dataclass(frozen=True, eq=False)
class Judged:
    """How a trained small model compares with the base model, among all documents.

    Args:
        weight: λ as tuned; as trained, where there is no black box.
        overall: All held-out queries.
        known: Those about documents that training has queries for; None if there are none.
        new: Those about documents that it has not; None if there are none.
        held_out: Both models on the held-out queries, one by one, with their texts.
    """

    weight: float
    overall: PartReport
    known: PartReport | None
    new: PartReport | None
    held_out: Comparison


class ComposedValidation:
    """Scores a small model on held-out queries, alone or composed with the black box.

    Args:
        data: The queries, with everything they are searched in, as the base model embeds them:
            the black box, or the small model before training where there is none.
        texts: Theirs.
        known: ``(n,)``, whether training has queries for one of their documents.
        composed: Whether the base model is a black box to compose with.
    """

    def __init__(
        self, data: EncodedDataset, texts: Texts, known: NDArray[np.bool_], *, composed: bool
    ) -> None:
        self.data = data
        self._texts = texts
        self._known = known
        self._composed = composed
        self._queries, self._documents = l2_normalize(data.queries), l2_normalize(data.documents)

    def __len__(self) -> int:
        """Return the number of held-out queries."""
        return len(self._known)

    def pool(self, depth: int | None) -> Rows:
        """Return the documents that validation between epochs searches, ascending.

        Args:
            depth: How many of the base model's first documents of each query are among them;
                None for all documents.
        """
        if depth is None:
            return np.arange(len(self._documents))
        ranked, _ = top_k(self._queries, self._documents, depth)
        return np.union1d(ranked, self.data.relevance.documents)

    def base_scores(self, metric: str, pool: Rows) -> dict[str, float]:
        """Return the base model's scores among the documents of a pool, see :meth:`scores`."""
        return self._scores(metric, self._queries, self._documents[pool], pool)

    def scores(self, small: SmallModel, weight: float, metric: str, pool: Rows) -> dict[str, float]:
        """Return the scores of a small model, composed at λ, among the documents of a pool.

        Returns:
            Metric → mean, for ``metric`` and those that every history has.
        """
        queries, documents = self._embedded(small, pool)
        if self._composed:
            queries = compose(self._queries, queries, weight)
            documents = compose(self._documents[pool], documents, weight)
        return self._scores(metric, l2_normalize(queries), l2_normalize(documents), pool)

    def judge(self, small: SmallModel, trained_weight: float) -> Judged:
        """Tune λ, where there is a black box, and compare with the base model."""
        queries, documents = self._embedded(small, np.arange(len(self._documents)))
        weight = trained_weight
        if self._composed:
            pairs = (self._queries, queries), (self._documents, documents)
            weight = tune_weight(*pairs, self.data.relevance, weight)
            queries = compose(self._queries, queries, weight)
            documents = compose(self._documents, documents, weight)
        base = search(self.data, self._queries, self._documents)
        adapted = search(self.data, queries, documents)
        parts = compare_by_part(base, adapted, self._known)
        held_out = Comparison({"base": base, "adapted": adapted}, self._texts)
        return Judged(weight, *parts, held_out)

    def _embedded(self, small: SmallModel, pool: Rows) -> tuple[Vectors, Vectors]:
        documents = [self._texts.documents[row] for row in pool]
        return (
            small.encode(self._texts.queries, "query"),
            small.encode(documents, "document"),
        )

    def _scores(
        self, metric: str, queries: Vectors, documents: Vectors, pool: Rows
    ) -> dict[str, float]:
        relevance = self.data.relevance
        within = replace(relevance, documents=np.searchsorted(pool, relevance.documents))
        names = dict.fromkeys((metric, *_ALWAYS))
        ranked, _ = top_k(queries, documents, max(metrics.parse(name)[1] for name in names))
        return {
            name: float(metrics.compute(name, ranked, within, corpus_size=len(pool)).mean())
            for name in names
        }
