"""Speed on cached vectors: the old training loop, closed forms, nudges, auto, matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import environment, sets
from benchmarks.quality import peers
from llama_index_embeddings_adapted.core.arrays import l2_normalize, top_k
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import search
from llama_index_embeddings_adapted.training.auto.descent import listwise_nudges
from llama_index_embeddings_adapted.training.closed_form import ridge, ridges, whitening
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import states

OLD_SETS = ("uberlyft_10k", "scifact")
OLD_EPOCHS, RATE = 4, 1e-3  # the best of its learning rates on most sets; the same for both
STRENGTHS = tuple(float(s) for s in np.geomspace(0.01, 100, 20))
RIDGE = 3.0  # the strength beside the old loop
REPEATS = 5


def run(data: Path, cache: Path) -> None:
    """Measure on a machine that should do nothing else; what is there already is kept."""
    encoder = sets.encoder(cache)
    nfcorpus = sets.load(data, "nfcorpus")
    parts: dict[str, Callable[[], Any]] = {
        "old_loop": lambda: {name: _old_loop(encoder, sets.load(data, name)) for name in OLD_SETS},
        "ridge_strengths": lambda: len(STRENGTHS),
        "ridge_seconds": lambda: _ridges(_random(6_000, 384)),
        "nudge_nfcorpus_seconds": lambda: _nudge(encoder.dataset(nfcorpus.train)),
        "auto_nfcorpus_seconds": lambda: _autos(nfcorpus, cache),
        "auto_nl2bash_seconds": lambda: _autos(sets.load(data, "nl2bash"), cache),
        "products": _products,
    }
    found = environment.load("speed") if environment.exists("speed") else {}
    for name, measure in parts.items():
        if name not in found:
            _keep(name, measure())


def _keep(name: str, measured: Any) -> None:
    print(name, measured, flush=True)
    added = {name: measured}
    environment.update("speed", "python -m benchmarks speed", lambda found: found.update(added))


def _old_loop(encoder: Encoder, real: sets.RealSet) -> dict[str, float]:
    """Seconds of the old loop, given vectors; of ours until dev is as good; and of ridge."""
    train, dev = real.train, real.dev
    if dev is None:
        train, dev = train.train_test_split(0.1, by="query", seed=0)
    learnt, judged = encoder.dataset(train), encoder.dataset(dev)
    began = time.perf_counter()
    weight = peers.old_weight(learnt, RATE, OLD_EPOCHS)
    old = time.perf_counter() - began
    goal = search(judged, judged.queries @ weight.T, judged.documents)["ndcg@10"]
    ours, epochs, reached = _until(learnt, judged, goal)
    began = time.perf_counter()
    closed = ridge(learnt, RIDGE)
    ridge_seconds = time.perf_counter() - began
    return {
        "old_seconds": old,
        "old_dev": goal,
        "ours_seconds": ours,
        "ours_dev": reached,
        "ours_epochs": epochs,
        "ratio": old / ours,
        "ridge_seconds": ridge_seconds,
        "ridge_dev": search(judged, closed.apply(judged.queries), judged.documents)["ndcg@10"],
        "ridge_ratio": old / ridge_seconds,
    }


def _until(learnt: EncodedDataset, judged: EncodedDataset, goal: float) -> tuple[float, int, float]:
    """Train until dev is as good as the goal; judging is not counted, as the old loop has none."""
    began = time.perf_counter()
    spent = 0.0
    options = TrainingOptions(epochs=100, learning_rate=RATE)
    for epoch, export in states(learnt, whitening(learnt.documents), options):
        adapter = export()
        spent += time.perf_counter() - began
        reached = search(judged, adapter.apply(judged.queries), judged.documents)["ndcg@10"]
        epochs = epoch
        if reached >= goal:
            break
        began = time.perf_counter()
    return spent, epochs, reached


def _ridges(learnt: EncodedDataset) -> float:
    return _seconds(lambda: list(map(ridges(learnt), STRENGTHS)))


def _nudge(learnt: EncodedDataset) -> float:
    return _seconds(lambda: listwise_nudges(learnt, 3), repeats=1)


def _autos(real: sets.RealSet, cache: Path) -> dict[str, float]:
    return {adapts: _auto(real, cache, adapts) for adapts in ("query", "both")}


def _auto(real: sets.RealSet, cache: Path, adapts: str) -> float:
    base = environment.minilm()
    options = {"val_dataset": real.dev, "method": "auto", "adapts": adapts}
    work = partial(sets.trained, real.train, base, cache, **options)
    return _seconds(work, repeats=1)


def _products() -> dict[str, float]:
    """Products that score queries, against ``torch.mm`` of the same shape; and with the search."""
    queries, documents = l2_normalize(_normal(1_600, 384)), l2_normalize(_normal(10_000, 384))
    left, right = torch.from_numpy(queries), torch.from_numpy(documents).T
    plain = _seconds(lambda: torch.mm(left, right))
    ours = _seconds(lambda: queries @ documents.T)
    return {
        "torch_mm_seconds": plain,
        "ours_seconds": ours,
        "share_of_torch_mm": plain / ours,
        "search_seconds": _seconds(lambda: top_k(queries, documents, 10)),
    }


def _random(count: int, dim: int) -> EncodedDataset:
    documents = l2_normalize(_normal(count, dim))
    ids = tuple(map(str, range(count)))
    rows = np.arange(count)
    relevance = Qrels.from_lists([[row] for row in range(count)])
    queries = l2_normalize(documents + 0.05 * _normal(count, dim))
    return EncodedDataset(queries, documents, relevance, ids, ids, rows, rows.astype(np.uint64))


def _normal(count: int, dim: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)


def _seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median wall time."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)
