"""Single maps: linear, low rank, two layers, unit length, kernel regression, offsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.arrays import Keys, Role, Vectors, l2_normalize
from ..errors import OptionError
from .base import Adapter, CompositeAdapter, check_part, check_shapes, readonly_array
from .export import Program


class LinearAdapter(Adapter):
    """``q' = normalise(W q + b)``.

    Args:
        weight: ``(output_dim, input_dim)``.
        bias: ``(output_dim,)``, or None for none.
        normalize: Scale the result to length 1. Rankings do not change with the length of a
            query, but scores, cut-offs and fusion in several vector stores do.
        shared: Map documents in the same way; an index has to be rebuilt.

    Raises:
        ShapeError: Shapes that disagree.
    """

    ARRAYS = ("weight", "bias")
    SETTINGS = ("normalize", "shared")

    def __init__(
        self,
        weight: Vectors,
        bias: Vectors | None = None,
        *,
        normalize: bool = True,
        shared: bool = False,
    ) -> None:
        self.weight = readonly_array(weight, "weight", ndim=2)
        self.bias = None if bias is None else readonly_array(bias, "bias", ndim=1)
        self.normalize, self.shared = bool(normalize), bool(shared)
        if self.bias is not None:
            check_shapes(self, bias=self.weight.shape[:1])

    @classmethod
    def identity(cls, dim: int, *, bias: bool = True, shared: bool = False) -> LinearAdapter:
        """Return the adapter that changes no ranking."""
        zero = np.zeros(dim, dtype=np.float32) if bias else None
        return cls(np.eye(dim, dtype=np.float32), zero, shared=shared)

    @property
    def input_dim(self) -> int:
        return int(self.weight.shape[1])

    @property
    def output_dim(self) -> int:
        return int(self.weight.shape[0])

    @property
    def adapts_documents(self) -> bool:
        return self.shared

    @property
    def is_identity(self) -> bool:
        still = self.bias is None or not self.bias.any()
        return still and np.array_equal(self.weight, np.eye(*self.weight.shape))

    def map(self, vectors: Vectors) -> Vectors:
        mapped: Vectors = (
            np.dot(self.weight, vectors) if vectors.ndim == 1 else vectors @ self.weight.T
        )
        if self.bias is not None:
            mapped += self.bias
        return l2_normalize(mapped) if self.normalize else mapped

    def trace(self, program: Program, vector: str, role: Role) -> str:
        mapped = program.linear(vector, self.weight, self.bias)
        return program.apply("normalize", mapped) if self.normalize else mapped


class LowRankAdapter(Adapter):
    """``q' = normalise(q + U V q + b)``: small enough for one adapter per tenant.

    Args:
        down: V, ``(rank, dim)``.
        up: U, ``(dim, rank)``.
        bias: b, ``(dim,)``.

    Raises:
        ShapeError: Shapes that disagree.

    Source:
        The form is that of LoRA, Hu et al. 2021, arXiv:2106.09685, eq. 3, added to the identity.
    """

    ARRAYS = ("down", "up", "bias")

    def __init__(self, down: Vectors, up: Vectors, bias: Vectors) -> None:
        self.down = readonly_array(down, "down", ndim=2)
        self.up = readonly_array(up, "up", ndim=2)
        self.bias = readonly_array(bias, "bias", ndim=1)
        rank, dim = self.down.shape
        check_shapes(self, up=(dim, rank), bias=(dim,))

    @classmethod
    def identity(cls, dim: int, *, rank: int = 32, seed: int = 0) -> LowRankAdapter:
        """Return an adapter that changes nothing yet: random V, zero U."""
        random = np.random.default_rng(seed)
        return cls(
            (random.standard_normal((min(rank, dim), dim)) / dim**0.5).astype(np.float32),
            np.zeros((dim, min(rank, dim)), dtype=np.float32),
            np.zeros(dim, dtype=np.float32),
        )

    @property
    def input_dim(self) -> int:
        return int(self.down.shape[1])

    def map(self, vectors: Vectors) -> Vectors:
        return l2_normalize(vectors + (vectors @ self.down.T) @ self.up.T + self.bias)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        weight = np.eye(self.input_dim) + self.up.astype(np.float64) @ self.down
        return program.apply("normalize", program.linear(vector, weight, self.bias))


class UnitAdapter(Adapter):
    """Scales queries and documents to length 1, so that all similarities rank as cosine does.

    Args:
        dim: Of the vectors.
    """

    ARRAYS = ()

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise OptionError(f"dim: expected a number above 0, got {dim!r}.")
        self._dim = int(dim)

    @property
    def input_dim(self) -> int:
        return self._dim

    @property
    def adapts_documents(self) -> bool:
        return True

    def config(self) -> dict[str, Any]:
        return {"dim": self._dim}

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

    Raises:
        ShapeError: Shapes that disagree.
        OptionError: An unknown activation.
    """

    ARRAYS = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")
    SETTINGS = ("activation", "residual", "normalize")

    def __init__(
        self,
        hidden_weight: Vectors,
        hidden_bias: Vectors,
        output_weight: Vectors,
        output_bias: Vectors,
        *,
        activation: str = "relu",
        residual: bool = True,
        normalize: bool = True,
    ) -> None:
        self.hidden_weight = readonly_array(hidden_weight, "hidden_weight", ndim=2)
        self.hidden_bias = readonly_array(hidden_bias, "hidden_bias", ndim=1)
        self.output_weight = readonly_array(output_weight, "output_weight", ndim=2)
        self.output_bias = readonly_array(output_bias, "output_bias", ndim=1)
        self.activation, self.residual, self.normalize = activation, bool(residual), bool(normalize)
        if activation not in _ACTIVATIONS:
            raise OptionError(
                f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}."
            )
        hidden, out = len(self.hidden_weight), len(self.output_weight)
        check_shapes(
            self,
            hidden_bias=(hidden,),
            output_weight=(self.input_dim if self.residual else out, hidden),
            output_bias=(out,),
        )

    @classmethod
    def identity(cls, dim: int, *, hidden: int = 256, seed: int = 0) -> TwoLayerAdapter:
        """Return an adapter that changes nothing yet: random hidden layer, zero output layer."""
        random = np.random.default_rng(seed)
        return cls(
            (random.standard_normal((hidden, dim)) * (2.0 / dim) ** 0.5).astype(np.float32),
            np.zeros(hidden, dtype=np.float32),
            np.zeros((dim, hidden), dtype=np.float32),
            np.zeros(dim, dtype=np.float32),
        )

    @property
    def input_dim(self) -> int:
        return int(self.hidden_weight.shape[1])

    @property
    def output_dim(self) -> int:
        return int(self.output_weight.shape[0])

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


