"""Other ways to adapt a black box, by their own code, on the same vectors."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from benchmarks import environment, sets
from benchmarks.quality import quality
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import search

Mapped = Callable[[EncodedDataset], tuple[Vectors, Vectors]]
_RATES, _EPOCHS = (2e-5, 1e-4, 1e-3, 5e-3), (1, 2, 4, 8)


PEERS = (
    "NUDGE-M",
    "NUDGE-N",
    "llama-index-finetuning, as shipped",
    "llama-index-finetuning, tuned",
)


def run(data: Path, cache: Path, names: tuple[str, ...], peers: tuple[str, ...]) -> None:
    """Tune on dev, test once; each run is saved as it ends, beside earlier ones."""
    base = environment.minilm(embed_batch_size=32)
    encoder = Encoder(base, cache_dir=cache, show_progress=False)
    for name in names:
        for peer, row in measured(encoder, sets.load(data, name), peers):
            environment.add("peers", "python -m benchmarks peers", ("sets", name, peer), row)
            whole = row["tests"]["test"]["all"]
            print(f"{name}, {peer} ({row['setting']}): {whole['base']['ndcg@10']:.4f} → "
                  f"{whole['adapted']['ndcg@10']:.4f}; {row['seconds']:.0f} s",
                  flush=True)  # fmt: skip


def measured(
    encoder: Encoder, real: sets.RealSet, peers: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and result of each peer, trained on train and tuned on dev."""
    train, dev = real.train, real.dev
    if dev is None:
        train, dev = train.train_test_split(0.1, by="query", seed=0)
    tests = {split: encoder.dataset(test) for split, test in real.tests.items()}
    for peer, mapped, seconds, setting in fits(encoder, train, dev, peers):
        row: dict[str, Any] = {"setting": setting, "seconds": seconds, "tests": {}}
        for split, test in tests.items():
            scores = {
                "base": search(test, test.queries, test.documents),
                "adapted": search(test, *mapped(test)),
            }
            row["tests"][split] = quality.by_part(scores, real, split)
        yield peer, row


def fits(
    encoder: Encoder, train: Dataset, dev: Dataset, peers: tuple[str, ...]
) -> Iterator[tuple[str, Mapped, float, str]]:
    """Yield name, fitted map, seconds and setting of each peer."""
    methods = (_nudge("NUDGEM"), _nudge("NUDGEN"), _old((2e-5,), (4,)), _old(_RATES, _EPOCHS))
    for peer, fit in zip(PEERS, methods, strict=True):
        if peer not in peers:
            continue
        began = time.perf_counter()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            mapped, setting = fit(encoder, train, dev)
        yield peer, mapped, time.perf_counter() - began, setting


def _nudge(name: str) -> Callable[[Encoder, Dataset, Dataset], tuple[Mapped, str]]:
    """``nudge-ft`` as its documentation says, γ found by it on dev."""

    def fit(encoder: Encoder, train: Dataset, dev: Dataset) -> tuple[Mapped, str]:
        import nudge
        import torch

        learnt, judged = encoder.dataset(train), encoder.dataset(dev)
        # Normalised again: its NUDGE-M gives vectors of other lengths, to be searched as they are.
        moved = getattr(nudge, name)(device=torch.device("cpu")).finetune_embeddings(
            l2_normalize(learnt.documents), _as_nudge_wants(learnt), _as_nudge_wants(judged)
        )
        rows = {document: row for row, document in enumerate(learnt.document_ids)}

        def mapped(test: EncodedDataset) -> tuple[Vectors, Vectors]:
            return test.queries, moved[[rows[document] for document in test.document_ids]]

        return mapped, "γ found on dev"

    return fit


def _as_nudge_wants(data: EncodedDataset) -> dict[str, Any]:
    answers = [data.relevance.relevant_to(row).tolist() for row in range(len(data.relevance))]
    return {"q_embs": l2_normalize(data.queries), "q_ans_indx": answers}


class _Known(BaseEmbedding):
    """Vectors that were computed before, so that the old engine's time is its training."""

    _vectors: dict[str, list[float]] = PrivateAttr()

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        super().__init__(model_name="known")
        self._vectors = vectors

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vectors[f"query {query}"]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vectors[f"query {query}"]

    def _get_text_embedding(self, text: str) -> list[float]:
        # The old engine embeds "hello world" to learn the dimension.
        return self._vectors.get(f"text {text}") or next(iter(self._vectors.values()))


def _old(
    rates: tuple[float, ...], epochs: tuple[int, ...]
) -> Callable[[Encoder, Dataset, Dataset], tuple[Mapped, str]]:
    """The old engine's own loop; learning rate and epochs by NDCG@10 on dev where several."""

    def fit(encoder: Encoder, train: Dataset, dev: Dataset) -> tuple[Mapped, str]:
        learnt, judged = encoder.dataset(train), encoder.dataset(dev)
        known = known_vectors(train, learnt)
        best: tuple[float, Vectors, str] | None = None
        for rate in rates:
            for count in epochs:
                weight = old_weight(train, known, rate, count)
                found = search(judged, judged.queries @ weight.T, judged.documents)["ndcg@10"]
                if best is None or found > best[0]:
                    best = found, weight, f"lr {rate:g}, {count} epochs"
        assert best is not None
        weight = best[1]
        return lambda test: (test.queries @ weight.T, test.documents), best[2]

    return fit


def known_vectors(train: Dataset, learnt: EncodedDataset) -> dict[str, list[float]]:
    known = {
        f"query {text}": vector
        for text, vector in zip(train.queries.values(), learnt.queries.tolist(), strict=True)
    }
    return known | {
        f"text {text}": vector
        for text, vector in zip(train.corpus.values(), learnt.documents.tolist(), strict=True)
    }


def old_weight(
    train: Dataset, known: dict[str, list[float]], rate: float, epochs: int
) -> np.ndarray[Any, Any]:
    from llama_index.finetuning import EmbeddingAdapterFinetuneEngine as OldEngine

    with tempfile.TemporaryDirectory() as folder:
        engine = OldEngine(
            train,
            _Known(known),
            model_output_path=folder,
            epochs=epochs,
            optimizer_params={"lr": rate},
            device="cpu",
        )
        engine.finetune()
        model = engine.get_finetuned_model()
        return np.asarray(model._adapter.linear.weight.detach().numpy(), dtype=np.float32)
