"""An adapter that remembers what answered similar queries."""

from __future__ import annotations

from typing import Any

import numpy as np

from llama_index_embeddings_adapted.adapters import Adapter, CompositeAdapter, frozen
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.folder import Arrays
from llama_index_embeddings_adapted.vectors import Rows, Vectors, unit


class QueryMemoryAdapter(CompositeAdapter):
    """``q' = normalise(G(q) + weight · Σ a_i(q) v_i)`` over the most similar remembered queries.

    The attention ``a_i = exp((cos(q, k_i) - 1) / temperature)`` is not normalised unless it sums to
    more than 1: far from every remembered query it vanishes, and the query stays as it is.

    Args:
        general: ``G``, what is done to every query.
        keys: ``(n, dim)``, unit rows: the remembered queries.
        values: ``(n, dim)``: for each, what to add, such as the mean of its relevant documents.
        weight: How much of it, ``>= 0``.
        temperature: In cosine units, ``> 0``.
        neighbours: How many remembered queries count at most.

    Raises:
        ShapeError: Shapes that disagree.
        OptionError: A setting out of range.

    Source:
        The idea is that of LADER (Wang et al. 2022, DOI 10.1145/3539618.3591755) and PEFA (Chang et
        al. 2024, arXiv:2312.02429), which add scores; this adds vectors, so that any index serves.
    """

    def __init__(
        self,
        general: Adapter,
        keys: Vectors,
        values: Vectors,
        *,
        weight: float = 0.5,
        temperature: float = 0.1,
        neighbours: int = 10,
    ) -> None:
        self.general = general
        self.keys = frozen(keys, "keys", ndim=2)
        self.values = frozen(values, "values", ndim=2)
        if self.values.shape != self.keys.shape:
            raise ShapeError("values", expected=self.keys.shape, actual=self.values.shape)
        if (general.input_dim, general.output_dim) != (self.input_dim, self.input_dim):
            raise ShapeError("general", expected=f"{self.input_dim} dimensions", actual=general)
        if general.adapts_documents:
            raise OptionError("QueryMemoryAdapter: expected a map that leaves documents alone.")
        if not weight >= 0 or not temperature > 0 or neighbours < 1:
            raise OptionError(
                "Expected weight >= 0, temperature > 0 and neighbours >= 1, got "
                f"{weight!r}, {temperature!r} and {neighbours!r}."
            )
        self.weight, self.temperature = float(weight), float(temperature)
        self.neighbours = int(neighbours)

    @property
    def input_dim(self) -> int:
        return int(self.keys.shape[1])

    @property
    def output_dim(self) -> int:
        return self.input_dim

    def parts(self) -> dict[str, Adapter]:
        return {"general": self.general}

    def own_arrays(self) -> Arrays:
        return {"keys": self.keys, "values": self.values}

    def own_config(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "temperature": self.temperature,
            "neighbours": self.neighbours,
        }

    def map(self, vectors: Vectors) -> Vectors:
        queries = unit(np.atleast_2d(vectors))
        nearest, attention = attend(queries, self.keys, self.temperature, self.neighbours)
        total = np.maximum(attention.sum(axis=1, keepdims=True), 1.0)
        recalled = np.einsum("nk,nkd->nd", attention / total, self.values[nearest])
        general = unit(np.atleast_2d(self.general.apply(vectors)))
        return unit(general + np.float32(self.weight) * recalled).reshape(vectors.shape)


def attend(
    queries: Vectors, keys: Vectors, temperature: float, neighbours: int
) -> tuple[Rows, Vectors]:
    """Return the nearest keys of each query and ``exp((cosine - 1) / temperature)``, ``(n, k)``.

    Args:
        queries: ``(n, dim)``, unit rows.
        keys: ``(m, dim)``, unit rows.
        temperature: In cosine units, ``> 0``.
        neighbours: ``k``, at most ``m`` come back.
    """
    similar = queries @ keys.T
    k = min(neighbours, similar.shape[1])
    nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k].astype(np.int64)
    cosines = np.take_along_axis(similar, nearest, axis=1)
    return nearest, np.exp((cosines - 1.0) / np.float32(temperature)).astype(np.float32)
