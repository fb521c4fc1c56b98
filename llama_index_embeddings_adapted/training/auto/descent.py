"""Training linear maps in 80 to 160 steps, with gradients written out, and offsets of documents.

Cross-fitting fits dozens of maps to a few hundred queries each. There, what automatic
differentiation does around a step costs more than its arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...adapters.base import Adapter, describe
from ...adapters.composites import TwoSidedAdapter
from ...adapters.maps import LinearAdapter, NudgeAdapter
from ...core.arrays import Rows, Vectors, l2_normalize
from ...core.encoded import EncodedDataset, Qrels
from ...errors import OptionError, TrainingError
from ..closed_form import Spectrum, adapted_sides
from ..modules import Targets, ranking_nll
from ..options import TrainingOptions
from ..trainer import limit_threads

_STEPS = (
    80  # for up to 800 queries; for 1,600 twice as many, each twice as long, of twice the batch
)
_RATE = 8.0  # times that of the options, where it starts; it falls to zero
_MOMENTS = (0.9, 0.999)  # of Adam
_ANCHORS = 128  # documents that a step draws to hold scores, where documents move
_TEMPERATURES = (math.log(0.005), math.log(1.0))

Matrix = NDArray[np.float32]


def descend(
    train: EncodedDataset,
    start: LinearAdapter,
    options: TrainingOptions,
    *,
    both: bool = False,
    moment: Matrix | None = None,
) -> Adapter:
    """Return the linear map, or one for each side, that ranks the relevant documents first.

    The loss is that of :func:`ranking_nll`, with the shrinkage and the anchor of the options; a
    step scores a batch of queries against ``max_candidates`` documents.

    Args:
        train: Queries to learn from.
        start: Where both sides start, and what they are drawn back to.
        options: Loss, batch size, rates and weights, with batch and rate doubled from 1,600
            queries on; ``epochs`` has no effect: 80 steps are taken for up to 800 queries, 160 for
            1,600 and more.
        both: Map documents too.
        moment: Mean of ``d dᵀ`` over all documents, ``(dim, dim)``, if it is at hand.

    Source:
        Kingma and Ba 2015, arXiv:1412.6980, for the steps.
    """
    more = min(2.0, max(1.0, len(train.relevance) / 800))
    steps, batch = round(more * _STEPS), round(more * options.batch_size)
    options = replace(options, batch_size=batch, learning_rate=more * _RATE * options.learning_rate)
    run = _Descent(train, start, options, both, moment)
    for step in range(steps):
        run.step(1.0 - step / steps)
    return run.export()


def interpolated(initial: Adapter, trained: Adapter, alpha: float) -> Adapter:
    """Return the adapter that lies between two, in their weights.

    Args:
        initial: A map.
        trained: One of the same kind.
        alpha: 0 is the first, 1 the second.

    Raises:
        OptionError: Adapters that cannot be mixed.
    """
    if describe(initial) != describe(trained):
        raise OptionError(f"Expected two maps of one kind to mix, got {initial!r} and {trained!r}.")
    start = initial.arrays()
    mixed = {
        name: (1 - alpha) * start[name] + alpha * array for name, array in trained.arrays().items()
    }
    return type(trained).build(mixed, trained.config())


class _Weights:
    """What Adam moves, and its moments."""

    def __init__(self, value: Matrix) -> None:
        self.value, self.start = value, value.copy()
        self._mean, self._square = np.zeros_like(value), np.zeros_like(value)

    def move(self, gradient: Matrix, rate: float, step: int) -> None:
        first, second = _MOMENTS
        self._mean += np.float32(1 - first) * (gradient - self._mean)
        self._square += np.float32(1 - second) * (np.square(gradient) - self._square)
        scale = np.sqrt(self._square)
        scale *= np.float32((1 - second**step) ** -0.5)
        scale += np.float32(1e-8)
        self.value -= np.float32(rate / (1 - first**step)) * (self._mean / scale)


class _Side(_Weights):
    """A map with its bias as last column: ``(dim, dim + 1)``."""

    def __init__(self, start: LinearAdapter) -> None:
        bias = np.zeros(start.output_dim) if start.bias is None else start.bias
        super().__init__(np.column_stack([start.weight, bias]).astype(np.float32))

    def forward(self, vectors: Vectors) -> Vectors:
        """Map vectors, ``(n, dim)``, to unit rows."""
        self._vectors = vectors
        mapped: Matrix = vectors @ self.value[:, :-1].T
        mapped += self.value[:, -1]
        lengths = np.sqrt(np.einsum("ij,ij->i", mapped, mapped))[:, None]
        self._lengths = np.maximum(lengths, np.float32(1e-12))  # a zero vector stays one
        units: Vectors = mapped / self._lengths
        self._units = units
        return units

    def backward(self, gradient: Vectors, shrinkage: float) -> Matrix:
        """Return the gradient of the weights from that of the unit rows."""
        along = np.einsum("ij,ij->i", gradient, self._units)[:, None]
        mapped = (gradient - along * self._units) / self._lengths
        weights: Matrix = np.column_stack([mapped.T @ self._vectors, mapped.sum(axis=0)])
        weights += np.float32(2 * shrinkage) * (self.value - self.start)
        return weights

    def export(self) -> LinearAdapter:
        return LinearAdapter(self.value[:, :-1].copy(), self.value[:, -1].copy())


_NEVER = -1e4  # the logit of what does not compete


class _Descent:
    """The state of one training; ``D`` are documents that compete, ``A`` those held in place."""

    def __init__(
        self,
        train: EncodedDataset,
        start: LinearAdapter,
        options: TrainingOptions,
        both: bool,
        moment: Matrix | None,
    ) -> None:
        self._options, self._random = options, np.random.default_rng(options.seed)
        self._anchor = 0.0 if options.loss == "corpus" else options.anchor  # that is to memorise
        self._queries, self._units = train.queries, l2_normalize(train.queries)
        self._documents = l2_normalize(train.documents)
        first = train.canonical_rows
        self._relevance = replace(train.relevance, documents=first[train.relevance.documents])
        nothing = Qrels.from_lists([[]] * len(train.relevance))
        mined, self._hidden = train.negatives or nothing, train.hidden or nothing
        self._negatives = replace(mined, documents=first[mined.documents])
        asked = np.concatenate([self._relevance.documents, self._negatives.documents])
        self._pool = np.unique(first if options.loss == "corpus" else asked)
        self._query = _Side(start)
        self._document = _Side(start) if both else None
        self._log_temperature = _Weights(np.array([math.log(options.temperature)], np.float32))
        if self._anchor and not both:
            self._moment = Spectrum(train.documents).moment if moment is None else moment
        self._waiting: Rows = np.zeros(0, dtype=np.int64)
        self._steps = 0

    def step(self, pace: float) -> None:
        """Take one step, ``pace`` times as long as the first."""
        batch = self._next_batch()
        candidates = self._candidates(batch)
        units, base = self._query.forward(self._queries[batch]), self._units[batch]
        if self._document is None:
            fixed = self._documents[candidates]
            excess, temperature = self._excess(batch, candidates, units, fixed)
            towards = excess @ fixed
            if self._anchor:
                towards += np.float32(2 * self._anchor / len(batch)) * (
                    (units - base) @ self._moment
                )
            self._move({self._query: towards}, temperature, pace)
            return
        count = len(candidates)
        anchors = self._random.integers(len(self._documents), size=_ANCHORS)
        rows = self._documents[np.concatenate([candidates, anchors])]
        moved = self._document.forward(rows)
        excess, temperature = self._excess(batch, candidates, units, moved[:count])
        drift = units @ moved[count:].T - base @ rows[count:].T
        drift *= np.float32(2 * self._anchor / drift.size)
        weights = np.concatenate([excess, drift], axis=1)
        gradients = {self._query: weights @ moved, self._document: weights.T @ units}
        self._move(gradients, temperature, pace)

    def _next_batch(self) -> Rows:
        size = min(self._options.batch_size, len(self._units))
        if len(self._waiting) < size:
            self._waiting = self._random.permutation(len(self._units))
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        return batch

    def _candidates(self, batch: Rows) -> Rows:
        """Return the documents that compete, sorted."""
        relevant, hard = self._relevance.take(batch), self._negatives.take(batch).documents
        if self._options.loss == "mnr":  # a relevant document of each query, drawn anew
            place = relevant.offsets[:-1] + self._random.integers(relevant.counts)
            return np.union1d(relevant.documents[place], hard)
        most = self._options.max_candidates
        if len(self._pool) <= most:
            return self._pool
        own = np.union1d(relevant.documents, hard)
        own = self._random.permutation(own)[:most]
        return np.union1d(own, self._random.choice(self._pool, most - len(own), replace=False))

    def _excess(
        self, batch: Rows, candidates: Rows, units: Vectors, documents: Vectors
    ) -> tuple[Vectors, float]:
        """Return the gradient of the loss by cosines, ``(batch, candidates)``, and by log T."""
        relevant, hidden = (
            q.take(batch).among(candidates) for q in (self._relevance, self._hidden)
        )
        entries = relevant.queries, relevant.documents
        targets = np.bincount(entries[0], minlength=len(batch))
        temperature = np.float32(np.exp(self._log_temperature.value[0]))
        logits = (units / temperature) @ documents.T
        if self._options.loss != "mnr":  # each candidate stands for several documents
            logits[entries] -= np.float32(math.log(len(self._pool) / len(candidates)))
        logits[hidden.queries, hidden.documents] = _NEVER
        excess = np.exp(logits - logits.max(axis=1, keepdims=True))
        excess /= excess.sum(axis=1, keepdims=True)
        excess[entries] -= (1.0 / targets[entries[0]]).astype(np.float32)
        excess[targets == 0] = 0.0
        slope = -float(np.vdot(excess, logits)) / len(batch)
        excess /= temperature * np.float32(len(batch))
        return excess, slope

    def _move(self, gradients: dict[_Side, Vectors], temperature: float, pace: float) -> None:
        options = self._options
        found: dict[_Weights, Matrix] = {
            side: side.backward(gradient, options.shrinkage) for side, gradient in gradients.items()
        }
        if options.learn_temperature:
            found[self._log_temperature] = np.array([temperature], dtype=np.float32)
        length = math.sqrt(sum(float(np.vdot(g, g)) for g in found.values()))
        if not math.isfinite(length):
            raise TrainingError("Training diverged. Lower the learning rate.")
        clip = np.float32(min(1.0, options.max_grad_norm / max(length, 1e-12)))
        self._steps += 1
        for weights, gradient in found.items():
            weights.move(clip * gradient, pace * options.learning_rate, self._steps)
        np.clip(self._log_temperature.value, *_TEMPERATURES, out=self._log_temperature.value)

    def export(self) -> Adapter:
        query = self._query.export()
        return query if self._document is None else TwoSidedAdapter(query, self._document.export())


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
        queries, documents = adapted_sides(train, below)
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
