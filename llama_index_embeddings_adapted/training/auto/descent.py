"""Training linear maps in 80 to 160 steps, with gradients written out, and offsets of documents.

Cross-fitting fits dozens of maps to a few hundred queries each. There, what automatic
differentiation does around a step costs more than its arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...adapters.base import Adapter
from ...adapters.composites import TwoSidedAdapter
from ...adapters.maps import LinearAdapter, NudgeAdapter
from ...core.arrays import Rows, Vectors, l2_normalize
from ...core.encoded import EncodedDataset, Qrels
from ...errors import TrainingError
from ..closed_form import Spectrum
from ..modules import NEVER, Competition
from ..options import TrainingOptions

_STEPS = 80
_RATE = 8.0  # times that of the options, where it starts; it falls to zero
_MOMENTS = (0.9, 0.999)  # of Adam
_ANCHORS = 128  # documents that a step draws to hold scores, where documents move
_TEMPERATURES = (math.log(0.005), math.log(1.0))


def descend(
    train: EncodedDataset,
    start: LinearAdapter,
    options: TrainingOptions,
    *,
    both: bool = False,
    moment: Vectors | None = None,
    longer: float = 1.0,
    finer: float = 1.0,
) -> Adapter:
    """Return the linear map, or one for each side, that ranks the relevant documents first.

    Both sides start from ``start`` and are drawn back to it. The loss is that of
    :func:`ranking_nll`, with the shrinkage and the anchor of the options; a step scores a batch of
    queries against ``max_candidates`` documents.

    Steps are 80 for up to 800 queries, 160 of twice the batch and rate for 1,600 and more, and
    ``longer`` times as many. ``finer`` steps are that many more, and that much smaller: they drift
    less for the same gain. ``epochs`` has no effect. ``moment`` is the mean of ``d dᵀ`` over all
    documents, ``(dim, dim)``, if it is at hand. Source: Kingma and Ba 2015, arXiv:1412.6980, for
    the steps.
    """
    more = min(2.0, max(1.0, len(train.relevance) / 800))
    steps, batch = round(finer * longer * more * _STEPS), round(more * options.batch_size)
    rate = more * _RATE / finer * options.learning_rate
    options = replace(options, batch_size=batch, learning_rate=rate)
    run = _Descent(train, start, options, both, moment)
    for step in range(steps):
        run.step(1.0 - step / steps)
    return run.export()


class _Weights:
    """What Adam moves, and its moments."""

    def __init__(self, value: Vectors) -> None:
        self.value, self.start = value, value.copy()
        self._mean, self._square = np.zeros_like(value), np.zeros_like(value)

    def move(self, gradient: Vectors, rate: float, step: int, rows: Rows | None = None) -> None:
        """Take a step; ``rows``, if given, are the only ones of the weights with a gradient."""
        first, second = _MOMENTS
        some = slice(None) if rows is None else rows
        mean, square = self._mean[some], self._square[some]
        mean *= np.float32(first)
        mean += np.float32(1 - first) * gradient
        square *= np.float32(second)
        square += np.float32(1 - second) * np.square(gradient)
        scale = np.sqrt(square)
        scale *= np.float32((1 - second**step) ** -0.5)
        scale += np.float32(1e-8)
        np.divide(mean, scale, out=scale)
        scale *= np.float32(rate / (1 - first**step))
        self.value[some] -= scale
        if rows is not None:
            self._mean[rows], self._square[rows] = mean, square


class _Side(_Weights):
    """A map with its bias as last column: ``(dim, dim + 1)``."""

    def __init__(self, start: LinearAdapter) -> None:
        bias = np.zeros(start.output_dim) if start.bias is None else start.bias
        super().__init__(np.column_stack([start.weight, bias]).astype(np.float32))

    def forward(self, vectors: Vectors) -> Vectors:
        """Map vectors, ``(n, dim)``, to unit rows."""
        self._vectors = vectors
        mapped: Vectors = vectors @ self.value[:, :-1].T
        mapped += self.value[:, -1]
        lengths = np.sqrt(np.einsum("ij,ij->i", mapped, mapped))[:, None]
        self._lengths = np.maximum(lengths, np.float32(1e-12))  # a zero vector stays one
        units: Vectors = mapped / self._lengths
        self._units = units
        return units

    def backward(self, gradient: Vectors, shrinkage: float) -> Vectors:
        """Return the gradient of the weights from that of the unit rows."""
        mapped = _along_sphere(gradient, self._units, self._lengths)
        weights: Vectors = np.column_stack([mapped.T @ self._vectors, mapped.sum(axis=0)])
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
        moment: Vectors | None,
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
            excess, temperature = self._excess(batch, candidates, units @ fixed.T)
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
        excess, temperature = self._excess(batch, candidates, units @ moved[:count].T)
        drift = units @ moved[count:].T - base @ rows[count:].T
        drift *= np.float32(2 * self._anchor / drift.size)
        weights = np.concatenate([excess, drift], axis=1)
        gradients = {self._query: weights @ moved, self._document: weights.T @ units}
        self._move(gradients, temperature, pace)

    def _excess(self, batch: Rows, candidates: Rows, cosines: Vectors) -> tuple[Vectors, Vectors]:
        relevant, hidden = self._competition.among(batch, candidates)
        more = self._competition.stands_for(candidates)
        return _excess(cosines, relevant, hidden, self._log_temperature, more)

    def _move(self, gradients: dict[_Side, Vectors], temperature: Vectors, pace: float) -> None:
        options = self._options
        found: dict[_Weights, Vectors] = {
            side: side.backward(gradient, options.shrinkage) for side, gradient in gradients.items()
        }
        if options.learn_temperature:
            found[self._log_temperature] = temperature
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


def _excess(
    cosines: Vectors, relevant: Qrels, hidden: Qrels, log_t: _Weights, stands_for: float = 1.0
) -> tuple[Vectors, Vectors]:
    """Return the gradient of :func:`ranking_nll` by cosines, ``(n, c)``, and by log T, ``(1,)``.

    The cosines are overwritten.
    """
    entries, targets = (relevant.queries, relevant.documents), relevant.counts
    temperature = np.float32(np.exp(log_t.value[0]))
    logits = np.divide(cosines, temperature, out=cosines)
    logits[entries] -= np.float32(math.log(stands_for))
    logits[hidden.queries, hidden.documents] = NEVER
    excess = np.exp(logits - logits.max(axis=1, keepdims=True))
    excess /= excess.sum(axis=1, keepdims=True)
    excess[entries] -= (1.0 / targets[entries[0]]).astype(np.float32)
    excess[targets == 0] = 0.0
    slope = np.array([-np.vdot(excess, logits) / len(cosines)], dtype=np.float32)
    excess /= temperature * np.float32(len(cosines))
    return excess, slope


def _along_sphere(gradient: Vectors, units: Vectors, lengths: Vectors) -> Vectors:
    """Return the gradient by vectors of such lengths, ``(n, 1)``, from that by their unit rows."""
    along = np.einsum("ij,ij->i", gradient, units)[:, None]
    turned: Vectors = (gradient - along * units) / lengths
    return turned


def listwise_nudges(
    train: EncodedDataset, epochs: int, *, below: Adapter | None = None, **settings: Any
) -> NudgeAdapter:
    """Fit offsets of documents by a softmax over the whole corpus, on top of an adapter.

    Unlike NUDGE, which draws each document towards its own queries and nothing else, this also
    draws it away from queries that it wrongly wins. Documents without training queries compete and
    are not moved. ``settings`` are fields of :class:`_Listwise`.
    """
    run = _Listwise(train, below or LinearAdapter.identity(train.queries.shape[1]), **settings)
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
        units = l2_normalize(self.below.apply(train.documents, "document", train.keys))
        self._queries = l2_normalize(self.below.apply(train.queries))
        relevant = train.canonical_rows[train.relevance.documents]
        asked = np.unique(relevant)
        self._keys = train.keys[asked]
        self._relevance = replace(train.relevance, documents=np.searchsorted(asked, relevant))
        self._hidden = (train.hidden or Qrels.from_lists([[]] * len(train.relevance))).among(asked)
        self._asked, others = units[asked], np.setdiff1d(train.canonical_rows, asked)
        self._others = units[others]
        self._offsets = _Weights(np.zeros_like(self._asked))
        self._log_temperature = _Weights(np.array([math.log(self.temperature)], np.float32))
        self._steps = 0

    def epoch(self) -> None:
        others = self._others
        if len(others) > self.max_others:
            others = others[self._random.choice(len(others), self.max_others, replace=False)]
        order = self._random.permutation(len(self._relevance))
        for start in range(0, len(order), self.batch_size):
            self._step(order[start : start + self.batch_size], others)

    def _step(self, batch: Rows, others: Vectors) -> None:
        relevant, rows = self._relevance.take(batch), np.arange(len(self._asked))
        if len(rows) > self.max_candidates:
            drawn = self._random.choice(len(rows), self.max_candidates, replace=False)
            rows = np.union1d(relevant.documents, drawn)
        queries, offsets = self._queries[batch], self._offsets.value[rows]
        moved = self._asked[rows] + offsets
        lengths = np.sqrt(np.einsum("ij,ij->i", moved, moved))[:, None]
        moved /= (lengths := np.maximum(lengths, np.float32(1e-12)))
        cosines = np.concatenate([queries @ moved.T, queries @ others.T], axis=1)
        hidden = self._hidden.take(batch).among(rows)
        excess, slope = _excess(cosines, relevant.among(rows), hidden, self._log_temperature)
        gradient = _along_sphere(excess[:, : len(rows)].T @ queries, moved, lengths)
        gradient += np.float32(2 * self.shrinkage) * offsets
        self._steps += 1
        self._offsets.move(gradient, self.learning_rate, self._steps, rows)
        self._log_temperature.move(slope, self.learning_rate, self._steps)

    def export(self) -> NudgeAdapter:
        return NudgeAdapter.of(self._keys, self._offsets.value, max_drift=self.max_drift)
