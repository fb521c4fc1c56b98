"""What LlamaIndex's vector stores hold, by whichever of their ways of listing it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery

from ..core.arrays import Vectors
from ..encoding.base_model import fingerprint_of
from ..encoding.serialize import base_name
from ..serving.embedding import AdaptedEmbedding

_PER_QUERY = 500
_NAMES = ("collection_name", "table_name", "index_name", "_table_name", "_index_name")
_PLACES = ("uri", "_uri", "persist_dir", "host", "port", "connection_string", "path", "url")


def delete_nodes(store: BasePydanticVectorStore, ids: Sequence[str]) -> None:
    """Delete nodes, whether a store holds them or not; NotImplementedError if it cannot."""
    if type(store).__name__ != "LanceDBVectorStore":
        store.delete_nodes(list(ids))
        return
    lance: Any = store  # whose own method quotes ids as if they were columns
    for start in range(0, len(ids), _PER_QUERY):
        quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in ids[start:][:_PER_QUERY])
        lance.table.delete(f"id in ({quoted})")


def name_of(store: BasePydanticVectorStore) -> str | None:
    """Return class, place and name of a store's collection; None where it has no name.

    Never shown or saved: there may be a password in it.
    """
    client: Any = getattr(store, "client", None) if _is_chroma(store) else None
    names = [getattr(client, "name", None), *(getattr(store, name, None) for name in _NAMES)]
    name = next((str(name) for name in names if name), None)
    if name is None:
        return None
    places = [str(value) for place in _PLACES if (value := getattr(store, place, None))]
    tenant = [str(getattr(client, "id", ""))]
    return "|".join([type(store).__qualname__, name, *places, *tenant])


def _is_chroma(store: BasePydanticVectorStore) -> bool:
    return type(store).class_name() == "ChromaVectorStore"


def answers_queries(store: BasePydanticVectorStore, probe: Vectors) -> bool:
    """Return whether a store that cannot list its nodes has any."""
    try:
        found = store.query(VectorStoreQuery(query_embedding=probe.tolist(), similarity_top_k=1))
    except Exception:  # stores whose collection is made with the first node raise what they like
        return False
    return bool(found.ids)


def holds_vectors_of(index: VectorStoreIndex, base: BaseEmbedding) -> bool:
    """Return whether the old index was built with the document vectors of this base model."""
    model = index._embed_model
    if isinstance(model, AdaptedEmbedding) and not model.adapter.adapts_documents:
        model = model.base_embed_model
    if model is base:
        return True
    # Another object may be the same model; asking an unrelated one would cost its probes.
    return base_name(model) == base_name(base) and fingerprint_of(model).agrees_with(
        fingerprint_of(base)
    )
