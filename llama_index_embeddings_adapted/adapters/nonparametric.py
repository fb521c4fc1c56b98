"""Kernel regression over training queries, and offsets of single documents."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.arrays import Keys, Vectors, l2_normalize
from ..core.files import Arrays
from ..errors import OptionError, ShapeError
from .base import Adapter, CompositeAdapter, readonly_array


class KernelAdapter(CompositeAdapter):
    """``q' = normalise(G(q) + weight · Σ k(q, k_i) a_i)`` over all remembered queries.

    With the Gaussian kernel ``k(q, k_i) = exp((cos(q, k_i) - 1) / temperature)``, whose variance on
    unit vectors is the temperature. Far from every remembered query it vanishes, and the query
    stays as it is. Unlike attention, the coefficients ``a_i`` know of each other: what two similar
    training queries teach is not counted twice.

    Args:
        general: ``G``, what is done to every query.
        keys: ``(n, dim)``, unit rows: the remembered queries.
        coefficients: ``(n, dim)``: ``a_i``, see
            :func:`kernel_ridge`.
        weight: How much of it, ``>= 0``.
        temperature: In cosine units, ``> 0``.

    Raises:
        ShapeError: Shapes that disagree.
        OptionError: A setting out of range, or a map that moves documents.

    Source:
        Kernel ridge regression: Saunders et al. 1998, Ridge regression learning algorithm in dual
        variables.
    """

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
        if self.coefficients.shape != self.keys.shape:
            raise ShapeError(
                "coefficients", expected=self.keys.shape, actual=self.coefficients.shape
            )
        if (general.input_dim, general.output_dim) != (self.input_dim, self.input_dim):
            raise ShapeError("general", expected=f"{self.input_dim} dimensions", actual=general)
        if general.adapts_documents:
            raise OptionError("KernelAdapter: expected a map that leaves documents alone.")
        if not weight >= 0 or not temperature > 0:
            raise OptionError(
                f"Expected weight >= 0 and temperature > 0, got {weight!r} and {temperature!r}."
            )
        self.weight, self.temperature = float(weight), float(temperature)

    @property
    def input_dim(self) -> int:
        return int(self.keys.shape[1])

    @property
    def output_dim(self) -> int:
        return self.input_dim

    def parts(self) -> dict[str, Adapter]:
        return {"general": self.general}

    def own_arrays(self) -> Arrays:
        return {"keys": self.keys, "coefficients": self.coefficients}

    def own_config(self) -> dict[str, Any]:
        return {"weight": self.weight, "temperature": self.temperature}

    def map(self, vectors: Vectors) -> Vectors:
        queries = l2_normalize(np.atleast_2d(vectors))
        added = gaussian(queries, self.keys, self.temperature) @ self.coefficients
        general = l2_normalize(np.atleast_2d(self.general.apply(vectors)))
        return l2_normalize(general + np.float32(self.weight) * added).reshape(vectors.shape)


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

    def __init__(self, keys: Keys, offsets: Vectors) -> None:
        self.keys = np.array(keys, dtype=np.uint64)
        self.offsets = readonly_array(offsets, "offsets", ndim=2)
        if self.keys.shape != self.offsets.shape[:1]:
            raise ShapeError("keys", expected=self.offsets.shape[:1], actual=self.keys.shape)
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
    def output_dim(self) -> int:
        return self.input_dim

    @property
    def adapts_documents(self) -> bool:
        return True

    @property
    def drift(self) -> float:
        """The longest offset, in units of the document vectors' length 1."""
        return float(np.linalg.norm(self.offsets, axis=1).max())

    def arrays(self) -> Arrays:
        return {"keys": self.keys, "offsets": self.offsets}

    def config(self) -> dict[str, Any]:
        return {}

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

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        if keys is None:
            return vectors
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        moved = np.array(np.atleast_2d(vectors))
        moved[known] = l2_normalize(l2_normalize(moved[known]) + self.offsets[at[known]])
        return moved.reshape(vectors.shape)
