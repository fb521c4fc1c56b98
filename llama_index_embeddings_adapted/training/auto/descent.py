"""Training linear maps in 80 to 160 steps, with gradients written out, and offsets of documents.

Cross-fitting fits dozens of maps to a few hundred queries each. There, what automatic
differentiation does around a step costs more than its arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...adapters.base import Adapter
from ...adapters.composites import TwoSidedAdapter
from ...adapters.maps import LinearAdapter, NudgeAdapter
from ...core.arrays import Rows, Vectors, l2_normalize
from ...core.encoded import EncodedDataset, Qrels
from ...errors import TrainingError
from ..closed_form import Spectrum
from ..modules import NEVER, Competition, ranking_nll
from ..options import TrainingOptions
from ..trainer import limit_threads

_STEPS = 80
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

    Both sides start from ``start`` and are drawn back to it. The loss is that of
    :func:`ranking_nll`, with the shrinkage and the anchor of the options; a step scores a batch of
    queries against ``max_candidates`` documents.

    Steps are 80 for up to 800 queries, 160 of twice the batch and rate for 1,600 and more;
    ``epochs`` has no effect. ``moment`` is the mean of ``d dᵀ`` over all documents, ``(dim, dim)``,
    if it is at hand.

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


class _Descent:
    """The state of one training."""

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
        self._competition = Competition(train, options, self._random, strict=True)
        self._query = _Side(start)
        self._document = _Side(start) if both else None
        self._log_temperature = _Weights(np.array([math.log(options.temperature)], np.float32))
        if self._anchor and not both:
            self._moment = Spectrum(train.documents).moment if moment is None else moment
        self._waiting, self._steps = np.zeros(0, dtype=np.int64), 0

    def step(self, pace: float) -> None:
        """Take one step, ``pace`` times as long as the first."""
        size = min(self._options.batch_size, len(self._units))
        if len(self._waiting) < size:
            self._waiting = self._random.permutation(len(self._units))
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        candidates = self._competition.candidates(batch)
        units, base = self._query.forward(self._queries[batch]), self._units[batch]
        if self._document is None:
            fixed = self._documents[candidates]
            excess, temperature = self._excess(batch, candidates, units, fixed)
            towards = excess @ fixed
            if self._anchor:
                weight = np.float32(2 * self._anchor / len(batch))
                towards += weight * ((units - base) @ self._moment)
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

    def _excess(
        self, batch: Rows, candidates: Rows, units: Vectors, documents: Vectors
    ) -> tuple[Vectors, float]:
        """Return the gradient of the loss by cosines, ``(batch, candidates)``, and by log T."""
        relevant, hidden = self._competition.among(batch, candidates)
        entries, targets = (relevant.queries, relevant.documents), relevant.counts
        temperature = np.float32(np.exp(self._log_temperature.value[0]))
        logits = (units / temperature) @ documents.T
        logits[entries] -= np.float32(math.log(self._competition.stands_for(candidates)))
        logits[hidden.queries, hidden.documents] = NEVER
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


def listwise_nudges(
    train: EncodedDataset, epochs: int, *, below: Adapter | None = None, **settings: Any
) -> NudgeAdapter:
    """Fit offsets of documents by a softmax over the whole corpus, on top of an adapter.

    Unlike NUDGE, which draws each document towards its own queries and nothing else, this also
    draws it away from queries that it wrongly wins. Documents without training queries compete and
    are not moved. ``settings`` are fields of :class:`_Listwise`.
    """
    identity = LinearAdapter.identity(train.queries.shape[1])
    run = _Listwise(train, below or identity, **settings)
    for _ in range(epochs):
        run.epoch()
    return run.export()


@dataclass(eq=False)
class _Listwise:
    train: EncodedDataset
    below: Adapter
    learning_rate: float = 2e-3
    batch_size: int = 128
    temperature: float = 0.05  # where the learned one starts
    shrinkage: float = 1e-3  # weight of the squared length of the offsets that compete in a step
    max_candidates: int = 1_024  # with training queries: the relevant ones of a batch, and a sample
    max_others: int = 1_024  # without, drawn anew per epoch; 2,048 of both gave the same
    max_drift: float = 1.0  # longest offset, in units of the documents' length 1
    seed: int = 0

    def __post_init__(self) -> None:
        self._random, train = np.random.default_rng(self.seed), self.train
        documents = self.below.apply(train.documents, "document", train.keys)
        units = torch.from_numpy(l2_normalize(documents))
        self._queries = torch.from_numpy(l2_normalize(self.below.apply(train.queries)))
        relevant = train.canonical_rows[train.relevance.documents]
        asked = np.unique(relevant)
        self._keys = train.keys[asked]
        self._relevance = replace(train.relevance, documents=np.searchsorted(asked, relevant))
        nothing = Qrels.from_lists([[]] * len(train.relevance))
        self._hidden = (train.hidden or nothing).among(asked)
        self._asked = units[torch.from_numpy(asked)]
        self._others = units[torch.from_numpy(np.setdiff1d(train.canonical_rows, asked))]
        # Sparse, so that a step costs what it scores, however many documents there are.
        zeros = torch.zeros_like(self._asked)
        self._offsets = nn.Embedding(len(zeros), zeros.shape[1], sparse=True, _weight=zeros)
        self._log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.SparseAdam(self._offsets.parameters(), lr=self.learning_rate),
            torch.optim.Adam([self._log_temperature], lr=self.learning_rate),
        )

    def epoch(self) -> None:
        """Take one pass over the queries."""
        others = self._others
        if len(others) > self.max_others:
            kept = self._random.choice(len(others), self.max_others, replace=False)
            others = others[torch.from_numpy(kept)]
        order = self._random.permutation(len(self._relevance))
        scored = min(len(self._asked), self.max_candidates) + len(others)
        with limit_threads(self.batch_size * scored * self._asked.shape[1]):
            for start in range(0, len(order), self.batch_size):
                self._step(order[start : start + self.batch_size], others)

    def _step(self, batch: Rows, others: Tensor) -> None:
        relevant, count = self._relevance.take(batch), len(self._asked)
        candidates = np.arange(count)
        if count > self.max_candidates:
            drawn = self._random.choice(count, self.max_candidates, replace=False)
            candidates = np.union1d(relevant.documents, drawn)
        rows = torch.from_numpy(candidates)
        offsets = self._offsets(rows)
        moved = nn.functional.normalize(self._asked[rows] + offsets, dim=1)
        loss = ranking_nll(
            self._queries[torch.from_numpy(batch)],
            torch.cat([moved, others]),
            relevant.among(candidates),
            temperature=self._log_temperature.exp(),
            hidden=self._hidden.take(batch).among(candidates),
        )
        loss = loss + self.shrinkage * offsets.square().sum()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        for optimizer in self._optimizers:
            optimizer.step()

    def export(self) -> NudgeAdapter:
        """Return the offsets so far."""
        offsets = self._offsets.weight.detach().numpy()
        return NudgeAdapter.of(self._keys, offsets, max_drift=self.max_drift)
