"""Moving to a new base model over the old index, against a real re-embedding of everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

import llama_index_embeddings_adapted as package
from benchmarks import environment, sets
from benchmarks.quality import judged

#: Of each set, drawn with a fixed seed: mpnet embeds four texts a second.
DOCUMENTS, QUERIES = 150, 60
COMMAND = "python -m benchmarks upgrade --mpnet all-mpnet-base-v2"


def run(data: Path, cache: Path, mpnet: Path, names: tuple[str, ...]) -> None:
    """Measure both directions on a part of every set; the map is fitted on its documents."""
    models: dict[str, BaseEmbedding] = {
        "all-MiniLM-L6-v2": environment.minilm(),
        "all-mpnet-base-v2": environment.mpnet(mpnet),
    }
    for name in names:
        dataset = _part(sets.load(data, name).tests["test"])
        runs = [_one(models, *names, dataset, cache) for names in (tuple(models), [*models][::-1])]
        row = {"documents": len(dataset.corpus), "queries": len(dataset.queries), "runs": runs}
        environment.add("upgrade", COMMAND, ("sets", name), row)


def _one(models: Any, old: str, new: str, dataset: Any, cache: Path) -> dict[str, Any]:
    pair = models[old], models[new]
    upgrade = package.upgrade_adapter(*pair, list(dataset.corpus.values()), cache_dir=cache)
    scores = package.evaluate_upgrade(upgrade, *pair, dataset, cache_dir=cache)
    print(old, "→", new, upgrade, scores, sep="\n", flush=True)
    facts = ("texts", "method", "agreement", "chance", "cosine")
    return {
        "old": old,
        "new": new,
        **{fact: getattr(upgrade, fact) for fact in facts},
        **scores.to_dict(),
        "against re-embedding": _interval(scores.reembedded, scores.upgraded),
        "against the old model": _interval(scores.old, scores.upgraded),
    }


def _part(test: package.EmbeddingQAFinetuneDataset) -> package.EmbeddingQAFinetuneDataset:
    """Return some judged queries, a document or two relevant to each, and others up to the cap."""
    random = np.random.default_rng(0)
    asked = random.permutation(sorted(test.queries))[:QUERIES].tolist()
    relevant = {query: list(test.relevant_docs[query])[:2] for query in asked}
    wanted = {document for documents in relevant.values() for document in documents}
    others = random.permutation(sorted(set(test.corpus) - wanted)).tolist()
    kept = wanted | set(others[: DOCUMENTS - len(wanted)])
    return package.EmbeddingQAFinetuneDataset(
        {query: test.queries[query] for query in asked},
        {document: text for document, text in test.corpus.items() if document in kept},
        {query: [each for each in test.relevant_docs[query] if each in kept] for query in asked},
    )


def _interval(one: package.RetrievalScores, other: package.RetrievalScores) -> list[float]:
    lost = judged.difference(one, other)
    return [lost.mean, lost.low, lost.high]
