"""Other ways to adapt a black box, on the same vectors, by their own code or after papers."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets
from benchmarks.known import as_texts
from benchmarks.quality import judged, published
from benchmarks.quality.published import Ranker, Setting
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation.retrieval import search

Fit = Callable[[EncodedDataset, EncodedDataset, Setting, int], Ranker]  # train, dev, seed
COMMAND = "python -m benchmarks peers --packages packages"
MOST_POSITIVES = 4  # of a query, for linear-adapter-trainer: some queries have hundreds


@dataclass(frozen=True)
class Peer:
    """How it is fitted, the settings that dev chooses from, and whether it draws."""

    fit: Fit
    settings: list[Setting]
    draws: bool = False


def run(
    load: Callable[[str], sets.RealSet], cache: Path, names: tuple[str, ...],
    peers: tuple[str, ...], seeds: int,
) -> None:  # fmt: skip
    """Tune on dev, test once; what is there already is kept."""
    encoder = sets.encoder(cache, embed_batch_size=32)
    for name in names:
        real = load(name)
        there = {
            (peer, row["seed"]): row["setting"]
            for peer, rows in environment.found("peers", "sets", name).items()
            for row in rows
        }
        test = encoder.dataset(real.tests["test"])
        learnt, decides = map(encoder.dataset, real.with_dev())
        for peer, seed, ranker, took, setting in fits(learnt, decides, peers, seeds, there):
            found = judged.ranked(ranker, test, real)
            row = {"seed": seed, "setting": setting, "seconds": took, "tests": {"test": found}}
            environment.add("peers", COMMAND, ("sets", name, peer), row, by=("seed",))
            gain = found["all"]["difference"]
            print(name, peer, setting, f"{gain:+.4f}; {took:.0f} s", flush=True)


def fits(
    learnt: EncodedDataset, decides: EncodedDataset, peers: tuple[str, ...], seeds: int = 1,
    there: Any = (),
) -> Iterator[tuple[str, int, Ranker, float, Setting]]:  # fmt: skip
    """Yield name, seed, ranker, seconds and setting; the first seed is tuned, others follow it."""
    for name in peers:
        peer = PEERS[name]
        settings = [there[name, 0]] if (name, 0) in there else peer.settings
        for seed in range(seeds if peer.draws else 1):
            if (name, seed) in there:
                continue
            began = time.perf_counter()
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                fitted = [(peer.fit(learnt, decides, one, seed), one) for one in settings]
                ranker, setting = fitted[0]
                if len(fitted) > 1:
                    ranker, setting = max(fitted, key=lambda one: one[0](decides)["ndcg@10"])
            settings = [setting]
            yield name, seed, ranker, time.perf_counter() - began, setting


def _nudge(learnt: EncodedDataset, decides: EncodedDataset, setting: Setting, seed: int) -> Ranker:
    """``nudge-ft`` as its documentation says, γ found by it on dev."""
    import nudge
    import torch

    # Normalised again: its NUDGE-M gives vectors of other lengths, to be searched as they are.
    method = getattr(nudge, setting["class"])(device=torch.device("cpu"))
    wanted = (_as_nudge_wants(part) for part in (learnt, decides))
    moved = method.finetune_embeddings(l2_normalize(learnt.documents), *wanted)
    rows = {document: row for row, document in enumerate(learnt.document_ids)}
    return lambda test: search(test, test.queries, moved[[rows[d] for d in test.document_ids]])


def _as_nudge_wants(data: EncodedDataset) -> dict[str, Any]:
    answers = [data.relevance.relevant_to(row).tolist() for row in range(len(data.relevance))]
    return {"q_embs": l2_normalize(data.queries), "q_ans_indx": answers}


def _old(learnt: EncodedDataset, decides: EncodedDataset, setting: Setting, seed: int) -> Ranker:
    weight = old_weight(learnt, setting["rate"], setting["epochs"])
    return lambda test: search(test, test.queries @ weight.T, test.documents)


def old_weight(learnt: EncodedDataset, rate: float, epochs: int) -> np.ndarray[Any, Any]:
    from llama_index.finetuning import EmbeddingAdapterFinetuneEngine as OldEngine

    texts, base = as_texts(learnt)
    with tempfile.TemporaryDirectory() as folder:
        options = {"epochs": epochs, "optimizer_params": {"lr": rate}, "device": "cpu"}
        engine = OldEngine(texts, base, model_output_path=folder, **options)
        engine.finetune()
        model = engine.get_finetuned_model()
        return np.asarray(model._adapter.linear.weight.detach().numpy(), dtype=np.float32)


def _trainer(learnt: EncodedDataset, decides: EncodedDataset, setting: Any, seed: int) -> Ranker:
    """linear-adapter-trainer: triplets with its sampler, its loop, which keeps its best epoch."""
    import linear_adapter_trainer as lat

    triplets, vectors = _triplets(learnt, decides, setting["negatives"], seed)
    documents = [f"document {row}" for row in range(len(learnt.document_ids))]
    config = lat.TrainingConfig(learning_rate=setting["rate"], seed=seed, device="cpu")
    corpus = lat.KnowledgeBase.from_texts(documents, ids=documents)
    trainer = lat.AdapterTrainer(corpus, _Embedder(vectors), config)
    adapter = trainer.fit(lat.TripletDataset(*triplets), verbose=False).adapter
    return lambda test: search(test, adapter.transform(test.queries), test.documents)


@lru_cache(maxsize=1)  # both rates learn from the same
def _triplets(learnt: EncodedDataset, decides: EncodedDataset, negatives: str, seed: int) -> Any:
    """Return the triplets of train and of dev, and the vectors of their texts."""
    import linear_adapter_trainer as lat

    vectors = {f"document {row}": vector for row, vector in enumerate(learnt.documents)}
    sampler = lat.NegativeSampler(learnt.documents, strategy=negatives, seed=seed)
    random = np.random.default_rng(seed)
    places = {document: row for row, document in enumerate(learnt.document_ids)}
    parts: list[list[Any]] = [[], []]
    for mark, data, part in zip(("train", "dev"), (learnt, decides), parts, strict=True):
        vectors |= {f"{mark} {row}": vector for row, vector in enumerate(data.queries)}
        for row in range(len(data.query_ids)):
            found = random.permutation(data.relevance.relevant_to(row))[:MOST_POSITIVES]
            for positive in (places[data.document_ids[at]] for at in found):
                ((negative, _),) = sampler.sample(positive)
                ids = f"document {positive}", f"document {negative}"
                part.append(lat.Triplet(f"{mark} {row}", *ids))
    return parts, vectors


@dataclass(frozen=True)
class _Embedder:
    """What linear-adapter-trainer asks for vectors."""

    vectors: dict[str, Any]
    dimension: int = 0  # asked for where there are no queries

    def embed(self, texts: list[str]) -> Any:
        return np.stack([self.vectors[text] for text in texts])


_RATES, _EPOCHS = (2e-5, 1e-4, 1e-3, 5e-3), (1, 2, 4, 8)
PEERS = {
    "Rocchio": Peer(published.rocchio, published.ROCCHIO),
    "PEFA-XS": Peer(published.pefa_xs, published.PEFA_XS),
    "PEFA-XL": Peer(published.pefa_xl, published.PEFA_XL),
    "NUDGE-M": Peer(_nudge, [{"class": "NUDGEM"}]),
    "NUDGE-N": Peer(_nudge, [{"class": "NUDGEN"}]),
    "llama-index-finetuning, as shipped": Peer(_old, [{"rate": 2e-5, "epochs": 4}]),
    "llama-index-finetuning, tuned": Peer(
        _old, [{"rate": rate, "epochs": epochs} for rate, epochs in product(_RATES, _EPOCHS)]
    ),
    "linear-adapter-trainer": Peer(
        _trainer,
        [{"negatives": kind, "rate": rate}
         for kind, rate in product(("semantic_opposite", "mixed", "hard"), (1e-3, 5e-3))],
        draws=True,
    ),
    "Search-Adaptor": Peer(published.search_adaptor, published.SEARCH_ADAPTOR, draws=True),
}  # fmt: skip
