"""Adapters one after the other."""

from __future__ import annotations

import itertools
from typing import Any

from llama_index_embeddings_adapted.adapters import Adapter, CompositeAdapter
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.vectors import Keys, Vectors


class StackedAdapter(CompositeAdapter):
    """Applies adapters in turn, such as a map and then the nudges that were fitted on top of it.

    Args:
        adapters: At least one, first to last.

    Raises:
        OptionError: None given.
        ShapeError: One gives vectors of another dimension than the next takes.
    """

    def __init__(self, *adapters: Adapter) -> None:
        if not adapters:
            raise OptionError("StackedAdapter: expected at least one adapter.")
        for first, second in itertools.pairwise(adapters):
            if first.output_dim != second.input_dim:
                raise ShapeError(
                    f"{type(second).__name__} in a stack",
                    expected=f"{first.output_dim} dimensions, as {type(first).__name__} gives",
                    actual=second.input_dim,
                )
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