class KernelAdapter(CompositeAdapter):
    """``q' = normalise(G(q) + weight · Σ k(q, k_i) a_i)`` over all remembered queries.

    With the Gaussian kernel ``k(q, k_i) = exp((cos(q, k_i) - 1) / temperature)``, whose variance on
    unit vectors is the temperature. Far from every remembered query it vanishes, and the query
    stays as it is. Unlike attention, the coefficients ``a_i`` know of each other: what two similar
    training queries teach is not counted twice.

    Args:
        general: ``G``, what is done to every query.
        keys: ``(n, dim)``, unit rows: the remembered queries.
        coefficients: ``(n, dim)``: ``a_i``, see :func:`kernel_ridge`.
        weight: How much of it, ``>= 0``.
        temperature: In cosine units, ``> 0``.

    Raises:
        ShapeError: Shapes that disagree.
        OptionError: A setting out of range, or a map that moves documents.

    Source:
        Kernel ridge regression: Saunders et al. 1998, Ridge regression learning algorithm in dual
        variables.
    """

    ARRAYS = ("keys", "coefficients")
    SETTINGS = ("weight", "temperature")

    def __init__(
        self,
        general: Adapter,
        keys: Vectors,
        coefficients: Vectors,
        *,
        weight: float = 1.0,
        temperature: float = 0.2,
    ) -> None:
        self.general = general
        self.keys = readonly_array(keys, "keys", ndim=2)
        self.coefficients = readonly_array(coefficients, "coefficients", ndim=2)
        check_shapes(self, coefficients=self.keys.shape)
        check_part(self, "general", general, (self.input_dim, self.input_dim))
        if not weight >= 0 or not temperature > 0:
            raise OptionError(
                f"Expected weight >= 0 and temperature > 0, got {weight!r} and {temperature!r}."
            )
        self.weight, self.temperature = float(weight), float(temperature)

    @property
    def input_dim(self) -> int:
        return int(self.keys.shape[1])

    def parts(self) -> dict[str, Adapter]:
        return {"general": self.general}

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
        general = program.apply("normalize", program.through(self.general, vector, role))
        return program.apply("normalize", program.apply("add", general, added))


