"""Gain against the number of training pairs: ours and the peers, on the same pairs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import environment, sets
from benchmarks.quality import judged, peers
from benchmarks.quality.published import Ranker
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.training.auto.tune import tune
from llama_index_embeddings_adapted.training.options import TrainingOptions

SETS = ("uberlyft_10k", "scifact", "nfcorpus", "nl2bash")
SIZES = (50, 100, 200, 500, 1000, None)
PEERS = ("NUDGE-N", "llama-index-finetuning, tuned")
OURS = {"ours, query side": "query", "ours, both sides": "both"}
_DEV = 0.2  # of the pairs: what the peers are tuned on; ours needs no such part


def run(data: Path, cache: Path, names: tuple[str, ...]) -> None:
    """Draw pairs from train and dev, fit, test; what is there already is kept."""
    encoder = sets.encoder(cache)
    for name in (name for name in names if name in SETS):
        real = sets.load(data, name)
        test, whole = encoder.dataset(real.tests["test"]), real.labelled
        for size in SIZES:
            if size is not None and size >= len(whole.queries):
                continue
            pairs = _draw(whole, size)
            count = str(len(pairs.queries))
            there = set(environment.found("curves", "sets", name, count))
            for method, ranker in _fits(encoder, pairs, there):
                row, keys = judged.ranked(ranker, test, real), ("sets", name, count, method)
                environment.add("curves", "python -m benchmarks curves", keys, row)
                print(f"{', '.join(keys[1:])}: {row['all']['difference']:+.4f}", flush=True)


def _draw(whole: Dataset, size: int | None) -> Dataset:
    """Return some queries and all documents."""
    if size is None:
        return whole
    kept = set(np.random.default_rng(0).permutation(list(whole.queries))[:size].tolist())
    return Dataset(
        {query: text for query, text in whole.queries.items() if query in kept},
        whole.corpus,
        {query: found for query, found in whole.relevant_docs.items() if query in kept},
    )


def _fits(encoder: Encoder, pairs: Dataset, there: set[str]) -> Iterator[tuple[str, Ranker]]:
    for method, adapts in OURS.items():
        if method not in there:
            options = TrainingOptions(adapts=adapts)
            found = tune(encoder.dataset(pairs), options, show_progress=False)
            yield method, partial(judged.served, found.adapter)
    wanted = tuple(peer for peer in PEERS if peer not in there)
    train, dev = pairs.train_test_split(_DEV, by="query", seed=0)
    for peer, _, ranker, *_ in peers.fits(encoder.dataset(train), encoder.dataset(dev), wanted):
        yield peer, ranker
