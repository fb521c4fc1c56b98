"""A model beside its base on a test set; queries about known and about new documents apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sets
from benchmarks.quality.published import Ranker
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted import compare_retrieval
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation.retrieval import RetrievalScores, search
from llama_index_embeddings_adapted.evaluation.verdict import paired_difference

METRICS = ("ndcg@10", "mrr@10", "hit_rate@5")


def judge(base: Any, model: Any, real: sets.RealSet, split: str, cache: Path) -> dict[str, Any]:
    """Score a model against its base on a test file; known and new documents apart."""
    models, options = {"base": base, "adapted": model}, {"cache_dir": cache, "show_progress": False}
    compared = compare_retrieval(models, real.tests[split], **options)
    return by_part(compared.scores, real, split)


def by_part(scores: dict[str, RetrievalScores], real: sets.RealSet, split: str) -> dict[str, Any]:
    """Compare ``"base"`` and ``"adapted"`` on all queries, the known and the new."""
    found = {}
    for name, kept in parts(scores, real, split):
        differences = {metric: difference(*kept.values(), metric) for metric in METRICS}
        ndcg = differences["ndcg@10"]
        found[name] = {**means(kept), "interval": [ndcg.low, ndcg.high], "p_value": ndcg.p_value}
        found[name]["intervals"] = {m: [d.low, d.high] for m, d in differences.items()}
    return found


def ranked(ranker: Ranker, test: EncodedDataset, real: sets.RealSet) -> dict[str, Any]:
    """Compare another way to rank with the base model on the encoded test set."""
    base = search(test, test.queries, test.documents)
    return by_part({"base": base, "adapted": ranker(test)}, real, "test")


def difference(base: RetrievalScores, other: RetrievalScores, metric: str = "ndcg@10") -> Any:
    """Return the paired difference of two scores, with its interval."""
    return paired_difference(base.values(metric), other.values(metric), metric=metric)


def parts(
    scores: dict[str, RetrievalScores], real: sets.RealSet, split: str
) -> Iterator[tuple[str, dict[str, RetrievalScores]]]:
    """Yield the scores on all queries, the known and the new, where there are any."""
    known = np.array(list(known_to(real.train, real.tests[split]).values()))
    for name, keep in {"all": known | ~known, "known": known, "new": ~known}.items():
        if keep.any():
            yield name, {model: part(one, keep) for model, one in scores.items()}


def means(kept: dict[str, RetrievalScores]) -> dict[str, Any]:
    """Return what both models score, and the difference in NDCG@10."""
    return {
        "queries": len(kept["base"].query_ids),
        **{model: {metric: one[metric] for metric in METRICS} for model, one in kept.items()},
        "difference": kept["adapted"]["ndcg@10"] - kept["base"]["ndcg@10"],
    }


def known_to(train: Dataset, dataset: Dataset) -> dict[str, bool]:
    """Return for each query of ``dataset`` whether ``train`` asks for one of its documents."""
    asked = {document for documents in train.relevant_docs.values() for document in documents}
    return {query: not asked.isdisjoint(found) for query, found in dataset.relevant_docs.items()}


def part(scores: RetrievalScores, keep: np.ndarray) -> RetrievalScores:
    """Return the scores of the queries whose flag, of ``(n,)``, is true."""
    rows = np.flatnonzero(keep)
    query_ids = tuple(scores.query_ids[row] for row in rows)
    relevance = scores.relevance.take(rows)
    rest = scores.document_ids, scores.ks
    return RetrievalScores(scores.ranked[rows], relevance, query_ids, *rest)
