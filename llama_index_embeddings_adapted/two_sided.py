"""Adapters that map queries in one way and documents in another."""

from __future__ import annotations

from llama_index_embeddings_adapted.adapters import Adapter, CompositeAdapter
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.vectors import Keys, Vectors


class TwoSidedAdapter(CompositeAdapter):
    """``q' = Q(q)`` and ``d' = D(d)``; an index has to be rebuilt.

    Args:
        query: ``Q``, anything that leaves documents alone: a map, a memory, a gate.
        document: ``D``, a map; applied to documents as it would be to queries.

    Raises:
        ShapeError: Dimensions that disagree.
        OptionError: A part that moves documents by itself.

    Source:
        The score is ``qᵀ Qᵀ D d``, the bilinear form of supervised semantic indexing (Bai et al.
        2009, DOI 10.1145/1645953.1645979), with documents scaled to length 1 afterwards.
    """

    def __init__(self, query: Adapter, document: Adapter) -> None:
        self.query, self.document = query, document
        expected = (query.input_dim, query.output_dim)
        if (document.input_dim, document.output_dim) != expected:
            raise ShapeError(
                "document",
                expected=f"{expected[0]} to {expected[1]} dimensions, as query has",
                actual=repr(document),
            )
        for name, part in self.parts().items():
            if part.adapts_documents:
                raise OptionError(
                    f"{name}: expected an adapter of one side, got {type(part).__name__}, which "
                    "moves documents by itself."
                )

    @property
    def input_dim(self) -> int:
        return self.query.input_dim

    @property
    def output_dim(self) -> int:
        return self.query.output_dim

    @property
    def adapts_documents(self) -> bool:
        return True

    def parts(self) -> dict[str, Adapter]:
        return {"query": self.query, "document": self.document}

    def map(self, vectors: Vectors) -> Vectors:
        return self.query.apply(vectors)

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        return self.document.apply(vectors)
