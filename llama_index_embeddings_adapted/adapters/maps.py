"""Adapters that map every vector in the same way: linear, low rank, two layers, unit length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.arrays import Vectors, l2_normalize
from ..core.files import Arrays
from ..errors import OptionError, ShapeError
from .base import Adapter, readonly_array


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
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ShapeError("bias", expected=self.weight.shape[:1], actual=self.bias.shape)

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

    def arrays(self) -> Arrays:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def config(self) -> dict[str, Any]:
        return {"normalize": self.normalize, "shared": self.shared}

    def map(self, vectors: Vectors) -> Vectors:
        mapped: Vectors = (
            np.dot(self.weight, vectors) if vectors.ndim == 1 else vectors @ self.weight.T
        )
        if self.bias is not None:
            mapped += self.bias
        return l2_normalize(mapped) if self.normalize else mapped


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

    def __init__(self, down: Vectors, up: Vectors, bias: Vectors) -> None:
        self.down = readonly_array(down, "down", ndim=2)
        self.up = readonly_array(up, "up", ndim=2)
        self.bias = readonly_array(bias, "bias", ndim=1)
        rank, dim = self.down.shape
        if self.up.shape != (dim, rank):
            raise ShapeError("up", expected=(dim, rank), actual=self.up.shape)
        if self.bias.shape != (dim,):
            raise ShapeError("bias", expected=(dim,), actual=self.bias.shape)

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

    @property
    def output_dim(self) -> int:
        return self.input_dim

    def arrays(self) -> Arrays:
        return {"down": self.down, "up": self.up, "bias": self.bias}

    def map(self, vectors: Vectors) -> Vectors:
        return l2_normalize(vectors + (vectors @ self.down.T) @ self.up.T + self.bias)


class UnitAdapter(Adapter):
    """Scales queries and documents to length 1, so that all similarities rank as cosine does.

    Args:
        dim: Of the vectors.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise OptionError(f"dim: expected a number above 0, got {dim!r}.")
        self._dim = int(dim)

    @property
    def input_dim(self) -> int:
        return self._dim

    @property
    def output_dim(self) -> int:
        return self._dim

    @property
    def adapts_documents(self) -> bool:
        return True

    def arrays(self) -> Arrays:
        return {}

    def config(self) -> dict[str, Any]:
        return {"dim": self._dim}

    def map(self, vectors: Vectors) -> Vectors:
        return l2_normalize(vectors)


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
        hidden, out = self.hidden_weight.shape[0], self.output_weight.shape[0]
        for name, expected in {
            "hidden_bias": (hidden,),
            "output_weight": (self.input_dim if self.residual else out, hidden),
            "output_bias": (out,),
        }.items():
            if getattr(self, name).shape != expected:
                raise ShapeError(name, expected=expected, actual=getattr(self, name).shape)

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

    def arrays(self) -> Arrays:
        names = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")
        return {name: getattr(self, name) for name in names}

    def config(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "residual": self.residual,
            "normalize": self.normalize,
        }

    def map(self, vectors: Vectors) -> Vectors:
        hidden = _ACTIVATIONS[self.activation](vectors @ self.hidden_weight.T + self.hidden_bias)
        mapped: Vectors = hidden @ self.output_weight.T + self.output_bias
        if self.residual:
            mapped = mapped + vectors
        return l2_normalize(mapped) if self.normalize else mapped
