"""What words and a document prior add to the vectors of a base model, with and without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets
from llama_index_embeddings_adapted import BM25Index, DocumentPrior
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import DEPTH, RetrievalScores
from llama_index_embeddings_adapted.evaluation.verdict import paired_difference

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)  # of words
PENALTIES = (0.0, 0.1, 0.2, 0.3, 0.5)  # of the prior
WORDS, PENALTY = 0.1, 0.2  # without a label
MOST_TEST, MOST_DEV, MOST_BANK = 1_500, 1_000, 2_000
_RANK_CONSTANT = 60.0  # of LlamaIndex's reciprocal rank fusion


@dataclass(frozen=True)
class Scored:
    """Three scores of every document for every query of a dataset, each ``(n, m)``."""

    data: Any
    cosines: Vectors
    words: Vectors
    nearness: Vectors

    def mixed(self, weight: float, penalty: float) -> RetrievalScores:
        return self.ranked(self.cosines + weight * self.words - penalty * self.nearness)

    def ranked(self, scores: Vectors) -> RetrievalScores:
        first = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        data = self.data
        return RetrievalScores(first, data.relevance, data.query_ids, data.document_ids)

    def fused(self) -> RetrievalScores:
        """Reciprocal rank fusion of the first 100 a side, as LlamaIndex's fusion retriever does."""
        total = np.zeros_like(self.cosines)
        for scores in (self.cosines, self.words):
            first = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
            found = np.take_along_axis(scores, first, axis=1) != 0  # words that match nothing
            gains = found / (np.arange(first.shape[1]) + _RANK_CONSTANT)
            np.put_along_axis(
                total, first, np.take_along_axis(total, first, axis=1) + gains, axis=1
            )
        return self.ranked(total)


def run(data: Path, cache: Path, names: tuple[str, ...]) -> None:
    """Measure each set; what it trains on is at most two numbers, on dev."""
    with Encoder(environment.minilm(), cache_dir=cache, show_progress=False) as encoder:
        for name in names:
            row = measure(sets.load(data, name), encoder)
            environment.add("views", "python -m benchmarks views", ("sets", name), row)
            print(name, {k: round(v["ndcg@10"], 4) for k, v in row["views"].items()}, flush=True)


def measure(real: sets.RealSet, encoder: Encoder) -> dict[str, Any]:
    """Return NDCG@10 of every view on test, with the interval of its difference to the base."""
    train, dev = real.train, real.dev
    if dev is None:  # scifact: a fifth of its training queries, which the bank then leaves out
        train, dev = train.train_test_split(0.2, seed=0)
    bank = encoder.encode(list(_some(train, MOST_BANK).queries.values()), "query")
    tuned = choose(_scored(_some(dev, MOST_DEV), bank, encoder))
    test = _scored(_some(real.tests["test"], MOST_TEST), bank, encoder)
    found = {
        "base": test.mixed(0, 0),
        "words alone": test.ranked(test.words),
        "rank fusion": test.fused(),
        "words .1": test.mixed(WORDS, 0),
        "prior .2": test.mixed(0, PENALTY),
        "both, no label": test.mixed(WORDS, PENALTY),
        "words, dev": test.mixed(tuned["words"], 0),
        "prior, dev": test.mixed(0, tuned["prior"]),
        "both, dev": test.mixed(*tuned["both"]),
    }
    base = found["base"].values("ndcg@10")
    views = {}
    for view, scores in found.items():
        gain = paired_difference(base, scores.values("ndcg@10"), metric="ndcg@10")
        views[view] = {"ndcg@10": scores["ndcg@10"], "interval": [gain.low, gain.high]}
    return {
        "queries": len(base),
        "documents": len(test.data.document_ids),
        "bank": len(bank),
        "tuned": tuned,
        "views": views,
    }


def choose(dev: Scored) -> dict[str, Any]:
    """Return the weights that are best on dev; of equal ones, the smallest."""
    scores = {(w, p): dev.mixed(w, p)["ndcg@10"] for w in WEIGHTS for p in PENALTIES}
    return {
        "words": max(WEIGHTS, key=lambda w: scores[w, 0.0]),
        "prior": max(PENALTIES, key=lambda p: scores[0.0, p]),
        "both": max(scores, key=lambda pair: scores[pair]),
    }


def _scored(dataset: Dataset, bank: Vectors, encoder: Encoder) -> Scored:
    data = encoder.dataset(dataset)
    words = BM25Index.of(dataset.corpus)
    return Scored(
        data,
        l2_normalize(data.queries) @ l2_normalize(data.documents).T,
        np.stack([words.shares(query) for query in dataset.queries.values()]),
        DocumentPrior(bank).nearness(data.documents),
    )


def _some(dataset: Dataset, most: int) -> Dataset:
    """Return the dataset with at most so many queries, drawn the same each time."""
    names = list(dataset.queries)
    if len(names) <= most:
        return dataset
    drawn = np.sort(np.random.default_rng(0).permutation(len(names))[:most])
    return dataset.subset([names[at] for at in drawn])
