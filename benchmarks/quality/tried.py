"""What was tried on top of the plain maps: averages, other losses, hard negatives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import environment, sets
from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.adapters.maps import LinearAdapter
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import hard_negatives
from llama_index_embeddings_adapted.training import modules, trainer
from llama_index_embeddings_adapted.training.auto.cross_fitting import Fold, folds
from llama_index_embeddings_adapted.training.auto.pipelines import Kitchen, Recipe
from llama_index_embeddings_adapted.training.auto.tune import epochs_for
from llama_index_embeddings_adapted.training.closed_form import Spectrum, whitening
from llama_index_embeddings_adapted.training.modules import Targets
from llama_index_embeddings_adapted.training.options import TrainingOptions

of = Recipe.of
PAIRS = 1_000  # drawn from train and dev; fewer where there are fewer
SEEDS = 3
_OPTIONS = TrainingOptions(max_candidates=1_024, batch_size=192)  # as auto has them
_MAPS = ("linear", "mnr", "corpus", "shared", "two_sided")
_SHARES = (0.25, 0.5, 0.75)
_NEGATIVES, _MARGINS = 5, (0.02, 0.05)


def run(data: Path, cache: Path, names: tuple[str, ...]) -> None:
    """Cross-fit every variant; no test query is looked at. Sets that are there are left alone."""
    encoder = Encoder(environment.minilm(), cache_dir=cache, show_progress=False)
    for name in (name for name in names if not _there(name)):
        real = sets.load(data, name)
        pairs = encoder.dataset(real.train if real.dev is None else real.train.merged(real.dev))
        began = time.perf_counter()
        gains = _gains(_drawn(pairs))
        _keep(name, {"gains": gains, "seconds": time.perf_counter() - began})
        print(name, gains, flush=True)


def _there(name: str) -> bool:
    # A set that an earlier version measured has no parts of the way, and is measured anew.
    found = environment.load("tried")["sets"] if environment.exists("tried") else {}
    return f"linear, {_SHARES[0]:.0%} of the way" in found.get(name, {}).get("gains", {})


def _keep(name: str, row: dict[str, Any]) -> None:
    def change(results: dict[str, Any]) -> None:
        results.setdefault("sets", {})[name] = row

    environment.update("tried", "python -m benchmarks tried", change)


def _drawn(data: EncodedDataset) -> EncodedDataset:
    order = np.random.default_rng(0).permutation(len(data.relevance))
    return data.take(np.sort(order[:PAIRS]))


def _gains(data: EncodedDataset) -> dict[str, list[float | None]]:
    """Return of each variant the mean change in NDCG@10 on known and on new documents."""
    epochs = epochs_for(round(0.64 * len(data.relevance)), _OPTIONS.batch_size)  # of a fold
    spectrum = Spectrum(data.documents)
    found: dict[str, list[list[float]]] = {}
    for fold in folds(data, seed=0):
        base = fold.score(LinearAdapter.identity(data.queries.shape[1]))
        known = fold.judged.known
        for name, adapter in _variants(fold, epochs, spectrum):
            gain = fold.score(adapter) - base
            parts = found.setdefault(name, [[], []])
            for part, which in zip(parts, (known, ~known), strict=True):
                part.extend(gain[which])
    return {
        name: [float(np.mean(part)) if part else None for part in parts]
        for name, parts in found.items()
    }


def _variants(fold: Fold, epochs: int, spectrum: Spectrum) -> Iterator[tuple[str, Adapter]]:
    kitchen = Kitchen(fold.train, _OPTIONS, spectrum)
    yield from _parts_of_the_way(kitchen, epochs)
    yield from _by_heart(kitchen, epochs)
    yield from _other_trainings(kitchen, epochs)


def _parts_of_the_way(kitchen: Kitchen, epochs: int) -> Iterator[tuple[str, Adapter]]:
    for method in _MAPS:
        for share in _SHARES:
            yield (
                f"{method}, {share:.0%} of the way",
                kitchen.make(of(method, epochs=epochs, share=share)),
            )
        yield method, kitchen.make(of(method, epochs=epochs))
    linear, mnr, corpus = (kitchen.make(of(method, epochs=epochs)) for method in _MAPS[:3])
    yield "mean of linear and mnr", _mean([linear, mnr])
    yield "mean of linear and corpus", _mean([linear, corpus])


def _by_heart(kitchen: Kitchen, epochs: int) -> Iterator[tuple[str, Adapter]]:
    """Memories, kernels and nudges on one map."""
    linear = of("linear", epochs=epochs)
    for temperature, weight in ((0.1, 1.0), (0.2, 1.0), (0.4, 2.0)):
        for method in ("kernel",):
            recipe = of(method, linear, temperature=temperature, weight=weight)
            yield (
                f"linear + {method}, temperature {temperature}, weight {weight:g}",
                kitchen.make(recipe),
            )
    kernel = of("kernel", linear, temperature=0.2, weight=1.0)
    for share in (*_SHARES, 1.0):
        nudged = of("nudge", kernel, linear, epochs=3, share=share)
        yield f"that kernel of .2 + nudges, {share:.0%} of the way", kitchen.make(nudged)


def _other_trainings(kitchen: Kitchen, epochs: int) -> Iterator[tuple[str, Adapter]]:
    spectrum = kitchen.directions

    def trained(method: str, seed: int = 0, train: EncodedDataset = kitchen.train) -> Any:
        own = Kitchen(train, replace(_OPTIONS, seed=seed), spectrum)
        return own.make(of(method, epochs=epochs))

    longer = replace(_OPTIONS, epochs=3 * epochs)
    *_, (_, export) = trainer.states(kitchen.train, whitening(spectrum), longer)
    yield "linear, constant learning rate, 3 times the steps", export()
    for method in ("linear", "shared"):
        yield f"{method}, mean of {SEEDS} seeds", _mean([trained(method, s) for s in range(SEEDS)])
    for method in ("linear", "mnr"):
        yield f"{method}, hard negatives", trained(method, train=_mined(kitchen.train))
    with _instead("ranking_nll", _symmetric):
        yield "linear, symmetric loss", trained("linear")
    for margin in _MARGINS:
        with _instead("ranking_nll", _with_margin(margin)):
            yield f"linear, margin {margin:g}", trained("linear")


def _mean(maps: list[LinearAdapter]) -> LinearAdapter:
    """Return the map whose scores are, up to length, the mean of those of several."""
    weight = np.mean([one.weight for one in maps], axis=0)
    zero = np.zeros(len(weight), dtype=np.float32)
    bias = np.mean([zero if one.bias is None else one.bias for one in maps], axis=0)
    return LinearAdapter(weight, bias, shared=maps[0].shared)


def _mined(train: EncodedDataset) -> EncodedDataset:
    rows = hard_negatives(train, k=_NEGATIVES, most_of_positive=0.95)
    return replace(train, negatives=Qrels.from_lists([list(row) for row in rows]))


@contextmanager
def _instead(name: str, other: Any) -> Iterator[None]:
    """Train with another loss."""
    usual = getattr(trainer, name)
    setattr(trainer, name, other)
    try:
        yield
    finally:
        setattr(trainer, name, usual)


def _symmetric(
    queries: Tensor,
    documents: Tensor,
    targets: Targets,
    *,
    temperature: Tensor | float,
    stands_for: float = 1.0,
) -> Tensor:
    """Each document that the batch asks for has to find its queries, too."""
    there = modules.ranking_nll(
        queries, documents, targets, temperature=temperature, stands_for=stands_for
    )
    logits = queries @ documents.T / temperature
    asked, place = torch.unique(targets.documents, return_inverse=True)
    shares = 1.0 / torch.bincount(place)[place]
    back = torch.logsumexp(logits[:, asked], dim=0).mean()
    right = (logits[targets.queries, targets.documents] * shares).sum() / len(asked)
    return (there + back - right) / 2


def _with_margin(margin: float) -> Callable[..., Tensor]:
    """Relevant documents have to lead by a margin, in cosine units."""

    def loss(
        queries: Tensor,
        documents: Tensor,
        targets: Targets,
        *,
        temperature: Tensor | float,
        stands_for: float = 1.0,
    ) -> Tensor:
        # To lead by more is to win against more documents: what each other one stands for.
        others = stands_for * torch.exp(margin / torch.as_tensor(temperature).detach())
        return modules.ranking_nll(
            queries, documents, targets, temperature=temperature, stands_for=float(others)
        )

    return loss
