"""What a small model learns from, and what it is judged on.

Queries to train on and queries held out; batches of tokens and frozen cosines; scores of a small
model, alone or beside a black box, on the queries held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import Rows, Vectors, l2_normalize, top_k
from ..core.encoded import EncodedDataset
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding.encoder import Encoder
from ..errors import DatasetError
from ..evaluation import metrics
from ..evaluation.comparison import Comparison
from ..evaluation.held_out import (
    Parts,
    check_queries_differ,
    compare_by_part,
    drop_leaked_queries,
    hold_out,
)
from ..evaluation.retrieval import Texts, hard_negatives, search
from .small_model import SmallModel, compose, tune_weight

_HELD_OUT = 0.1
_MOST_OF_POSITIVE = 0.95
_ALWAYS = ("hit_rate@5", "mrr@10", "ndcg@10")


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

    def scores(
        self, small: SmallModel | None, weight: float, metric: str, pool: Rows
    ) -> dict[str, float]:
        """Return scores among the documents of a pool.

        Args:
            small: The small model, composed at λ; None for the base model alone.
            weight: λ.
            metric: Which score, besides those that every history has.
            pool: Rows of documents, ascending.
        """
        queries, documents = self._queries, self._documents[pool]
        if small is not None:
            theirs = self._embedded(small, pool)
            joined = self._joined((queries, documents), theirs, weight)
            queries, documents = map(l2_normalize, joined)
        relevance = self.data.relevance
        within = replace(relevance, documents=np.searchsorted(pool, relevance.documents))
        names = dict.fromkeys((metric, *_ALWAYS))
        hidden, depth = self.data.hidden, max(metrics.parse(name)[1] for name in names)
        ranked, _ = top_k(queries, documents, depth + (hidden is not None))
        ranked = ranked if hidden is None else hidden.among(pool).last(ranked)[:, :depth]
        return {
            name: float(metrics.compute(name, ranked, within, corpus_size=len(pool)).mean())
            for name in names
        }

    def judge(self, small: SmallModel, trained_weight: float) -> tuple[float, Parts, Comparison]:
        """Tune λ, where there is a black box, and compare with the base model.

        Returns:
            λ; how both models compare on all held-out queries, and on those about known and about
            new documents; both models on the held-out queries, one by one, with their texts.
        """
        own, weight = (self._queries, self._documents), trained_weight
        theirs = self._embedded(small, np.arange(len(self._documents)))
        if self._composed:
            pairs = zip(own, theirs, strict=True)
            hidden = self.data.hidden_entries
            weight = tune_weight(*pairs, self.data.relevance, weight, hidden=hidden)
        base = search(self.data, *own)
        adapted = search(self.data, *self._joined(own, theirs, weight))
        parts = compare_by_part(base, adapted, self._known)
        return weight, parts, Comparison({"base": base, "adapted": adapted}, self._texts)

    def _joined(
        self, own: tuple[Vectors, Vectors], small: tuple[Vectors, Vectors], weight: float
    ) -> Iterator[Vectors]:
        for ours, theirs in zip(own, small, strict=True):
            yield compose(ours, theirs, weight) if self._composed else theirs

    def _embedded(self, small: SmallModel, pool: Rows) -> tuple[Vectors, Vectors]:
        documents = [self._texts.documents[row] for row in pool]
        return (small.encode(self._texts.queries, "query"), small.encode(documents, "document"))


def first_answers(dataset: EmbeddingQAFinetuneDataset) -> EmbeddingQAFinetuneDataset:
    """Return a dataset with the first relevant document of each query alone."""
    first = {query: documents[:1] for query, documents in dataset.relevant_docs.items()}
    changes = {"relevant_docs": first, "grades": None, "hard_negatives": None}
    return dataset.model_copy(update=changes).reported(None)


def held_out_split(
    encoder: Encoder,
    dataset: EmbeddingQAFinetuneDataset,
    given: EmbeddingQAFinetuneDataset | None,
    *,
    seed: int,
) -> tuple[EncodedDataset, EncodedDataset]:
    """Encode what is trained on, and what decides on epoch and λ: ``given``, or held-out queries.

    Without ``given``, a tenth of the queries is held out, and another tenth with all its documents.

    Raises:
        DatasetError: Too few queries, or a base model that tells none from another.
    """
    data = encoder.dataset(dataset)
    check_queries_differ(data)
    if given is not None:
        judged = encoder.dataset(given)
        train = drop_leaked_queries(data, judged)
    else:
        rows, held = hold_out(data, queries=_HELD_OUT, documents=_HELD_OUT, seed=seed)
        train, judged = data.take(rows), data.take(held)
    if not len(train.relevance) or not len(judged.relevance):
        raise DatasetError(
            "Training needs queries to learn from and queries to validate on; "
            f"{len(data.relevance)} leave {len(train.relevance)} and {len(judged.relevance)}. "
            "Add queries, or pass val_dataset."
        )
    return train, judged


def training_groups(
    data: EncodedDataset, *, per_group: int, negatives: int
) -> list[dict[str, list[int]]]:
    """Return what an epoch passes over: a document, queries it answers, and hard negatives.

    Documents with the same text are one document. One with more than ``per_group`` queries has
    several groups; each has ``negatives`` hard negatives at most.
    """
    asked: dict[int, list[int]] = {}
    documents = data.canonical_rows[data.relevance.documents]
    for query, document in zip(data.relevance.queries, documents, strict=True):
        if int(query) not in asked.setdefault(int(document), []):
            asked[int(document)].append(int(query))
    none: Sequence[Rows] = [np.empty(0, dtype=np.int64)] * len(data.relevance)
    mined = _mined(data, negatives) if negatives else none
    found = []
    for document, queries in asked.items():
        for start in range(0, len(queries), per_group):
            own = queries[start : start + per_group]
            hard = dict.fromkeys(int(row) for query in own for row in mined[query])
            found.append({"document": [document], "queries": own, "hard": [*hard][:negatives]})
    return found


def _mined(data: EncodedDataset, count: int) -> Sequence[Rows]:
    if data.negatives is None:
        return hard_negatives(data, k=count, most_of_positive=_MOST_OF_POSITIVE)
    given = data.negatives
    return [data.canonical_rows[given.relevant_to(query)][:count] for query in range(len(given))]


class Collator:
    """Makes a batch of groups: tokens of queries and documents, and how they are judged.

    Args:
        model: The small model, which tokenises with the prompts it has for the two roles.
        data: Training queries, with the vectors of the black box.
        texts: Theirs.
        frozen: Whether there is a black box whose cosines count.
    """

    #: The trainer asks for it: no column of the dataset holds labels.
    valid_label_columns: tuple[str, ...] = ()

    def __init__(self, model: Any, data: EncodedDataset, texts: Texts, *, frozen: bool) -> None:
        self._model = model
        self._texts = texts
        self._vectors = (
            (l2_normalize(data.queries), l2_normalize(data.documents)) if frozen else None
        )
        relevant = data.canonical_rows[data.relevance.documents]
        self._relevant: list[set[int]] = [set() for _ in range(len(data.relevance))]
        for query, document in zip(data.relevance.queries, relevant, strict=True):
            self._relevant[query].add(int(document))

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return ``query_…`` and ``document_…`` tokens, and the judgements as ``label``."""
        import torch

        queries = list(dict.fromkeys(q for group in features for q in group["queries"]))
        answers = [document for group in features for document in group["document"]]
        hard = [document for group in features for document in group["hard"]]
        documents = list(dict.fromkeys([*answers, *hard]))
        relevant = np.array([[d in self._relevant[q] for d in documents] for q in queries])
        drawn = {(q, d) for group in features for d in group["document"] for q in group["queries"]}
        row = {query: number for number, query in enumerate(queries)}
        column = {document: number for number, document in enumerate(documents)}
        label = {
            "relevant": torch.from_numpy(relevant),
            "pairs": torch.tensor(sorted((row[q], column[d]) for q, d in drawn)),
        }
        if self._vectors is not None:
            own, theirs = self._vectors
            label["frozen"] = torch.from_numpy(own[queries] @ theirs[documents].T)
        return {
            **self._tokens("query", [self._texts.queries[query] for query in queries]),
            **self._tokens("document", [self._texts.documents[one] for one in documents]),
            "label": label,
        }

    def _tokens(self, role: str, texts: list[str]) -> dict[str, Any]:
        prompt = self._model.prompts.get(role) or None
        found = self._model.preprocess(texts, prompt=prompt)
        return {f"{role}_{name}": value for name, value in found.items()}
