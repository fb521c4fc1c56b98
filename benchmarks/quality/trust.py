"""Does the verdict keep its word? With nothing to learn it rarely says "ship"; where there is a
gain that the data can prove, it mostly does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets
from benchmarks.known import as_texts
from benchmarks.processes import timed
from benchmarks.quality import judged
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.evaluation.retrieval import search
from llama_index_embeddings_adapted.training.auto.tune import tune
from llama_index_embeddings_adapted.training.options import TrainingOptions

Null = Callable[[EncodedDataset, np.random.Generator], Qrels]
Row = dict[str, Any]

CALIBRATED = ("uberlyft_10k", "nfcorpus")
PAIRS = 300  # of each calibration run
SIZES = {
    "uberlyft_10k": (100, 300, None),
    "nl2bash": (100, 300, 1000, None),
    "scifact": (100, 300, None),
}
WHOLE = 0.2  # of the runs asked for: with all pairs only the seed differs
TEMPERATURE = 0.02  # of drawn relevance, in cosine units
HARM = 0.005  # relative NDCG@10
SMALL = (  # a third of a processor second a run, and three seconds of the last
    *((method, "shuffled", 60) for method in ("linear", "whitening", "ridge", "kernel")),
    *(("linear", "drawn", pairs) for pairs in (25, 50, 100, 200)),
    ("auto", "shuffled", 60),
)


def shuffled(data: EncodedDataset, random: np.random.Generator) -> Qrels:
    """Deal the relevant documents out to queries anew: there is nothing to learn about queries."""
    relevance = data.relevance
    dealt = random.permutation(relevance.documents)
    return Qrels(relevance.offsets, dealt, np.ones(len(dealt)))


def drawn(data: EncodedDataset, random: np.random.Generator) -> Qrels:
    """Draw one relevant document per query by the base model's own scores.

    The base model is as good as any can be, so there is nothing to gain, but much to lose.
    """
    scores = l2_normalize(data.queries) @ l2_normalize(data.documents).T / TEMPERATURE
    documents = (scores + random.gumbel(size=scores.shape)).argmax(axis=1)
    count = len(documents)
    return Qrels(np.arange(count + 1), documents, np.ones(count))


NULLS: dict[str, Null] = {"shuffled": shuffled, "drawn": drawn}
SHARES = {"shuffled": 1.0, "drawn": 0.25}  # of the runs asked for


def calibrate(data: Path, cache: Path, runs: int) -> None:
    """Run ``method="auto"`` where nothing can be learned; what is there already is kept."""
    for name in CALIBRATED:
        train, test = _encoded(data, cache, name)
        for null in NULLS:
            count = round(SHARES[null] * runs / len(CALIBRATED))
            run = partial(_null_run, train, test, null)
            _complete("calibration", f"{name}, {null}", count, run)


def nulls(data: Path, cache: Path, runs: int) -> None:
    """Train on few pairs, through the engine as users do, where nothing can be learned.

    What is there already is kept; ``runs`` are shuffled ones of each method, half as many drawn.
    """
    train, _ = _encoded(data, cache, CALIBRATED[0])
    for method, null, pairs in SMALL:
        key = f"{method}, {null}, {pairs} pairs"
        found = Counter(environment.found("nulls", "runs", key))
        for seed in range(found.total(), runs if null == "shuffled" else runs // 2):
            found[_decision(train, method, null, pairs, seed)] += 1
            environment.add("nulls", "python -m benchmarks nulls", ("runs", key), dict(found))
        print(key, dict(found), flush=True)


def _decision(data: EncodedDataset, method: str, null: str, pairs: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    sample = _sample(data, pairs, random)
    texts, model = as_texts(sample, NULLS[null](sample, random))
    engine = sets.trained(texts, model, False, method=method, seed=seed)
    return engine.report.verdict.decision.value


def power(data: Path, cache: Path, names: tuple[str, ...], runs: int) -> None:
    """Run it on resamples of real pairs; what is there already is kept."""
    for name in (name for name in names if name in SIZES):
        train, test = _encoded(data, cache, name)
        for size in SIZES[name]:
            key = f"{name}, {size or len(train.relevance)}"
            run = partial(_sampled_run, train, test, size)
            _complete("power", key, runs if size else round(WHOLE * runs), run)


def _encoded(data: Path, cache: Path, name: str) -> tuple[EncodedDataset, EncodedDataset]:
    encoder = sets.encoder(cache)
    real = sets.load(data, name)
    return encoder.dataset(real.labelled), encoder.dataset(real.tests["test"])


def _null_run(train: EncodedDataset, test: EncodedDataset, null: str, seed: int) -> Row:
    random = np.random.default_rng(seed)
    sample = _sample(train, PAIRS, random)
    sample = replace(sample, relevance=NULLS[null](sample, random))
    if null == "drawn":  # live queries follow the same law; shuffled ones are a user's mistake
        test = replace(test, relevance=drawn(test, random))
    return _run(sample, test, seed)


def _sampled_run(train: EncodedDataset, test: EncodedDataset, size: int | None, seed: int) -> Row:
    sample = _sample(train, size, np.random.default_rng(seed)) if size else train
    return _run(sample, test, seed)


def _sample(data: EncodedDataset, size: int, random: np.random.Generator) -> EncodedDataset:
    return data.take(np.sort(random.permutation(len(data.relevance))[:size]))


def _run(sample: EncodedDataset, test: EncodedDataset, seed: int) -> Row:
    options = TrainingOptions(seed=seed)
    tuned, seconds = timed(lambda: tune(sample, options, show_progress=False))
    base = search(test, test.queries, test.documents)["ndcg@10"]
    return {
        "seed": seed,
        "pairs": len(sample.relevance),
        "ship": tuned.choice.ship,
        "verdict": tuned.choice.verdict,
        "recipe": tuned.choice.recipe,
        "announced": tuned.choice.provable,
        "cross_fitted": tuned.parts.overall.difference.mean,
        "base": base,
        "gain": judged.served(tuned.candidate, test)["ndcg@10"] - base,
        "seconds": seconds,
    }


def _complete(result: str, key: str, runs: int, run: Callable[[int], Row]) -> None:
    """Add the runs of the seeds that are not there."""
    there = {row["seed"] for row in environment.found(result, "runs", key)}
    for seed in sorted({*range(runs)} - there):
        row, command = run(seed), f"python -m benchmarks {result}"
        environment.add(result, command, ("runs", key), row, by=("seed",))
        print(f"{result}, {key}: {row['recipe']}, ship {row['ship']}, test {row['gain']:+.4f}; "
              f"{row['seconds']:.0f} s", flush=True)  # fmt: skip
