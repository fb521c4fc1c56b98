"""A model beside its base on a test set; queries about known and about new documents apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sets
from benchmarks.quality.published import Ranker
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted import compare_retrieval
from llama_index_embeddings_adapted.adapters.base import Adapter
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
    known = np.array(list(known_to(real.train, real.tests[split]).values()))
    found = {}
    for name, keep in {"all": known | ~known, "known": known, "new": ~known}.items():
        if keep.any():
            found[name] = _compared(scores, keep)
    return found


def _compared(scores: dict[str, RetrievalScores], keep: np.ndarray) -> dict[str, Any]:
    """Return what both models score on the queries whose flag, of ``(n,)``, is true."""
    kept = {name: {m: one.values(m)[keep] for m in METRICS} for name, one in scores.items()}
    base, adapted = kept["base"], kept["adapted"]
    differences = {m: paired_difference(base[m], adapted[m], metric=m) for m in METRICS}
    ndcg = differences["ndcg@10"]
    return {
        "queries": ndcg.queries,
        **{name: {m: float(own[m].mean()) for m in METRICS} for name, own in kept.items()},
        "difference": float(adapted["ndcg@10"].mean() - base["ndcg@10"].mean()),
        "interval": [ndcg.low, ndcg.high],
        "p_value": ndcg.p_value,
        "intervals": {m: [each.low, each.high] for m, each in differences.items()},
    }


def ranked(ranker: Ranker, test: EncodedDataset, real: sets.RealSet) -> dict[str, Any]:
    """Compare another way to rank with the base model on the encoded test set."""
    base = search(test, test.queries, test.documents)
    return by_part({"base": base, "adapted": ranker(test)}, real, "test")


def served(adapter: Adapter, data: EncodedDataset) -> RetrievalScores:
    """Search with what an adapter makes of queries and documents."""
    documents = adapter.apply(data.documents, "document", data.keys)
    return search(data, adapter.apply(data.queries), documents)


def difference(base: RetrievalScores, other: RetrievalScores, metric: str = "ndcg@10") -> Any:
    """Return the paired difference of two scores, with its interval."""
    return paired_difference(base.values(metric), other.values(metric), metric=metric)


def known_to(train: Dataset, dataset: Dataset) -> dict[str, bool]:
    """Return for each query of ``dataset`` whether ``train`` asks for one of its documents."""
    asked = {document for documents in train.relevant_docs.values() for document in documents}
    return {query: not asked.isdisjoint(found) for query, found in dataset.relevant_docs.items()}
