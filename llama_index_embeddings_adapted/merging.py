"""Queries and documents of two datasets put together, so that no id stands for two things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llama_index_embeddings_adapted.errors import DatasetError


class Parts(Protocol):
    """What of a dataset is merged."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]
    hard_negatives: dict[str, list[str]] | None

    def grade(self, query_id: str, document_id: str) -> float:
        """Return how relevant a document is."""
        ...


def merged(first: Parts, second: Parts) -> dict[str, Any]:
    """Return the arguments of a dataset of both; see ``EmbeddingQAFinetuneDataset.merged``.

    Raises:
        DatasetError: A document id stands for two texts.
    """
    clash = [d for d, text in second.corpus.items() if first.corpus.get(d, text) != text]
    if clash:
        raise DatasetError(
            f"{len(clash)} document ids stand for different texts in the two datasets "
            f"(first: {clash[0]!r})."
        )
    queries, relevant = dict(first.queries), dict(first.relevant_docs)
    grades = {query: _grades(first, query) for query in relevant}
    negatives = dict(first.hard_negatives or {})
    for query, text in second.queries.items():
        name = _free(query, (text, second.relevant_docs[query]), queries, relevant)
        queries[name], relevant[name] = text, second.relevant_docs[query]
        grades[name] = _grades(second, query)
        if query in (second.hard_negatives or {}):
            negatives[name] = (second.hard_negatives or {})[query]
    return {
        "queries": queries,
        "corpus": {**first.corpus, **second.corpus},
        "relevant_docs": relevant,
        "grades": grades,
        "hard_negatives": negatives or None,
    }


def _grades(dataset: Parts, query: str) -> dict[str, float]:
    return {document: dataset.grade(query, document) for document in dataset.relevant_docs[query]}


def _free(
    query: str,
    judged: tuple[str, Sequence[str]],
    queries: Mapping[str, str],
    relevant: Mapping[str, Sequence[str]],
) -> str:
    """Return an id that is nobody else's: the query's own, with as many primes as it takes."""
    while query in queries and (queries[query], relevant[query]) != judged:
        query += "'"
    return query
