"""What an adapter is: maps the vectors of a base model. Plain numpy, immutable, free of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

from ..core import files as folders
from ..core.arrays import Keys, Role, Rows, Vectors
from ..core.files import Arrays
from ..errors import FolderError, OptionError, ShapeError, check_choice, check_length, truncate
from .export import Program, export

_registry: dict[str, type[Adapter]] = {}

#: Classes that folders of earlier versions name, and what to do about them.
RETIRED = {
    "QueryMemoryAdapter": "version 0.1 of this library reads; from then on, "
    'method="kernel" does its work: train again'
}


class Adapter(ABC):
    """Maps vectors of a base model; subclasses are final and immutable.

    A subclass names its arrays in ``ARRAYS`` and its other settings in ``SETTINGS``, or returns
    them from :meth:`arrays` and :meth:`config`, and takes both back in its constructor by the same
    names; saving and loading need nothing else. Defining it is enough to have it recognised in
    saved folders.
    """

    ARRAYS: ClassVar[Iterable[str]]  # no default: weights that were forgotten would not be saved
    SETTINGS: ClassVar[Iterable[str]] = ()

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
            keys: ``(n,)``, the :func:`content_hashes` of the documents, for adapters that know
                documents one by one. Without them, and for texts they do not know, such adapters
                treat documents alike.

        Returns:
            ``(output_dim,)`` or ``(n, output_dim)``, float32.

        Raises:
            ShapeError: Vectors of another dimension, or another number of keys.
            OptionError: Another role.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.shape[-1:] != (self.input_dim,) or vectors.ndim > 2:
            expected = f"{self.input_dim} dimensions, as this adapter was trained on"
            found, hint = f"shape {vectors.shape}", "Was it trained on another base model?"
            what = "Vectors of the base model"
            raise ShapeError(what, expected=expected, actual=found, hint=hint)
        if role == "query":
            return self.map(vectors)
        check_choice("role", role, get_args(Role))
        if not self.adapts_documents:
            return vectors
        if keys is not None:
            check_length("keys", keys, np.atleast_2d(vectors))
        return self.map_documents(vectors, keys)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        """Write down what the adapter does to a vector, for :meth:`export`.

        ``program`` takes the steps; ``vector`` names the vector of the base model, and what comes
        back the mapped one; ``role`` is ``"document"`` only if :attr:`adapts_documents`. Unless a
        subclass says how, it is an :class:`OptionError`.
        """
        name = type(self).__name__
        raise OptionError(f"{name} has no trace() for a {role}: it cannot be exported.")

    def export(
        self, path: str | Path, format: str | None = None, *, role: Role = "query", base: Any = None
    ) -> Path:
        """Write the adapter for use elsewhere; ``docs/export.md`` shows how each is read.

        Args:
            path: The file to write; for ``"sentence-transformers"`` a new folder. A file is
                replaced.
            format: ``"onnx"``: a graph. ``"json"``: weights and steps. ``"numpy"``: an ``.npz``.
                ``"sql"``: a function over pgvector, named as the file. ``"sentence-transformers"``:
                base and adapter, for ``encode_query`` and ``encode_document``. By default what the
                path ends in, else ``"onnx"``.
            role: Whose vectors; ``"sentence-transformers"`` writes both.
            base: The base model, which only ``"sentence-transformers"`` needs: a
                ``HuggingFaceEmbedding`` or a ``SentenceTransformer``.

        Returns:
            ``path``.

        Raises:
            OptionError: An unknown format, or one that cannot express this adapter.
            MissingExtraError: ``"onnx"`` or ``"sentence-transformers"`` without its package.
        """
        return export(self._written_down, Path(path), format, role=role, base=base)

    def _written_down(self, role: Role) -> Program:
        program = Program(self.input_dim)
        program.output = self.through(program, "v0", role)
        return program

    def through(self, program: Program, vector: str, role: Role) -> str:
        """Add what it does to a vector in a role, as :meth:`trace` does if that is anything."""
        moves = role == "query" or self.adapts_documents
        return self.trace(program, vector, role) if moves else vector

    def save(self, folder: str | Path) -> None:
        """Write the adapter alone; :meth:`AdaptedEmbedding.save_pretrained` adds its base model."""
        folders.write(Path(folder), {"adapter": describe(self)}, self.arrays())

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read an adapter, of this class or one below it, from a folder, or raise a FolderError."""
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
        same = self.config() == other.config() and mine.keys() == theirs.keys()
        return same and all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).build, (self.arrays(), self.config())

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self.config().items())
        return f"{type(self).__name__}({self.input_dim} → {self.output_dim}{settings})"


