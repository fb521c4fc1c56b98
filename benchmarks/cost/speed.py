"""Speed on cached vectors: the old training loop, and auto."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets
from benchmarks.processes import timed
from benchmarks.quality import peers
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import search
from llama_index_embeddings_adapted.evaluation.verdict import METRIC
from llama_index_embeddings_adapted.training.auto.tune import tune, with_documents
from llama_index_embeddings_adapted.training.closed_form import whitening
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import states

OLD_SETS = ("uberlyft_10k", "scifact")
AUTO_SETS = ("uberlyft_10k", "nfcorpus", "nl2bash")
#: Pairs, documents and dimensions of ``auto`` on the query side, without reading and words.
WIDEST = (5_000, 10_000, 4_096)
SIZES = ((1_000, 5_000, 384), (5_000, 10_000, 384), WIDEST)
NOISE = 0.02  # length, of vectors of length 1, in all directions, where they are widened
OLD_EPOCHS, RATE = 4, 1e-3  # the best of its learning rates on most sets; the same for both


def run(data: Path, cache: Path, mpnet: Path | None) -> None:
    """Measure on a machine that should do nothing else; what is there already is kept.

    ``mpnet`` is the folder of all-mpnet-base-v2; what needs it is left out without.
    """
    encoder = sets.encoder(cache)
    parts: dict[str, Callable[[], Any]] = {
        "old_loop": lambda: {name: _old_loop(encoder, sets.load(data, name)) for name in OLD_SETS},
        "auto": lambda: {name: _autos(sets.load(data, name), cache) for name in AUTO_SETS},
        "auto_vectors": lambda: _of_vectors(encoder.dataset(sets.load(data, "nl2bash").train)),
    }
    if mpnet is not None:
        other = Encoder(environment.mpnet(mpnet), cache_dir=cache, show_progress=False)
        parts["auto_two_models"] = lambda: _side_by_side(
            [each.dataset(sets.load(data, "nl2bash").train) for each in (encoder, other)]
        )
    for name, measure in parts.items():
        if name not in environment.found("speed"):
            environment.add("speed", "python -m benchmarks speed", (name,), measure())
            print(name, environment.found("speed", name), flush=True)


def _old_loop(encoder: Encoder, real: sets.RealSet) -> dict[str, float]:
    """Seconds of the old loop, given vectors, and of ours until dev is as good."""
    learnt, judged = map(encoder.dataset, real.with_dev())
    weight, old = timed(lambda: peers.old_weight(learnt, RATE, OLD_EPOCHS))
    goal = search(judged, judged.queries @ weight.T, judged.documents)["ndcg@10"]
    ours, epochs, reached = _until(learnt, judged, goal)
    found = {"old_seconds": old, "old_dev": goal, "ours_seconds": ours, "ours_dev": reached}
    return {**found, "ours_epochs": epochs, "ratio": old / ours}


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


def _autos(real: sets.RealSet, cache: Path) -> dict[str, float]:
    found = {}
    for adapts in ("query", "both"):
        train = partial(sets.trained, real.train, environment.minilm(), cache)
        _, found[adapts] = timed(partial(train, val_dataset=real.dev, method="auto", adapts=adapts))
    return found


def _of_vectors(learnt: EncodedDataset) -> list[dict[str, float]]:
    """Time ``auto`` on some pairs of a set, also with vectors turned into a wider space."""
    return [_of_size(_cut(learnt, pairs, documents), dim) for pairs, documents, dim in SIZES]


def _side_by_side(models: Sequence[EncodedDataset]) -> list[dict[str, float]]:
    """Time ``auto`` on the vectors of several models side by side, as they are and turned."""

    def joined(side: str) -> Any:
        units = [l2_normalize(getattr(each, side)) for each in models]
        return np.concatenate(units, axis=1) / len(units) ** 0.5

    learnt = replace(models[0], queries=joined("queries"), documents=joined("documents"))
    pairs, documents, widest = WIDEST
    narrow = learnt.queries.shape[1]
    return [_of_size(_cut(learnt, pairs, documents), dim) for dim in (narrow, widest)]


def _of_size(learnt: EncodedDataset, dim: int) -> dict[str, float]:
    random, narrow = np.random.default_rng(0), learnt.queries.shape[1]
    if dim > narrow:
        turned, _ = np.linalg.qr(random.standard_normal((dim, narrow)))

        def wide(vectors: Any) -> Any:
            noise = NOISE / dim**0.5 * random.standard_normal((len(vectors), dim))
            return (vectors @ turned.T + noise).astype(np.float32)

        learnt = replace(learnt, queries=wide(learnt.queries), documents=wide(learnt.documents))
    options = TrainingOptions(method="auto")
    found, seconds = timed(lambda: tune(learnt, options, show_progress=False))
    overall = found.parts.overall
    sizes = {"pairs": len(learnt.queries), "documents": len(learnt.documents), "dimensions": dim}
    return {**sizes, "seconds": seconds, "gain": overall.difference.mean / overall.base[METRIC]}


def _cut(learnt: EncodedDataset, pairs: int, documents: int) -> EncodedDataset:
    """Keep some queries, and so many documents, theirs among them."""
    random = np.random.default_rng(0)
    some = learnt.take(np.sort(random.permutation(len(learnt.queries))[:pairs]))
    asked = np.unique(some.canonical_rows[some.relevance.documents])
    others = np.setdiff1d(np.unique(some.canonical_rows), asked)
    more = random.permutation(others)[: max(0, documents - len(asked))]
    return with_documents(some, np.union1d(asked, more))
