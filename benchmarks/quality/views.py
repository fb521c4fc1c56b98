"""What words and a document prior add to vectors: without labels, tuned, beside adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets
from benchmarks.quality import judged
from llama_index_embeddings_adapted import BM25Index, DocumentPrior, LexicalEmbedding
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.adapters.prior import WEIGHT as PENALTY
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import DEPTH, RetrievalScores
from llama_index_embeddings_adapted.evaluation.views import PENALTIES, WEIGHTS
from llama_index_embeddings_adapted.lexical.bm25 import WEIGHT as WORDS
from llama_index_embeddings_adapted.serving.views import Views
from llama_index_embeddings_adapted.training.unlabelled import SHRINKAGE, self_trained

COMMAND = "python -m benchmarks views --packages packages"
ONE_VECTOR = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # λ², of its words
MOST_TEST, MOST_DEV, MOST_BANK = 1_500, 1_000, 2_000
_RANK_CONSTANT = 60.0  # of LlamaIndex's reciprocal rank fusion


@dataclass(frozen=True)
class Scored:
    """Scores of every document for every query, each ``(n, m)``."""

    data: Any
    cosines: Vectors
    words: Vectors
    nearness: Vectors

    def mixed(self, weight: float, penalty: float) -> RetrievalScores:
        return self.ranked(self.cosines + weight * self.words - penalty * self.nearness)

    def adapted(self, adapter: Adapter, bank: Vectors) -> Scored:
        """Return the scores of an adapted model; the bank is of the base model."""
        data = self.data
        documents = l2_normalize(adapter.apply(data.documents, "document", data.keys))
        return replace(
            self,
            cosines=l2_normalize(adapter.apply(data.queries)) @ documents.T,
            nearness=DocumentPrior(adapter.apply(bank)).nearness(documents),
        )

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
            gains += np.take_along_axis(total, first, axis=1)
            np.put_along_axis(total, first, gains, axis=1)
        return self.ranked(total)


def run(
    load: Callable[[str], sets.RealSet], cache: Path, names: tuple[str, ...], seeds: int
) -> None:
    """Measure every view of each set once, then what is trained by more seeds; those are kept."""
    base = environment.minilm()
    with Encoder(base, cache_dir=cache, show_progress=False) as encoder:
        for seed, name in product(range(seeds), names):
            there = environment.found("views", "sets", name)
            if seed and str(seed) in there.get("seeds", {}):
                continue
            asked = _Asked.of(load(name), encoder)
            trained = partial(asked.trained, base, cache, seed)
            if seed:
                row, key = trained("auto")[0], ("sets", name, "seeds", str(seed))
            else:
                row, key = measure(asked, trained, encoder, there), ("sets", name)
            environment.add("views", COMMAND, key, row)
            shown = {k: round(v["ndcg@10"], 4) for k, v in row.get("views", row).items()}
            print(name, seed, shown, flush=True)


@dataclass(frozen=True)
class _Asked:
    """A set, with all that views are made of."""

    train: Dataset
    dev: Dataset
    tested: Dataset
    texts: list[str]  # of the bank
    bank: Vectors
    test: Scored

    @classmethod
    def of(cls, real: sets.RealSet, encoder: Encoder) -> _Asked:
        train, dev = real.train, real.dev
        if dev is None:  # scifact: a fifth of its training queries, which the bank then leaves out
            train, dev = train.train_test_split(0.2, seed=0)
        texts = list(_some(train, MOST_BANK).queries.values())
        bank, tested = encoder.encode(texts, "query"), _some(real.tests["test"], MOST_TEST)
        return cls(train, dev, tested, texts, bank, _scored(tested, texts, bank, encoder))

    def rows(self, found: dict[str, RetrievalScores]) -> dict[str, Any]:
        """Return NDCG@10 of views, with the interval of its difference to the base."""
        start, rows = self.test.mixed(0, 0), {}
        for view, scores in found.items():
            gain = judged.difference(start, scores)
            rows[view] = {"ndcg@10": scores["ndcg@10"], "interval": [gain.low, gain.high]}
        return rows

    def trained(
        self, base: Any, cache: Path, seed: int, method: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return rows of an engine's adapter, alone and as it is served with words, and weights."""
        options: Any = {"val_dataset": self.dev, "method": method, "seed": seed}
        engine = sets.trained(self.train, base, cache, **options)
        views, given, test = engine.report.views, engine._found, self.test
        alone = test.adapted(engine.get_finetuned_model().adapter, self.bank).mixed(0, 0)
        served, weights = test.mixed(0, 0), {}
        if views is not None and views.verdict.decision.stance != "against":
            mixed = test.adapted(given.mixed, given.bank) if views.model else test
            served = mixed.mixed(*views.weights)
            weights[method] = [views.words, views.prior, views.model]
        return self.rows({method: alone, f"{method} + views": served}), weights


