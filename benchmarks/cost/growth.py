"""What training costs as pairs and documents grow: seconds and memory, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets
from benchmarks.cost.memory import peak_memory
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.training.auto.tune import tune
from llama_index_embeddings_adapted.training.closed_form import ridge, whitening
from llama_index_embeddings_adapted.training.nudging import listwise_nudges
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import states

Row = dict[str, Any]

SIZES = ((2_000, 5_000), (4_000, 10_000), (10_000, 25_000), (20_000, 50_000))  # pairs, documents
_NOISE = 0.02  # per dimension, so that copies of a real vector differ by .4 in length


def _linear(data: EncodedDataset) -> None:
    for _ in states(data, whitening(data.documents), TrainingOptions(epochs=3)):
        pass


WORK: dict[str, Callable[[EncodedDataset], Any]] = {
    "linear, 3 epochs": _linear,
    "ridge": lambda data: list(ridge(data, [1.0])),
    "listwise nudge, 3 epochs": lambda data: list(listwise_nudges(data, 3)),
    "auto, query": lambda data: tune(data, TrainingOptions(), show_progress=False),
    "auto, both": lambda data: tune(data, TrainingOptions(), adapts="both", show_progress=False),
}


def run(data: Path, cache: Path) -> None:
    """Measure each size and method; what is there already is kept."""
    for work in WORK:
        for pairs, documents in SIZES:
            if (work, pairs, documents) not in _there():
                _keep(_in_a_process(data, cache, work, pairs, documents))


def _in_a_process(data: Path, cache: Path, work: str, pairs: int, documents: int) -> Row:
    """Measure in a process of its own, whose peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.growth", str(data), str(cache)]
    command += [work, str(pairs), str(documents)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _there() -> set[tuple[str, int, int]]:
    rows = environment.load("growth")["rows"] if environment.exists("growth") else []
    return {_key(row) for row in rows}


def _keep(row: Row) -> None:
    def change(results: dict[str, Any]) -> None:
        others = [other for other in results.get("rows", []) if _key(other) != _key(row)]
        results["rows"] = sorted([*others, row], key=lambda one: one["pairs"])

    environment.update("growth", "python -m benchmarks growth", change)
    print(row, flush=True)


def _key(row: Row) -> tuple[str, int, int]:
    return row["work"], row["pairs"], row["documents"]


def _grown(data: Path, cache: Path, pairs: int, documents: int) -> EncodedDataset:
    """Real pairs and documents of nl2bash, repeated with noise."""
    encoder = Encoder(environment.minilm(), cache_dir=cache, show_progress=False)
    real = encoder.dataset(sets.load(data, "nl2bash").train)
    random = np.random.default_rng(0)
    asked = np.array([real.relevance.relevant_to(row)[0] for row in range(len(real.relevance))])
    rows = np.arange(pairs) % len(asked)
    # Each pair has a document of its own; the rest of the corpus is not asked for.
    own = real.documents[asked[rows]]
    rest = real.documents[random.integers(len(real.documents), size=documents - pairs)]
    keys = np.arange(documents, dtype=np.uint64)
    return EncodedDataset(
        _noisy(real.queries[rows], random),
        _noisy(np.concatenate([own, rest]), random),
        Qrels.from_lists([[row] for row in range(pairs)]),
        tuple(f"q{row}" for row in range(pairs)),
        tuple(f"d{row}" for row in range(documents)),
        np.arange(documents),
        keys,
    )


def _noisy(vectors: Any, random: np.random.Generator) -> Any:
    return l2_normalize(vectors + _NOISE * random.standard_normal(vectors.shape).astype(np.float32))


def _measure(data: Path, cache: Path, work: str, pairs: int, documents: int) -> Row:
    grown = _grown(data, cache, pairs, documents)
    before = peak_memory()
    began = time.perf_counter()
    WORK[work](grown)
    return {
        "work": work,
        "pairs": pairs,
        "documents": documents,
        "seconds": time.perf_counter() - began,
        "memory_before_mib": before,
        "peak_memory_mib": peak_memory(),
    }


if __name__ == "__main__":
    folder, vectors, name, *counts = sys.argv[1:]
    print(json.dumps(_measure(Path(folder), Path(vectors), name, *map(int, counts))))
