"""Fitting offsets of single documents, on top of whatever maps the queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters.base import Adapter
from ..adapters.maps import NudgeAdapter
from ..core.arrays import Rows, Vectors, l2_normalize
from ..core.encoded import EncodedDataset, Qrels
from ..errors import OptionError
from .modules import Targets, ranking_nll
from .trainer import limit_threads


def nudge_n(
    train: EncodedDataset, distance: float, *, below: Adapter | None = None
) -> NudgeAdapter:
    """Turn each document towards the sum of its training queries, on the unit sphere.

    Args:
        train: Queries and their documents.
        distance: γ, the squared length of the longest offset, in [0, 2]. Documents nearer to their
            queries' direction than that arrive there; those on the far side of it stay.
        below: The adapter that is applied before; by default none.

    Source:
        NUDGE-N, Zeighami et al. 2024, arXiv:2409.02343, theorem 2.
    """
    if not 0 <= distance <= 2:
        raise OptionError(f"distance: expected a number in [0, 2], got {distance!r}.")
    asked, documents, pull = _pull(train, below)
    along = np.einsum("ij,ij->i", documents, pull)[:, None]
    aside = l2_normalize(pull - along * documents)
    cosine = np.float32(1.0 - distance / 2.0)
    turned = cosine * documents + np.sqrt(1.0 - cosine**2) * aside
    arrived = along >= cosine * np.linalg.norm(pull, axis=1, keepdims=True)
    moved = np.where(along < 0, documents, np.where(arrived, l2_normalize(pull), turned))
    return NudgeAdapter.of(train.keys[asked], moved - documents)


@dataclass(frozen=True)
class NudgeOptions:
    """How to fit listwise nudges.

    Args:
        learning_rate: Of Adam.
        batch_size: Queries per step.
        temperature: Where the learned temperature starts, in cosine units.
        shrinkage: Weight of the squared length of the offsets that compete in a step.
        max_candidates: Most documents with training queries that compete in a step: the relevant
            ones of its batch, and a sample.
        max_others: Most documents without training queries that compete, drawn anew per epoch.
        max_drift: Longest offset, in units of the documents' length 1.
        seed: Of the shuffle.
    """

    learning_rate: float = 2e-3
    batch_size: int = 128
    temperature: float = 0.05
    shrinkage: float = 1e-3
    max_candidates: int = 1_024
    max_others: int = 1_024  # 2,048 of both gave the same, in twice the time
    max_drift: float = 1.0
    seed: int = 0


def listwise_nudges(
    train: EncodedDataset,
    epochs: int,
    options: NudgeOptions | None = None,
    *,
    below: Adapter | None = None,
) -> NudgeAdapter:
    """Fit offsets by a softmax over the whole corpus.

    Unlike NUDGE, which draws each document towards its own queries and nothing else, this also
    draws it away from queries that it wrongly wins. Documents without training queries compete and
    are not moved.

    Args:
        train: Queries and their documents.
        epochs: Passes over the queries.
        options: How to fit.
        below: The adapter that is applied before; by default none.
    """
    run = _Listwise(train, options or NudgeOptions(), below)
    for _ in range(epochs):
        run.epoch()
    return run.export()


class _Listwise:
    def __init__(self, train: EncodedDataset, options: NudgeOptions, below: Adapter | None) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        queries, documents = _mapped(train, below)
        relevant = train.canonical_rows[train.relevance.documents]
        asked = np.unique(relevant)
        self._keys = train.keys[asked]
        self._relevance = Qrels(
            train.relevance.offsets, np.searchsorted(asked, relevant), train.relevance.grades
        )
        nothing = Qrels.from_lists([[]] * len(train.relevance))
        self._hidden = (train.hidden or nothing).among(asked)
        self._queries = torch.from_numpy(queries)
        self._asked = torch.from_numpy(documents[asked])
        self._others = torch.from_numpy(
            documents[np.setdiff1d(np.unique(train.canonical_rows), asked)]
        )
        # Sparse, so that a step costs what it scores, however many documents there are.
        zeros = torch.zeros_like(self._asked)
        self._offsets = nn.Embedding(len(zeros), zeros.shape[1], sparse=True, _weight=zeros)
        self._log_temperature = nn.Parameter(torch.tensor(math.log(options.temperature)))
        rate = options.learning_rate
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.SparseAdam(self._offsets.parameters(), lr=rate),
            torch.optim.Adam([self._log_temperature], lr=rate),
        )

    def epoch(self) -> None:
        """Take one pass over the queries."""
        options = self._options
        others = self._others
        if len(others) > options.max_others:
            kept = self._random.choice(len(others), options.max_others, replace=False)
            others = others[torch.from_numpy(kept)]
        order = self._random.permutation(len(self._relevance))
        scored = min(len(self._asked), options.max_candidates) + len(others)
        with limit_threads(options.batch_size * scored * self._asked.shape[1]):
            for start in range(0, len(order), options.batch_size):
                self._step(order[start : start + options.batch_size], others)

    def _step(self, batch: Rows, others: Tensor) -> None:
        relevant = self._relevance.take(batch)
        candidates = self._candidates(relevant.documents)
        rows = torch.from_numpy(candidates)
        offsets = self._offsets(rows)
        moved = nn.functional.normalize(self._asked[rows] + offsets, dim=1)
        loss = ranking_nll(
            self._queries[torch.from_numpy(batch)],
            torch.cat([moved, others]),
            Targets.of(relevant, self._hidden.take(batch), candidates),
            temperature=self._log_temperature.exp(),
        )
        loss = loss + self._options.shrinkage * offsets.square().sum()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        for optimizer in self._optimizers:
            optimizer.step()

    def _candidates(self, relevant: Rows) -> Rows:
        """Return which documents with training queries compete in a step, sorted."""
        count, most = len(self._asked), self._options.max_candidates
        if count <= most:
            return np.arange(count)
        return np.union1d(relevant, self._random.choice(count, most, replace=False))

    def export(self) -> NudgeAdapter:
        """Return the offsets so far."""
        offsets = self._offsets.weight.detach().numpy()
        return NudgeAdapter.of(self._keys, offsets, max_drift=self._options.max_drift)


def _pull(train: EncodedDataset, below: Adapter | None) -> tuple[Rows, Vectors, Vectors]:
    """Return the rows of documents with training queries, their vectors, and their queries' sum."""
    queries, documents = _mapped(train, below)
    relevant = train.canonical_rows[train.relevance.documents]
    asked = np.unique(relevant)
    total = np.zeros((len(asked), documents.shape[1]), dtype=np.float32)
    np.add.at(total, np.searchsorted(asked, relevant), queries[train.relevance.queries])
    return asked, documents[asked], total


def _mapped(train: EncodedDataset, below: Adapter | None) -> tuple[Vectors, Vectors]:
    if below is None:
        return l2_normalize(train.queries), l2_normalize(train.documents)
    return (
        l2_normalize(below.apply(train.queries)),
        l2_normalize(below.apply(train.documents, "document", train.keys)),
    )
