"""Ours and the peers on sets that no choice was made on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.quality import methods, package_sets, peers
from benchmarks.sets import RealSet
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder

SETS: dict[str, Callable[[Path], Dataset]] = {
    "aws_cli": package_sets.aws_cli,
    "docstrings": package_sets.docstrings,
    "wordnet": package_sets.wordnet,
}
VARIANTS = ("auto, query", "auto, both")
PEERS = ("NUDGE-N", "llama-index-finetuning, tuned")
_NEW = 0.25  # of the queries: of test, about documents that nobody asks for in training
_KNOWN, _DEV = 0.2, 0.1  # of the others


def run(packages: Path, cache: Path) -> None:
    """Make the sets, train on train, choose on dev, test once; each run is saved as it ends."""
    base = environment.minilm(embed_batch_size=32)
    encoder = Encoder(base, cache_dir=cache, show_progress=False)
    for name, make in SETS.items():
        real = split(name, make(packages))
        for variant in VARIANTS:
            row = methods.one(base, real, cache, {**methods.VARIANTS[variant], "seed": 0})
            _keep(name, variant, {"version": methods.version(), **row})
        for peer, row in peers.measured(encoder, real, PEERS):
            _keep(name, peer, row)


def split(name: str, whole: Dataset) -> RealSet:
    """Return train, dev, and a test set of new and of known documents."""
    rest, new = whole.train_test_split(_NEW, by="document", seed=0)
    rest, known = rest.train_test_split(_KNOWN, by="query", seed=0)
    train, dev = rest.train_test_split(_DEV, by="query", seed=0)
    return RealSet(name, train, dev, {"test": known.merged(new)})


def _keep(name: str, method: str, row: dict[str, Any]) -> None:
    command = "python -m benchmarks unseen --packages packages"
    environment.add("unseen", command, ("sets", name, method), row)
    whole = row["tests"]["test"]["all"]
    print(f"{name}, {method}: {whole['base']['ndcg@10']:.4f} → {whole['adapted']['ndcg@10']:.4f}; "
          f"{row['seconds']:.0f} s", flush=True)  # fmt: skip
