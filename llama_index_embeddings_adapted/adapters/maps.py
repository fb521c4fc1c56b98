"""Single maps: linear, low rank, two layers, unit length, kernel regression, offsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from ..core.arrays import Keys, Role, Vectors, l2_normalize
from ..errors import OptionError, ShapeError, check_choice, check_length, check_whole
from .base import Adapter, CompositeAdapter, key_array, places_of, reading, settle
from .export import Program


@dataclass(eq=False, repr=False)
class LinearAdapter(Adapter):
    """``q' = normalise(W q + b)``; shapes that disagree are a ShapeError.

    Args:
        weight: ``(output_dim, input_dim)``.
        bias: ``(output_dim,)``, or None for none.
        normalize: Scale the result to length 1. Rankings do not change with the length of a
            query, but scores, cut-offs and fusion in several vector stores do.
        shared: Map documents in the same way; an index has to be rebuilt.
    """

    ARRAYS = ("weight", "bias")
    SETTINGS = ("normalize", "shared")
    input_dim: ClassVar[int] = reading("weight", 1)
    output_dim: ClassVar[int] = reading("weight", 0)
    adapts_documents: ClassVar[bool] = reading("shared")

    weight: Vectors
    bias: Vectors | None = None
    _: KW_ONLY
    normalize: bool = True
    shared: bool = False

    def __post_init__(self) -> None:
        settle(self, weight="out in", bias="out", normalize=bool, shared=bool)

    @classmethod
    def identity(cls, dim: int, *, bias: bool = True, shared: bool = False) -> LinearAdapter:
        """Return the adapter that changes no ranking."""
        zero = np.zeros(dim, dtype=np.float32) if bias else None
        return cls(np.eye(dim, dtype=np.float32), zero, shared=shared)

    @property
    def is_identity(self) -> bool:
        still = self.bias is None or not self.bias.any()
        return still and np.array_equal(self.weight, np.eye(*self.weight.shape))

    def map(self, vectors: Vectors) -> Vectors:
        one = vectors.ndim == 1
        mapped: Vectors = np.dot(self.weight, vectors) if one else vectors @ self.weight.T
        if self.bias is not None:
            mapped += self.bias
        return l2_normalize(mapped) if self.normalize else mapped

    def trace(self, program: Program, vector: str, role: Role) -> str:
        mapped = program.linear(vector, self.weight, self.bias)
        return program.apply("normalize", mapped) if self.normalize else mapped


@dataclass(eq=False, repr=False)
class LowRankAdapter(Adapter):
    """``q' = normalise(q + U V q + b)``: small enough for one adapter per tenant.

    Args:
        down: V, ``(rank, dim)``.
        up: U, ``(dim, rank)``.
        bias: b, ``(dim,)``. Shapes that disagree are a ShapeError.

    Source:
        The form is that of LoRA, Hu et al. 2021, arXiv:2106.09685, eq. 3, added to the identity.
    """

    ARRAYS = ("down", "up", "bias")
    input_dim: ClassVar[int] = reading("down", 1)

    down: Vectors
    up: Vectors
    bias: Vectors

    def __post_init__(self) -> None:
        settle(self, down="rank dim", up="dim rank", bias="dim")

    @classmethod
    def identity(cls, dim: int, *, rank: int = 32, seed: int = 0) -> LowRankAdapter:
        """Return an adapter that changes nothing yet: random V, zero U."""
        random, rank = np.random.default_rng(seed), min(rank, dim)
        down = random.standard_normal((rank, dim)) / dim**0.5
        return cls(down, np.zeros((dim, rank), np.float32), np.zeros(dim, np.float32))

    def map(self, vectors: Vectors) -> Vectors:
        return l2_normalize(vectors + (vectors @ self.down.T) @ self.up.T + self.bias)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        weight = np.eye(self.input_dim) + self.up.astype(np.float64) @ self.down
        return program.apply("normalize", program.linear(vector, weight, self.bias))


@dataclass(eq=False, repr=False)
class UnitAdapter(Adapter):
    """Scales queries and documents to length 1, so that all similarities rank as cosine does."""

    ARRAYS, SETTINGS = (), ("dim",)
    input_dim: ClassVar[int] = reading("dim")
    adapts_documents: ClassVar[bool] = True

    dim: int

    def __post_init__(self) -> None:
        check_whole("dim", self.dim)
        settle(self, dim=int)

    def map(self, vectors: Vectors) -> Vectors:
        return l2_normalize(vectors)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        return program.apply("normalize", vector)


_ACTIVATIONS: dict[str, Callable[[Vectors], Vectors]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "tanh": np.tanh,
    "sigmoid": lambda x: np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x)),
}


@dataclass(eq=False, repr=False)
class TwoLayerAdapter(Adapter):
    """``q' = normalise([q +] V a(U q + u) + v)``, with a residual by default.

    Args:
        hidden_weight: U, ``(hidden, input_dim)``.
        hidden_bias: u, ``(hidden,)``.
        output_weight: V, ``(output_dim, hidden)``.
        output_bias: v, ``(output_dim,)``.
        activation: ``"relu"``, ``"leaky_relu"``, ``"tanh"`` or ``"sigmoid"``.
        residual: Add the query itself.
        normalize: Scale the result to length 1.

    Shapes that disagree are a ShapeError, an unknown activation an OptionError.
    """

    ARRAYS = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")
    SETTINGS = ("activation", "residual", "normalize")
    input_dim: ClassVar[int] = reading("hidden_weight", 1)
    output_dim: ClassVar[int] = reading("output_weight", 0)

    hidden_weight: Vectors
    hidden_bias: Vectors
    output_weight: Vectors
    output_bias: Vectors
    _: KW_ONLY
    activation: str = "relu"
    residual: bool = True
    normalize: bool = True

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, _ACTIVATIONS)
        out = "in" if self.residual else "out"
        hidden = {"hidden_weight": "hidden in", "hidden_bias": "hidden"}
        output = {"output_weight": f"{out} hidden", "output_bias": out}
        settle(self, **hidden, **output, residual=bool, normalize=bool)

    @classmethod
    def identity(cls, dim: int, *, hidden: int = 256, seed: int = 0) -> TwoLayerAdapter:
        """Return an adapter that changes nothing yet: random hidden layer, zero output layer."""
        weight = np.random.default_rng(seed).standard_normal((hidden, dim)) * (2.0 / dim) ** 0.5
        return cls(weight, *(np.zeros(shape, np.float32) for shape in (hidden, (dim, hidden), dim)))

    def map(self, vectors: Vectors) -> Vectors:
        hidden = _ACTIVATIONS[self.activation](vectors @ self.hidden_weight.T + self.hidden_bias)
        mapped: Vectors = hidden @ self.output_weight.T + self.output_bias
        if self.residual:
            mapped = mapped + vectors
        return l2_normalize(mapped) if self.normalize else mapped

    def trace(self, program: Program, vector: str, role: Role) -> str:
        hidden = program.linear(vector, self.hidden_weight, self.hidden_bias)
        hidden = program.apply(self.activation, hidden)
        mapped = program.linear(hidden, self.output_weight, self.output_bias)
        mapped = program.apply("add", mapped, vector) if self.residual else mapped
        return program.apply("normalize", mapped) if self.normalize else mapped


@dataclass(eq=False, repr=False)
class KernelAdapter(CompositeAdapter):
    """``q' = normalise(G(q) + weight · Σ k(q, k_i) a_i)`` over all remembered queries.

    ``k(q, k_i) = exp((cos(q, k_i) - 1) / temperature)`` vanishes far from every remembered query,
    which then stays as it is. Unlike attention, the coefficients ``a_i`` know of each other: what
    two similar queries teach is not counted twice. A setting out of range is an OptionError.
    Source: kernel ridge regression, Saunders et al. 1998, in dual variables.
    """

    ARRAYS = ("keys", "coefficients")
    SETTINGS = ("weight", "temperature")
    input_dim: ClassVar[int] = reading("keys", 1)

    general: Adapter  #: ``G``, what is done to every query.
    keys: Vectors  #: ``(n, dim)``, unit rows: the remembered queries.
    coefficients: Vectors  #: ``(n, dim)``: ``a_i``, see :func:`kernel_ridge`.
    _: KW_ONLY
    weight: float = 1.0  #: How much of it, ``>= 0``.
    temperature: float = 0.2  #: In cosine units, ``> 0``.

    def __post_init__(self) -> None:
        settle(self, keys="n dim", coefficients="n dim")
        super().__post_init__()
        if not self.weight >= 0 or not self.temperature > 0:
            given = f"{self.weight!r} and {self.temperature!r}"
            raise OptionError(f"Expected weight >= 0 and temperature > 0, got {given}.")
        settle(self, weight=float, temperature=float)

    def map(self, vectors: Vectors) -> Vectors:
        queries = l2_normalize(np.atleast_2d(vectors))
        added = gaussian(queries, self.keys, self.temperature) @ self.coefficients
        general = l2_normalize(np.atleast_2d(self.general.apply(vectors)))
        return l2_normalize(general + np.float32(self.weight) * added).reshape(vectors.shape)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        far = np.full(len(self.keys), -1 / self.temperature)
        unit = program.apply("normalize", vector)
        similar = program.apply("exp", program.linear(unit, self.keys / self.temperature, far))
        added = program.linear(similar, self.weight * self.coefficients.T)
        general = program.apply("normalize", self.general.through(program, vector, role))
        return program.apply("normalize", program.apply("add", general, added))


def gaussian(first: Vectors, second: Vectors, temperature: float) -> Vectors:
    """Return ``exp((cosine - 1) / temperature)`` of all pairs of unit rows, ``(n, m)``."""
    similar: Vectors = first @ second.T
    similar -= 1.0
    similar /= np.float32(temperature)
    return np.exp(similar, out=similar)


@dataclass(eq=False, repr=False)
class NudgeAdapter(Adapter):
    """Adds an offset to the vectors of the documents it knows; leaves queries as they are.

    Documents are known by the hash of their text: a new or edited one, and any without a key, keeps
    its vector. Shapes that disagree are a ShapeError, keys out of order, or twice, an OptionError.
    """

    ARRAYS = ("keys", "offsets")
    input_dim: ClassVar[int] = reading("offsets", 1)
    adapts_documents: ClassVar[bool] = True

    keys: Keys  #: ``(n,)``, ascending, the content keys of the moved documents.
    offsets: Vectors  #: ``(n, dim)``, added to their unit vectors.

    def __post_init__(self) -> None:
        settle(self, offsets="n dim")
        self.keys = key_array(self.keys)
        if self.keys.shape != (rows := self.offsets.shape[:1]):
            raise ShapeError("keys", expected=rows, actual=self.keys.shape)

    @classmethod
    def of(cls, keys: Keys, offsets: Vectors, *, max_drift: float | None = None) -> NudgeAdapter:
        """Build from keys in any order, of equal ones the first; cut to ``max_drift``, a length."""
        check_length("offsets", offsets, keys)
        distinct, first = np.unique(keys, return_index=True)
        moved = np.asarray(offsets[first], dtype=np.float32)
        if max_drift is not None:
            lengths = np.linalg.norm(moved, axis=1, keepdims=True)
            moved = moved * np.minimum(1.0, max_drift / np.maximum(lengths, 1e-12))
        return cls(distinct, moved)

    @property
    def drift(self) -> float:
        """The longest offset, in units of the document vectors' length 1."""
        return float(np.linalg.norm(self.offsets, axis=1).max())

    def without(self, keys: Keys) -> NudgeAdapter:
        """Undo the nudges of the documents of these keys; if none remains, an OptionError."""
        keep = ~np.isin(self.keys, keys)
        if not keep.any():
            raise OptionError("No nudge would remain: use the adapter below it, or the base model.")
        return NudgeAdapter(self.keys[keep], self.offsets[keep])

    def scaled(self, alpha: float) -> NudgeAdapter:
        """Return the same with every offset ``alpha`` times as long."""
        return NudgeAdapter(self.keys, np.float32(alpha) * self.offsets)

    def map(self, vectors: Vectors) -> Vectors:
        return vectors

    def trace(self, program: Program, vector: str, role: Role) -> str:
        # Documents are known by their texts, which a map of vectors does not see.
        return vector if role == "query" else super().trace(program, vector, role)

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        if keys is None:
            return vectors
        at, known = places_of(keys, self.keys)
        moved = np.array(np.atleast_2d(vectors))
        moved[known] = l2_normalize(l2_normalize(moved[known]) + self.offsets[at[known]])
        return moved.reshape(vectors.shape)
