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
from llama_index_embeddings_adapted import losses, training
from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.closed_form import whitening
from llama_index_embeddings_adapted.encode import EncodedDataset, Encoder
from llama_index_embeddings_adapted.folds import Fold, folds
from llama_index_embeddings_adapted.losses import Targets
from llama_index_embeddings_adapted.maps import LinearAdapter
from llama_index_embeddings_adapted.negatives import hard_negatives
from llama_index_embeddings_adapted.options import TrainingOptions
from llama_index_embeddings_adapted.recipes import Kitchen, Recipe
from llama_index_embeddings_adapted.relevance import Relevance
from llama_index_embeddings_adapted.spectrum import Spectrum

PAIRS = 1_000  # drawn from train and dev; fewer where there are fewer
SEEDS = 3
_STEPS = 300  # of each fit, or thereabouts
_MAPS = ("linear", "mnr", "corpus", "shared", "two_sided")
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
    # A set that an earlier version measured lacks some of the maps, and is measured anew.
    found = environment.load("tried")["sets"] if environment.exists("tried") else {}
    return set(_MAPS) <= set(found.get(name, {}).get("gains", {}))


def _keep(name: str, row: dict[str, Any]) -> None:
    def change(results: dict[str, Any]) -> None:
        results.setdefault("sets", {})[name] = row

    environment.update("tried", "python -m benchmarks tried", change)


def _drawn(data: EncodedDataset) -> EncodedDataset:
    order = np.random.default_rng(0).permutation(len(data.relevance))
    return data.take(np.sort(order[:PAIRS]))


def _gains(data: EncodedDataset) -> dict[str, list[float | None]]:
    """Return of each variant the mean change in NDCG@10 on known and on new documents."""
    options = TrainingOptions(max_candidates=2_048)
    queries = round(0.64 * len(data.relevance))  # of a fold
    epochs = max(1, round(_STEPS * options.batch_size / queries))
    spectrum = Spectrum(data.documents)
    found: dict[str, list[list[float]]] = {}
    for fold in folds(data, seed=0):
        base = fold.score(LinearAdapter.identity(data.queries.shape[1]))
        known = fold.judged.known
        for name, adapter in _variants(fold, options, epochs, spectrum):
            gain = fold.score(adapter) - base
            parts = found.setdefault(name, [[], []])
            for part, which in zip(parts, (known, ~known), strict=True):
                part.extend(gain[which])
    return {
        name: [float(np.mean(part)) if part else None for part in parts]
        for name, parts in found.items()
    }


def _variants(
    fold: Fold, options: TrainingOptions, epochs: int, spectrum: Spectrum
) -> Iterator[tuple[str, Adapter]]:

    def trained(method: str, seed: int = 0, train: EncodedDataset = fold.train) -> Any:
        kitchen = Kitchen(train, replace(options, seed=seed), spectrum)
        return kitchen.make(Recipe.of(method, epochs=epochs))

    maps = {method: trained(method) for method in _MAPS}
    yield from maps.items()
    for times in (1, 3):
        longer = replace(options, epochs=times * epochs)
        *_, (_, export) = training.states(fold.train, whitening(spectrum), longer)
        steps = "" if times == 1 else f", {times} times the steps"
        yield f"linear, constant learning rate{steps}", export()
    for method in ("linear", "shared"):
        seeds = [maps[method], *(trained(method, seed) for seed in range(1, SEEDS))]
        yield f"{method}, mean of {SEEDS} seeds", _mean(seeds)
    yield "mean of linear and mnr", _mean([maps["linear"], maps["mnr"]])
    yield "mean of linear and corpus", _mean([maps["linear"], maps["corpus"]])
    yield "linear, hard negatives", trained("linear", train=_mined(fold.train))
    yield "mnr, hard negatives", trained("mnr", train=_mined(fold.train))
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
    return replace(train, negatives=Relevance.from_lists([list(row) for row in rows]))


@contextmanager
def _instead(name: str, other: Any) -> Iterator[None]:
    """Train with another loss."""
    usual = getattr(training, name)
    setattr(training, name, other)
    try:
        yield
    finally:
        setattr(training, name, usual)


def _symmetric(
    queries: Tensor, documents: Tensor, targets: Targets, *, temperature: Tensor | float
) -> Tensor:
    """Each document that the batch asks for has to find its queries, too."""
    there = losses.ranking_nll(queries, documents, targets, temperature=temperature)
    logits = queries @ documents.T / temperature
    asked, place = torch.unique(targets.documents, return_inverse=True)
    shares = 1.0 / torch.bincount(place)[place]
    back = torch.logsumexp(logits[:, asked], dim=0).mean()
    right = (logits[targets.queries, targets.documents] * shares).sum() / len(asked)
    return (there + back - right) / 2


def _with_margin(margin: float) -> Callable[..., Tensor]:
    """Relevant documents have to lead by a margin, in cosine units."""

    def loss(
        queries: Tensor, documents: Tensor, targets: Targets, *, temperature: Tensor | float
    ) -> Tensor:
        logits = queries @ documents.T / temperature
        lead = torch.zeros_like(logits)
        lead[targets.queries, targets.documents] = margin / float(
            torch.as_tensor(temperature).detach()
        )
        right = (logits - lead)[targets.queries, targets.documents] * targets.shares
        return torch.logsumexp(logits - lead, dim=1).mean() - right.sum() / len(queries)

    return loss
