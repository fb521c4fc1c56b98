"""What a dataset consists of, in numbers that go into a report."""

from __future__ import annotations

from statistics import median
from typing import Any

from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset

MOST_MEASURED = 10_000  # texts whose words are counted; beyond, every n-th


def data_statistics(dataset: EmbeddingQAFinetuneDataset) -> dict[str, Any]:
    """Return counts and lengths as JSON knows them, without any text of the dataset.

    Returns:
        ``queries``, ``documents``, ``distinct_documents``, ``judgements``, ``documents_asked_for``,
        ``graded``, ``synthetic``, ``query_words`` and ``document_words`` (least, median, most), and
        ``questions``: what the filters kept and dropped, None where no report is known.
    """
    asked = {document for documents in dataset.relevant_docs.values() for document in documents}
    return {
        "queries": len(dataset.queries),
        "documents": len(dataset.corpus),
        "distinct_documents": len(set(dataset.corpus.values())),
        "judgements": sum(map(len, dataset.relevant_docs.values())),
        "documents_asked_for": len(asked),
        "graded": dataset.grades is not None,
        "synthetic": dataset.synthetic,
        "query_words": _lengths(list(dataset.queries.values())),
        "document_words": _lengths(list(dataset.corpus.values())),
        "questions": _questions(dataset.report),
    }


def _lengths(texts: list[str]) -> list[float]:
    step = -(-len(texts) // MOST_MEASURED)
    words = [len(text.split()) for text in texts[:: step or 1]]
    return [float(min(words)), float(median(words)), float(max(words))] if words else []


def _questions(report: Any) -> dict[str, Any] | None:
    """Return the counts of a report on questions: no question and no passage id."""
    if report is None:
        return None
    found = dict(report.to_dict())
    found.pop("examples", None)
    found["failed"] = len(found.get("failed", ()))
    return found
