"""An adapter that answers as kernel regression over training queries does."""

from __future__ import annotations

from typing import Any

import numpy as np

from llama_index_embeddings_adapted.adapters import Adapter, CompositeAdapter, frozen
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.folder import Arrays
from llama_index_embeddings_adapted.vectors import Vectors, unit


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
            :func:`~llama_index_embeddings_adapted.kernel_ridge.kernel_ridge`.
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
        self.keys = frozen(keys, "keys", ndim=2)
        self.coefficients = frozen(coefficients, "coefficients", ndim=2)
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
        queries = unit(np.atleast_2d(vectors))
        added = gaussian(queries, self.keys, self.temperature) @ self.coefficients
        general = unit(np.atleast_2d(self.general.apply(vectors)))
        return unit(general + np.float32(self.weight) * added).reshape(vectors.shape)


def gaussian(first: Vectors, second: Vectors, temperature: float) -> Vectors:
    """Return ``exp((cosine - 1) / temperature)`` of all pairs of unit rows, ``(n, m)``."""
    similar: Vectors = first @ second.T
    similar -= 1.0
    similar /= np.float32(temperature)
    np.exp(similar, out=similar)
    return similar