class CompositeAdapter(Adapter):
    """An adapter made of others, which it takes and has by the names of :meth:`parts`.

    Their arrays are saved under ``<part>.<array>``. They leave documents alone, else it is an
    :class:`OptionError`, and take and give its dimensions, else it is a :class:`ShapeError`.
    """

    ARRAYS: ClassVar[Iterable[str]] = ()

    def __post_init__(self) -> None:
        for name, part in self.parts().items():
            if part.adapts_documents:
                raise OptionError(
                    f"{name}: expected an adapter that leaves documents alone, got a "
                    f"{type(part).__name__}. Stack what moves documents after the "
                    f"{type(self).__name__}."
                )
            if (part.input_dim, part.output_dim) != (self.input_dim, self.output_dim):
                expected = f"{self.input_dim} to {self.output_dim} dimensions"
                raise ShapeError(name, expected=expected, actual=repr(part))

    def parts(self) -> dict[str, Adapter]:
        """Return the adapters by the name of their constructor argument."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Adapter)}

    def own_arrays(self) -> Arrays:
        """Return the arrays besides those of the parts."""
        return super().arrays()

    def arrays(self) -> Arrays:
        """Return all weights, those of the parts under their names."""
        arrays = {name: part.arrays() for name, part in self.parts().items()}
        theirs = {f"{name}.{key}": own[key] for name, own in arrays.items() for key in own}
        return self.own_arrays() | theirs

    def config(self) -> dict[str, Any]:
        """Return the settings, with a description of each part."""
        parts = {name: describe(part) for name, part in self.parts().items()}
        return {**super().config(), "parts": parts}

    @classmethod
    def build(cls, arrays: Mapping[str, Any], config: Mapping[str, Any]) -> Adapter:
        """Rebuild the parts, then the whole."""
        settings, parts = {**arrays, **config}, {}
        for name, description in settings.pop("parts").items():
            mine = [key for key in arrays if key.startswith(f"{name}.")]
            theirs = {key.removeprefix(f"{name}."): settings.pop(key) for key in mine}
            parts[name] = restore(description, theirs, where=name)
        return cls.assemble(parts, settings)

    @classmethod
    def assemble(cls, parts: dict[str, Adapter], settings: dict[str, Any]) -> Adapter:
        """Call the constructor; for subclasses whose parts are not keyword arguments."""
        return cls(**parts, **settings)

    def __repr__(self) -> str:
        inside = [f"{name}={part!r}" for name, part in self.parts().items()]
        inside += [f"{key}={value!r}" for key, value in super().config().items()]
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


def restore(description: object, arrays: Mapping[str, Any], *, where: str) -> Adapter:
    """Rebuild what :func:`describe` described; what does not fit is a FolderError."""
    if not isinstance(description, dict):
        raise FolderError(f"{where}: no adapter is described in it.")
    given = description.get("class")
    name = given if isinstance(given, str) else ""
    if name in RETIRED:
        raise FolderError(f"{where}: holds a {name}, which {RETIRED[name]}.")
    if name not in _registry:
        raise FolderError(
            f"{where}: adapter class {truncate(repr(given))} is not known here (known: "
            f"{', '.join(sorted(_registry))}). Import the module that defines it first."
        )
    shapes, told = {key: list(a.shape) for key, a in arrays.items()}, description.get("shapes")
    if shapes != told:
        expected, found = (truncate(str(each), 500) for each in (told, shapes))
        raise FolderError(f"{where}: expected weights of shapes {expected}, found {found}.")
    settings = description.get("config")
    try:
        return _registry[name].build(arrays, settings if isinstance(settings, dict) else {})
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
            ValueError) as cause:  # fmt: skip
        raise FolderError(f"{where}: not a valid {name} ({truncate(str(cause), 500)}).") from cause


def settle(owner: object, **kinds: str | type) -> None:
    """Give settings of an object their type, and make its arrays read-only, float32 and finite.

    The kind of an array are its axes, such as ``"rank dim"``: those of one name have one length, a
    number is a length. Another shape is a :class:`ShapeError`; an array that is None stays so.
    """
    lengths: dict[str, int] = {}
    for name, kind in kinds.items():
        value = getattr(owner, name)
        if not isinstance(kind, str):
            setattr(owner, name, kind(value))
        elif value is not None:
            axes, array = kind.split(), np.array(value, dtype=np.float32)  # a copy: ours alone
            if array.ndim != len(axes) or not array.size:
                expected, actual = f"{len(axes)} dimensions", f"shape {array.shape}"
                raise ShapeError(name, expected=expected, actual=actual)
            if not np.isfinite(array).all():
                raise ShapeError(name, expected="finite numbers", actual="NaN or infinity")
            sized = (lengths.setdefault(a, n) for a, n in zip(axes, array.shape, strict=True))
            shape = tuple(int(a) if a.isdigit() else n for a, n in zip(axes, sized, strict=True))
            if array.shape != shape:
                raise ShapeError(name, expected=shape, actual=array.shape)
            array.setflags(write=False)
            setattr(owner, name, array)


def reading(path: str, axis: int | None = None) -> Any:
    """Return a property that is another's, ``"query.output_dim"``, or the length of an array."""
    read = attrgetter(path)
    return property(read if axis is None else lambda self: int(read(self).shape[axis]))


def key_array(keys: Any, *, ascending: bool = True) -> Keys:
    """Return content keys that nobody can write to, or raise an :class:`OptionError`."""
    array = np.array(keys, dtype=np.uint64)
    if ascending and (array[1:] <= array[:-1]).any():
        raise OptionError("keys: expected distinct content keys in ascending order.")
    array.setflags(write=False)
    return array


def places_of(wanted: Keys, keys: Keys) -> tuple[Rows, Any]:
    """Return where keys stand among at least one ascending key, and which of them do at all."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted
