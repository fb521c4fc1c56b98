"""What an adapter is: maps the vectors of a base model. Plain numpy, immutable, free of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..core import files as folders
from ..core.arrays import Keys, Role, Vectors
from ..core.files import Arrays
from ..errors import FolderError, OptionError, ShapeError, truncate
from .export import Program, export

_registry: dict[str, type[Adapter]] = {}


class Adapter(ABC):
    """Maps vectors of a base model; subclasses are final and immutable.

    A subclass names its arrays in ``ARRAYS`` and its other settings in ``SETTINGS``, or returns
    them from :meth:`arrays` and :meth:`config`, and takes both back in its constructor by the same
    names; saving and loading need nothing else. Defining it is enough to have it recognised in
    saved folders.
    """

    ARRAYS: ClassVar[tuple[str, ...]]  # no default: weights that were forgotten would not be saved
    SETTINGS: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _registry[cls.__name__] = cls

    @property
    @abstractmethod
    def input_dim(self) -> int:
        """Dimension of the base model's vectors."""

    @property
    def output_dim(self) -> int:
        """Dimension of the mapped vectors, that of the base model's unless a subclass says so."""
        return self.input_dim

    @property
    def adapts_documents(self) -> bool:
        """Whether document vectors change too, so that an index has to be rebuilt."""
        return False

    @property
    def is_identity(self) -> bool:
        """Whether it is known to leave all vectors as they are, but for their length."""
        return False

    def arrays(self) -> Arrays:
        """Return the weights by the name of their constructor argument."""
        found = {name: getattr(self, name) for name in self.ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    def config(self) -> dict[str, Any]:
        """Return the other constructor arguments, as JSON knows them."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    @classmethod
    def build(cls, arrays: Mapping[str, Any], config: Mapping[str, Any]) -> Adapter:
        """Rebuild an adapter from what :meth:`arrays` and :meth:`config` gave."""
        return cls(**arrays, **config)

    @abstractmethod
    def map(self, vectors: Vectors) -> Vectors:
        """Map ``(dim,)`` or ``(n, dim)`` float32 vectors of queries."""

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        """Map documents, if :attr:`adapts_documents`; as queries unless a subclass says how."""
        return self.map(vectors)

    def apply(self, vectors: Vectors, role: Role = "query", keys: Keys | None = None) -> Vectors:
        """Map vectors of the base model as their role asks.

        Args:
            vectors: ``(input_dim,)`` or ``(n, input_dim)``.
            role: ``"query"`` or ``"document"``. Documents come back as they are, unless
                :attr:`adapts_documents`.
            keys: ``(n,)``, the :func:`content_hashes` of the
                documents, for adapters that know documents one by one. Without them, and for
                texts they do not know, such adapters treat documents alike.

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
        if role == "query":
            return self.map(vectors)
        if role != "document":
            raise OptionError(f'role: expected "query" or "document", got {role!r}.')
        return self.map_documents(vectors, keys) if self.adapts_documents else vectors

    def trace(self, program: Program, vector: str, role: Role) -> str:
        """Write down what the adapter does to a vector, for :meth:`export`.

        Args:
            program: Takes the steps.
            vector: Name of the vector of the base model.
            role: As in :meth:`apply`; ``"document"`` only if :attr:`adapts_documents`.

        Returns:
            The name of the mapped vector.

        Raises:
            OptionError: Unless a subclass says how.
        """
        raise OptionError(
            f"{type(self).__name__} has no trace() for a {role}: it cannot be exported."
        )

    def export(
        self, path: str | Path, format: str = "onnx", *, role: Role = "query", base: Any = None
    ) -> Path:
        """Write the adapter for use elsewhere; ``docs/export.md`` shows how each is read.

        Args:
            path: The file to write; for ``"sentence-transformers"`` a new folder. A file is
                replaced.
            format: ``"onnx"``: a graph. ``"json"``: weights and steps. ``"numpy"``: an ``.npz``.
                ``"sql"``: a function over pgvector, named as the file. ``"sentence-transformers"``:
                base and adapter, for ``encode_query`` and ``encode_document``.
            role: Whose vectors; ``"sentence-transformers"`` writes both.
            base: The base model, which only ``"sentence-transformers"`` needs: a
                ``HuggingFaceEmbedding`` or a ``SentenceTransformer``.

        Returns:
            ``path``.

        Raises:
            OptionError: An unknown format, or one that cannot express this adapter.
            MissingExtraError: ``"onnx"`` or ``"sentence-transformers"`` without its package.
        """
        target = Path(path)
        export(self, target, format, input_dim=self.input_dim, role=role, base=base)
        return target

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
        return type(self).build, (self.arrays(), self.config())

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self.config().items())
        return f"{type(self).__name__}({self.input_dim} → {self.output_dim}{settings})"


