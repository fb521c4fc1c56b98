"""Adapters made of others: in turn, one per side, or mixed as a gate says."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..core.arrays import Keys, Role, Vectors, l2_normalize
from ..core.files import Arrays
from ..errors import OptionError, ShapeError
from .base import Adapter, CompositeAdapter, reading, settle
from .export import Program
from .maps import LinearAdapter


class StackedAdapter(CompositeAdapter):
    """Applies adapters in turn, at least one; where dimensions do not follow, a ShapeError."""

    def __init__(self, *adapters: Adapter) -> None:
        if not adapters:
            raise OptionError("StackedAdapter: expected at least one adapter.")
        for first, second in itertools.pairwise(adapters):
            if first.output_dim != second.input_dim:
                expected = f"{first.output_dim} dimensions, as {type(first).__name__} gives"
                what = f"{type(second).__name__} in a stack"
                raise ShapeError(what, expected=expected, actual=second.input_dim)
        self.adapters = adapters

    @classmethod
    def assemble(cls, parts: dict[str, Adapter], settings: dict[str, Any]) -> StackedAdapter:
        return cls(*(parts[name] for name in sorted(parts, key=int)), **settings)

    @property
    def input_dim(self) -> int:
        return self.adapters[0].input_dim

    @property
    def output_dim(self) -> int:
        return self.adapters[-1].output_dim

    @property
    def adapts_documents(self) -> bool:
        return any(adapter.adapts_documents for adapter in self.adapters)

    def parts(self) -> dict[str, Adapter]:
        return {str(place): adapter for place, adapter in enumerate(self.adapters)}

    def map(self, vectors: Vectors) -> Vectors:
        for adapter in self.adapters:
            vectors = adapter.apply(vectors)
        return vectors

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        for adapter in self.adapters:
            vectors = adapter.apply(vectors, "document", keys)
        return vectors

    def trace(self, program: Program, vector: str, role: Role) -> str:
        for adapter in self.adapters:
            vector = adapter.through(program, vector, role)
        return vector


@dataclass(eq=False, repr=False)
class TwoSidedAdapter(CompositeAdapter):
    """``q' = Q(q)`` and ``d' = D(d)``; an index has to be rebuilt.

    The score is ``qᵀ Qᵀ D d``, the bilinear form of supervised semantic indexing (Bai et al. 2009,
    DOI 10.1145/1645953.1645979), with documents scaled to length 1 afterwards.
    """

    input_dim: ClassVar[int] = reading("query.input_dim")
    output_dim: ClassVar[int] = reading("query.output_dim")
    adapts_documents: ClassVar[bool] = True

    query: Adapter  #: ``Q``, anything that leaves documents alone: a map, a memory, a gate.
    document: Adapter  #: ``D``, a map; applied to documents as it would be to queries.

    def map(self, vectors: Vectors) -> Vectors:
        return self.query.apply(vectors)

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        return self.document.apply(vectors)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        part = self.query if role == "query" else self.document
        return part.trace(program, vector, "query")


#: What a gate sees of a query, all from base vectors.
FEATURES = (
    "cosine to the nearest training query",
    "mean cosine to the three nearest training queries",
    "cosine to the nearest document with training queries",
    "cosine to the nearest document without",
    "their difference",
    "log odds of a softmax over all documents for those with training queries",
)
_TEMPERATURE = 0.05
_NEAREST = 3
_FAR = -1.0  # the cosine to a document where there is none


@dataclass(eq=False)
class Gate:
    """The probability that a query asks for a document that training had queries for."""

    queries: Vectors  #: ``(n, dim)``, unit rows: training queries, or a sample.
    asked: Vectors  #: ``(a, dim)``, unit rows: documents with training queries, or a sample.
    others: Vectors  #: ``(o, dim)``, unit rows: documents without, or a sample; may be empty.
    shares: Vectors  #: ``(2,)``, in (0, 1], of all such documents that these two are.
    coefficients: Vectors  #: ``(7,)``: of the 6 features, and the intercept.
    low: Vectors  #: ``(6,)``: the smallest values seen of the features; smaller ones count as it.
    high: Vectors  #: ``(6,)``: the largest.

    def __post_init__(self) -> None:
        others = {"others": "o dim"} if np.size(self.others) else {}
        rest = {"shares": "2", "coefficients": "7", "low": "6", "high": "6"}
        settle(self, queries="n dim", asked="a dim", **others, **rest)
        if not others:
            self.others = np.zeros((0, self.queries.shape[1]), dtype=np.float32)
            self.others.setflags(write=False)

    @classmethod
    def undecided(cls, dim: int) -> Gate:
        """Return a gate that says one half of every query."""
        row, none = np.zeros((1, dim), np.float32), np.zeros(len(FEATURES), np.float32)
        shares, says = np.ones(2, np.float32), np.zeros(len(FEATURES) + 1, np.float32)
        return cls(row, row, row[:0], shares, says, none, none)

    def known(self, queries: Vectors) -> Vectors:
        """Return p(known | q) of queries, ``(n, dim)``, unit rows, as ``(n,)``."""
        return np.asarray(0.5 + 0.5 * np.tanh(0.5 * self.log_odds(queries)), dtype=np.float32)

    def log_odds(self, queries: Vectors) -> Vectors:
        """Return the log odds of :meth:`known`, ``(n,)``."""
        features = np.clip(self.features(queries), self.low, self.high)
        return np.asarray(features @ self.coefficients[:-1] + self.coefficients[-1])

    def features(self, queries: Vectors) -> Vectors:
        """Return :data:`FEATURES` of queries ``(n, dim)``, unit rows, as ``(n, 6)``."""
        cosines, count = queries @ self.queries.T, min(_NEAREST, len(self.queries))
        nearest = np.partition(cosines, -count, axis=1)[:, -count:]
        asked, others = queries @ self.asked.T, queries @ self.others.T
        best_asked, best_other = asked.max(axis=1), others.max(axis=1, initial=_FAR)
        odds = _log_mass(asked, self.shares[0]) - _log_mass(others, self.shares[1])
        best = (best_asked, best_other, best_asked - best_other)
        near = (nearest.max(axis=1), nearest.mean(axis=1))
        return np.stack([*near, *best, np.float32(_TEMPERATURE) * odds], 1).astype(np.float32)

    def trace(self, program: Program, unit: str) -> str:
        """Write down what :meth:`known` does to a vector of length 1."""
        nearest, asked = (program.linear(unit, rows) for rows in (self.queries, self.asked))
        found = [
            program.apply("max", nearest, dim=1),
            program.apply("mean_top", nearest, min(_NEAREST, len(self.queries)), dim=1),
            program.apply("max", asked, dim=1),
            _trace_log_mass(program, asked),
        ]
        # From these to FEATURES; where there are no other documents, theirs are constants.
        weight, bias = np.zeros((len(FEATURES), 6)), np.zeros(len(FEATURES))
        weight[[0, 1, 2, 4], [0, 1, 2, 2]] = 1.0
        weight[5, 3], bias[5] = _TEMPERATURE, -_TEMPERATURE * np.log(self.shares[0])
        if len(self.others):
            others = program.linear(unit, self.others)
            found += [program.apply("max", others, dim=1), _trace_log_mass(program, others)]
            weight[[3, 4, 5], [4, 4, 5]] = 1.0, -1.0, -_TEMPERATURE
            bias[5] += _TEMPERATURE * np.log(self.shares[1])
        else:
            bias[3:] += _FAR, -_FAR, -_FAR
        raw = program.apply("concat", *found, dim=len(found))
        features = program.linear(raw, weight[:, : len(found)], bias)
        bounds = program.weight(self.low), program.weight(self.high)
        seen = program.apply("clip", features, *bounds)
        logit = program.linear(seen, self.coefficients[None, :-1], self.coefficients[-1:])
        return program.apply("sigmoid", logit)

    def with_odds(self, log_odds: float) -> Gate:
        """Return the same with p(known | q) shifted, as for another share of known queries."""
        moved = self.coefficients.copy()
        moved[-1] += log_odds
        return replace(self, coefficients=moved)


@dataclass(eq=False, repr=False)
class GatedAdapter(CompositeAdapter):
    """``q' = normalise(G(q) + p(known | q) · (S(q) - G(q)))``; documents keep their vectors.

    ``G`` does no harm to documents without training queries, ``S`` is a specialist for those with;
    the gate tells the two kinds of query apart. Gating is old (Jacobs et al. 1991); fitting the
    gate on held-out documents of the training set, which keeps new documents safe, is ours.
    """

    input_dim: ClassVar[int] = reading("gate.queries", 1)
    output_dim: ClassVar[int] = reading("general.output_dim")

    general: Adapter
    special: Adapter
    gate: Gate

    @classmethod
    def assemble(cls, parts: dict[str, Adapter], settings: dict[str, Any]) -> GatedAdapter:
        return cls(parts["general"], parts["special"], Gate(**settings))

    def own_arrays(self) -> Arrays:
        return {**vars(self.gate)}

    def map(self, vectors: Vectors) -> Vectors:
        rows = np.atleast_2d(vectors)
        general, special = (l2_normalize(part.apply(rows)) for part in (self.general, self.special))
        known = self.gate.known(l2_normalize(rows))[:, None]
        mixed = l2_normalize(general + known * (special - general))
        return mixed.reshape(*vectors.shape[:-1], self.output_dim)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        general, special = (
            program.apply("normalize", part.through(program, vector, role))
            for part in (self.general, self.special)
        )
        known = self.gate.trace(program, program.apply("normalize", vector))
        step = program.apply("mul", program.apply("sub", special, general), known)
        return program.apply("normalize", program.apply("add", general, step))


def halfway(adapter: Adapter) -> Adapter:
    """Return what goes half of the way that an adapter goes; one that moves documents, as it is.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903, who mix
    weights; as adapters need not be linear, we mix what they make of a query.
    """
    if adapter.adapts_documents or adapter.is_identity:
        return adapter
    dim = adapter.input_dim
    return GatedAdapter(LinearAdapter.identity(dim), adapter, Gate.undecided(dim))


def _log_mass(cosines: Vectors, share: float) -> Vectors:
    """Return log Σ exp(cosine / temperature), corrected for sampling; a floor where empty."""
    if not cosines.shape[1]:
        return np.full(len(cosines), _FAR / _TEMPERATURE, dtype=np.float32)
    top = cosines.max(axis=1)
    rest = np.exp((cosines - top[:, None]) / np.float32(_TEMPERATURE)).sum(axis=1)
    return np.asarray(top / _TEMPERATURE + np.log(rest) - np.log(share), dtype=np.float32)


def _trace_log_mass(program: Program, cosines: str) -> str:
    sharp = program.apply("mul", cosines, program.weight([1 / _TEMPERATURE]))
    return program.apply("log_sum_exp", sharp, dim=1)