def measure(
    asked: _Asked, trained: Callable[[str], Any], encoder: Encoder, there: dict[str, Any]
) -> dict[str, Any]:
    """Return the rows of every view; those that took an engine are kept where they are there."""
    texts, bank, test, tested = asked.texts, asked.bank, asked.test, asked.tested
    judge = _scored(_some(asked.dev, MOST_DEV), texts, bank, encoder)
    plain = replace(test, words=_shares(tested))
    adapted = _self_trained(tested, test, texts, bank)
    scores = {(w, p): judge.mixed(w, p)["ndcg@10"] for w in WEIGHTS for p in PENALTIES}
    best = max(scores, key=lambda pair: scores[pair])  # of equal ones, the smallest
    found = {
        "base": test.mixed(0, 0),
        "words alone": plain.ranked(plain.words),
        "rank fusion": plain.fused(),
        "words": test.mixed(WORDS, 0),
        "prior": test.mixed(0, PENALTY),
        "both, no label": test.mixed(WORDS, PENALTY),
        "adapter, no label": adapted.mixed(0, 0),
        "all, no label": adapted.mixed(WORDS, PENALTY),
        "both, dev": test.mixed(*best),
        "one vector, dev": _one_vector(asked.dev, tested, judge, test, texts),
    }
    tuned, rows = {**there.get("tuned", {}), "both": best}, there.get("views", {})
    for method in ("linear", "auto"):
        if method not in rows:
            made, weights = trained(method)
            rows, tuned = {**rows, **made}, {**tuned, **weights}
    return {
        "queries": len(tested),
        "documents": len(test.data.document_ids),
        "bank": len(bank),
        "tuned": tuned,
        "without labels on dev": _ways(_some(asked.dev, MOST_DEV), judge, texts, bank),
        "views": {**rows, **asked.rows(found)},
        "seeds": there.get("seeds", {}),
    }


def _self_trained(
    dataset: Dataset, scored: Scored, asked: list[str], bank: Vectors, shrinkage: float = SHRINKAGE
) -> Scored:
    """Return the scores of an adapter that learnt without labels."""
    data = scored.data
    words, prior = BM25Index.of(dataset.corpus, asked), DocumentPrior(bank, weight=PENALTY)
    views = Views(words, l2_normalize(data.documents), data.keys, WORDS, prior)
    return scored.adapted(self_trained(views, asked, bank, shrinkage), bank)


def _one_vector(
    dev: Dataset, tested: Dataset, judge: Scored, test: Scored, asked: list[str]
) -> RetrievalScores:
    """Return what words as 2,048 more dimensions find, their weight chosen on dev."""
    model = LexicalEmbedding.of(dev.corpus.values(), asked)

    def joined(data: Dataset, scored: Scored) -> Scored:
        queries = model.vectors(list(data.queries.values()), "query")
        return replace(scored, words=queries @ model.vectors([*data.corpus.values()], "document").T)

    on_dev = joined(_some(dev, MOST_DEV), judge)
    weight = max(ONE_VECTOR, key=lambda w: on_dev.mixed(w, 0)["ndcg@10"])
    return joined(tested, test).mixed(weight, 0)


def _ways(dev: Dataset, judge: Scored, asked: list[str], bank: Vectors) -> dict[str, float]:
    """Return NDCG@10 on dev of ways to weigh words without a label, and of adapters alone."""
    plain = _shares(dev)
    by_best = plain / np.maximum(plain.max(axis=1, keepdims=True), 1e-9)
    return {
        "base": judge.mixed(0, 0)["ndcg@10"],
        ".1, of the best document": replace(judge, words=by_best).mixed(0.1, PENALTY)["ndcg@10"],
        ".4, of the query": replace(judge, words=plain).mixed(0.4, PENALTY)["ndcg@10"],
        **{f"{w}, of the query, usual words less": judge.mixed(w, PENALTY)["ndcg@10"]
           for w in (0.3, 0.4, 0.5)},
        **{f"adapter, {each}": _self_trained(dev, judge, asked, bank, each).mixed(0, 0)["ndcg@10"]
           for each in (10.0, 30.0, 100.0, 300.0)},
    }  # fmt: skip


def _shares(dataset: Dataset, asked: Sequence[str] = ()) -> Vectors:
    """Return scores of BM25 that has seen these queries, each query's divided by one number."""
    words = BM25Index.of(dataset.corpus, asked)
    return np.stack([words.shares(query) for query in dataset.queries.values()])


def _scored(dataset: Dataset, asked: list[str], bank: Vectors, encoder: Encoder) -> Scored:
    data = encoder.dataset(dataset)
    cosines = l2_normalize(data.queries) @ l2_normalize(data.documents).T
    nearness = DocumentPrior(bank).nearness(data.documents)
    return Scored(data, cosines, _shares(dataset, asked), nearness)


def _some(dataset: Dataset, most: int) -> Dataset:
    """Return the dataset with at most so many queries, drawn the same each time."""
    names = list(dataset.queries)
    if len(names) <= most:
        return dataset
    drawn = np.sort(np.random.default_rng(0).permutation(len(names))[:most])
    return dataset.subset([names[at] for at in drawn])