def gaussian(first: Vectors, second: Vectors, temperature: float) -> Vectors:
    """Return ``exp((cosine - 1) / temperature)`` of all pairs of unit rows, ``(n, m)``."""
    similar: Vectors = first @ second.T
    similar -= 1.0
    similar /= np.float32(temperature)
    np.exp(similar, out=similar)
    return similar


class NudgeAdapter(Adapter):
    """Adds an offset to the vectors of the documents it knows; leaves queries as they are.

    Documents are known by the hash of their text. A new or an edited document has no offset and
    keeps its vector; the offset of one that was deleted is never looked up. Without keys, as for
    vectors whose texts are not at hand, nothing is moved.

    Args:
        keys: ``(n,)``, ascending, the content keys of the moved documents.
        offsets: ``(n, dim)``, added to their unit vectors.

    Raises:
        ShapeError: Shapes that disagree.
        OptionError: Keys out of order, or twice.
    """

    ARRAYS = ("keys", "offsets")

    def __init__(self, keys: Keys, offsets: Vectors) -> None:
        self.keys = np.array(keys, dtype=np.uint64)
        self.offsets = readonly_array(offsets, "offsets", ndim=2)
        check_shapes(self, keys=self.offsets.shape[:1])
        if (self.keys[1:] <= self.keys[:-1]).any():
            raise OptionError("keys: expected distinct content keys in ascending order.")
        self.keys.setflags(write=False)

    @classmethod
    def of(cls, keys: Keys, offsets: Vectors, *, max_drift: float | None = None) -> NudgeAdapter:
        """Build from keys in any order; of documents with equal text, the first counts.

        Args:
            keys: ``(n,)``.
            offsets: ``(n, dim)``.
            max_drift: Longest offset allowed, in units of the document vectors' length 1; longer
                ones are scaled down.
        """
        distinct, first = np.unique(keys, return_index=True)
        moved = np.asarray(offsets[first], dtype=np.float32)
        if max_drift is not None:
            lengths = np.linalg.norm(moved, axis=1, keepdims=True)
            moved = moved * np.minimum(1.0, max_drift / np.maximum(lengths, 1e-12))
        return cls(distinct, moved)

    @property
    def input_dim(self) -> int:
        return int(self.offsets.shape[1])

    @property
    def adapts_documents(self) -> bool:
        return True

    @property
    def drift(self) -> float:
        """The longest offset, in units of the document vectors' length 1."""
        return float(np.linalg.norm(self.offsets, axis=1).max())

    def without(self, keys: Keys) -> NudgeAdapter:
        """Undo the nudges of these documents; at least one other must remain.

        Args:
            keys: Their content keys.

        Raises:
            OptionError: None would remain; serve without this adapter instead.
        """
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
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        moved = np.array(np.atleast_2d(vectors))
        moved[known] = l2_normalize(l2_normalize(moved[known]) + self.offsets[at[known]])
        return moved.reshape(vectors.shape)
