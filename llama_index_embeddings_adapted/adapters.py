"""Adapters: what maps the vectors of a base model. Plain numpy, immutable, free of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted.errors import FolderError, OptionError, ShapeError
from llama_index_embeddings_adapted.folder import Arrays
from llama_index_embeddings_adapted.vectors import Role, Vectors, unit

_registry: dict[str, type[Adapter]] = {}


class Adapter(ABC):
    """Maps vectors of a base model; subclasses are final and immutable.

    A subclass names its arrays in :meth:`arrays`, its other settings in :meth:`config`, and takes
    both back in its constructor by the same names; saving and loading need nothing else. Defining
    it is enough to have it recognised in saved folders.
    """

    #: Whether document vectors change too, so that an index has to be rebuilt.
    adapts_documents: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _registry[cls.__name__] = cls

    @property
    @abstractmethod
    def input_dim(self) -> int:
        """Dimension of the base model's vectors."""

    @property
    @abstractmethod
    def output_dim(self) -> int:
        """Dimension of the mapped vectors."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """Return the weights by the name of their constructor argument."""

    def config(self) -> dict[str, Any]:
        """Return the other constructor arguments, as JSON knows them."""
        return {}

    @abstractmethod
    def map(self, vectors: Vectors) -> Vectors:
        """Map ``(dim,)`` or ``(n, dim)`` float32 vectors; called for the roles that are adapted."""

    def apply(self, vectors: Vectors, role: Role = "query") -> Vectors:
        """Map vectors of the base model as their role asks.

        Args:
            vectors: ``(input_dim,)`` or ``(n, input_dim)``.
            role: ``"query"`` or ``"document"``. Documents come back as they are, unless
                :attr:`adapts_documents`.

        Returns:
            ``(output_dim,)`` or ``(n, output_dim)``, float32.

        Raises:
            ShapeError: Vectors of another dimension.
            OptionError: Another role.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.shape[-1:] != (self.input_dim,) or vectors.ndim > 2:
            raise ShapeError(
                "Vectors of the base model",
                expected=f"{self.input_dim} dimensions, as this adapter was trained on",
                actual=f"shape {vectors.shape}",
                hint="Was it trained on another base model?",
            )
        if role == "query" or (role == "document" and self.adapts_documents):
            return self.map(vectors)
        if role != "document":
            raise OptionError(f'role: expected "query" or "document", got {role!r}.')
        return vectors

    def save(self, folder: str | Path) -> None:
        """Write the adapter alone; :meth:`AdaptedEmbedding.save_pretrained` adds its base model."""
        folders.write(Path(folder), {"adapter": describe(self)}, self.arrays())

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read an adapter from a saved folder, of whatever class it is.

        Raises:
            FolderError: A damaged or foreign folder, or, called on a subclass, another class.
        """
        config, arrays = folders.read(Path(folder))
        arrays.pop(folders.PROBES, None)
        adapter = restore(config.get("adapter"), arrays, where=str(folder))
        if not isinstance(adapter, cls):
            raise FolderError(f"{folder}: holds a {type(adapter).__name__}, not a {cls.__name__}.")
        return adapter

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self.arrays(), other.arrays()
        return (
            self.config() == other.config()
            and mine.keys() == theirs.keys()
            and all(np.array_equal(mine[name], theirs[name]) for name in mine)
        )

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.arrays(), self.config())

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self.config().items())
        return f"{type(self).__name__}({self.input_dim} → {self.output_dim}{settings})"


class LinearAdapter(Adapter):
    """``q' = normalise(W q + b)``.

    Args:
        weight: ``(output_dim, input_dim)``.
        bias: ``(output_dim,)``, or None for none.
        normalize: Scale the result to length 1. Rankings do not change with the length of a
            query, but scores, cut-offs and fusion in several vector stores do.

    Raises:
        ShapeError: Shapes that disagree.
    """

    def __init__(
        self, weight: Vectors, bias: Vectors | None = None, *, normalize: bool = True
    ) -> None:
        self.weight = _frozen(weight, "weight", ndim=2)
        self.bias = None if bias is None else _frozen(bias, "bias", ndim=1)
        self.normalize = bool(normalize)
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ShapeError("bias", expected=self.weight.shape[:1], actual=self.bias.shape)

    @classmethod
    def identity(cls, dim: int, *, bias: bool = True) -> LinearAdapter:
        """Return the adapter that changes no ranking."""
        return cls(np.eye(dim, dtype=np.float32), np.zeros(dim, dtype=np.float32) if bias else None)

    @property
    def input_dim(self) -> int:
        return int(self.weight.shape[1])

    @property
    def output_dim(self) -> int:
        return int(self.weight.shape[0])

    def arrays(self) -> Arrays:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def config(self) -> dict[str, Any]:
        return {"normalize": self.normalize}

    def map(self, vectors: Vectors) -> Vectors:
        mapped: Vectors = (
            np.dot(self.weight, vectors) if vectors.ndim == 1 else vectors @ self.weight.T
        )
        if self.bias is not None:
            mapped += self.bias
        return unit(mapped) if self.normalize else mapped


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
        self.hidden_weight = _frozen(hidden_weight, "hidden_weight", ndim=2)
        self.hidden_bias = _frozen(hidden_bias, "hidden_bias", ndim=1)
        self.output_weight = _frozen(output_weight, "output_weight", ndim=2)
        self.output_bias = _frozen(output_bias, "output_bias", ndim=1)
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
        return unit(mapped) if self.normalize else mapped


def describe(adapter: Adapter) -> dict[str, Any]:
    """Return class, dimensions, settings and shapes of an adapter, as JSON knows them."""
    return {
        "class": type(adapter).__name__,
        "input_dim": adapter.input_dim,
        "output_dim": adapter.output_dim,
        "adapts_documents": adapter.adapts_documents,
        "config": adapter.config(),
        "shapes": {name: list(array.shape) for name, array in adapter.arrays().items()},
    }


def restore(description: object, arrays: Mapping[str, Any], *, where: str) -> Adapter:
    """Rebuild what :func:`describe` described.

    Raises:
        FolderError: An unknown class, shapes that are not as described, or settings the class
            does not take.
    """
    if not isinstance(description, dict):
        raise FolderError(f"{where}: no adapter is described in it.")
    name = description.get("class")
    cls = _registry.get(name) if isinstance(name, str) else None
    if cls is None:
        raise FolderError(
            f"{where}: adapter class {name!r} is not known here (known: "
            f"{', '.join(sorted(_registry))}). Import the module that defines it first."
        )
    shapes = {key: list(array.shape) for key, array in arrays.items()}
    if shapes != description.get("shapes"):
        raise FolderError(
            f"{where}: expected weights of shapes {description.get('shapes')}, found {shapes}."
        )
    settings = description.get("config")
    try:
        return cls(**arrays, **(settings if isinstance(settings, dict) else {}))
    except (TypeError, ValueError) as cause:
        raise FolderError(f"{where}: not a valid {name} ({cause}).") from cause


def _rebuild(cls: type[Adapter], arrays: Arrays, config: dict[str, Any]) -> Adapter:
    return cls(**arrays, **config)


def _frozen(value: Any, what: str, *, ndim: int) -> Vectors:
    array = np.array(value, dtype=np.float32)  # a copy: nobody else can write to it
    if array.ndim != ndim or not array.size:
        raise ShapeError(what, expected=f"{ndim} dimensions", actual=f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise ShapeError(what, expected="finite numbers", actual="NaN or infinity")
    array.setflags(write=False)
    return array
