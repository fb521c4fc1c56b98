"""From an encoded dataset to batches of tokens and frozen cosines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llama_index_embeddings_adapted.encode import EncodedDataset
from llama_index_embeddings_adapted.evaluation import Texts
from llama_index_embeddings_adapted.negatives import hard_negatives
from llama_index_embeddings_adapted.vectors import Rows, unit

_MOST_OF_POSITIVE = 0.95


def places(data: EncodedDataset, *, per_place: int, negatives: int) -> list[dict[str, list[int]]]:
    """Return what an epoch passes over: a document, queries it answers, and hard negatives.

    Documents with the same text are one document. A document with more than ``per_place`` queries
    has several places.

    Args:
        data: Training queries.
        per_place: Queries per place, at most.
        negatives: Hard negatives per place, at most.
    """
    asked: dict[int, list[int]] = {}
    documents = data.twins[data.relevance.documents]
    for query, document in zip(data.relevance.queries, documents, strict=True):
        if int(query) not in asked.setdefault(int(document), []):
            asked[int(document)].append(int(query))
    none: Sequence[Rows] = [np.empty(0, dtype=np.int64)] * len(data.relevance)
    mined = _mined(data, negatives) if negatives else none
    found = []
    for document, queries in asked.items():
        for start in range(0, len(queries), per_place):
            own = queries[start : start + per_place]
            hard = dict.fromkeys(int(row) for query in own for row in mined[query])
            found.append({"document": [document], "queries": own, "hard": [*hard][:negatives]})
    return found


def _mined(data: EncodedDataset, count: int) -> Sequence[Rows]:
    if data.negatives is None:
        return hard_negatives(data, k=count, most_of_positive=_MOST_OF_POSITIVE)
    given = data.negatives
    return [data.twins[given.of(query)][:count] for query in range(len(given))]


class Collator:
    """Makes a batch of places: tokens of queries and documents, and how they are judged.

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
        self._vectors = (unit(data.queries), unit(data.documents)) if frozen else None
        relevant = data.twins[data.relevance.documents]
        self._relevant: list[set[int]] = [set() for _ in range(len(data.relevance))]
        for query, document in zip(data.relevance.queries, relevant, strict=True):
            self._relevant[query].add(int(document))

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return ``query_…`` and ``document_…`` tokens, and the judgements as ``label``."""
        queries = list(dict.fromkeys(q for place in features for q in place["queries"]))
        answers = [document for place in features for document in place["document"]]
        hard = [document for place in features for document in place["hard"]]
        documents = list(dict.fromkeys([*answers, *hard]))
        relevant = np.array([[d in self._relevant[q] for d in documents] for q in queries])
        drawn = {(q, d) for place in features for d in place["document"] for q in place["queries"]}
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