class CompositeAdapter(Adapter):
    """An adapter made of others; subclasses name them in :meth:`parts` and take them back so.

    Their arrays are saved under ``<part>.<array>``.
    """

    ARRAYS: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parts(self) -> dict[str, Adapter]:
        """Return the adapters by the name of their constructor argument."""

    def own_arrays(self) -> Arrays:
        """Return the arrays besides those of the parts."""
        return super().arrays()

    def own_config(self) -> dict[str, Any]:
        """Return the settings besides the parts."""
        return super().config()

    def arrays(self) -> Arrays:
        """Return all weights, those of the parts under their names."""
        return self.own_arrays() | {
            f"{name}.{key}": array
            for name, part in self.parts().items()
            for key, array in part.arrays().items()
        }

    def config(self) -> dict[str, Any]:
        """Return the settings, with a description of each part."""
        parts = {name: describe(part) for name, part in self.parts().items()}
        return {**self.own_config(), "parts": parts}

    @classmethod
    def build(cls, arrays: Mapping[str, Any], config: Mapping[str, Any]) -> Adapter:
        """Rebuild the parts, then the whole."""
        own = dict(arrays)
        parts: dict[str, Adapter] = {}
        for name, description in config["parts"].items():
            prefix = f"{name}."
            theirs = {key[len(prefix) :]: own.pop(key) for key in arrays if key.startswith(prefix)}
            parts[name] = restore(description, theirs, where=name)
        settings = {key: value for key, value in config.items() if key != "parts"}
        return cls.assemble(parts, {**own, **settings})

    @classmethod
    def assemble(cls, parts: dict[str, Adapter], settings: dict[str, Any]) -> Adapter:
        """Call the constructor; for subclasses whose parts are not keyword arguments."""
        return cls(**parts, **settings)

    def __repr__(self) -> str:
        inside = [f"{name}={part!r}" for name, part in self.parts().items()]
        inside += [f"{key}={value!r}" for key, value in self.own_config().items()]
        return f"{type(self).__name__}({', '.join(inside)})"


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


#: Classes that folders of earlier versions name, and what to do about them.
RETIRED = {
    "QueryMemoryAdapter": "version 0.1 of this library reads; from then on, "
    'method="kernel" does its work: train again'
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
    if isinstance(name, str) and name in RETIRED:
        raise FolderError(f"{where}: holds a {name}, which {RETIRED[name]}.")
    if cls is None:
        raise FolderError(
            f"{where}: adapter class {truncate(repr(name))} is not known here (known: "
            f"{', '.join(sorted(_registry))}). Import the module that defines it first."
        )
    shapes = {key: list(array.shape) for key, array in arrays.items()}
    if shapes != description.get("shapes"):
        raise FolderError(
            f"{where}: expected weights of shapes {truncate(str(description.get('shapes')), 500)}, "
            f"found {truncate(str(shapes), 500)}."
        )
    settings = description.get("config")
    try:
        return cls.build(arrays, settings if isinstance(settings, dict) else {})
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
            ValueError) as cause:  # fmt: skip
        reason = truncate(str(cause), 500)
        raise FolderError(f"{where}: not a valid {name} ({reason}).") from cause


def readonly_array(value: Any, what: str, *, ndim: int) -> Vectors:
    """Return a finite float32 copy that nobody can write to; else a :class:`ShapeError`."""
    array = np.array(value, dtype=np.float32)  # a copy: nobody else can write to it
    if array.ndim != ndim or not array.size:
        raise ShapeError(what, expected=f"{ndim} dimensions", actual=f"shape {array.shape}")
    if not np.isfinite(array).all():
        raise ShapeError(what, expected="finite numbers", actual="NaN or infinity")
    array.setflags(write=False)
    return array


def check_shapes(owner: object, **expected: tuple[int, ...]) -> None:
    """Refuse, by a :class:`ShapeError`, arrays of an object that have another shape."""
    for name, shape in expected.items():
        actual = getattr(owner, name).shape
        if actual != shape:
            raise ShapeError(name, expected=shape, actual=actual)


def check_part(owner: object, name: str, part: Adapter, dims: tuple[int, int]) -> None:
    """Refuse a part of an adapter that moves documents (:class:`OptionError`) or has other dims."""
    if part.adapts_documents:
        raise OptionError(
            f"{name}: expected an adapter that leaves documents alone, got a "
            f"{type(part).__name__}. Stack what moves documents after the {type(owner).__name__}."
        )
    if (part.input_dim, part.output_dim) != dims:
        expected = f"{dims[0]} to {dims[1]} dimensions"
        raise ShapeError(name, expected=expected, actual=repr(part))
