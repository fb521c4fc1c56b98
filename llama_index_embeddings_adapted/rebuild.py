"""A new collection beside the old one, for adapters that move documents: vectors are mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery
from tqdm import tqdm

from llama_index_embeddings_adapted import files
from llama_index_embeddings_adapted.base_model import base_name, fingerprint_of
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.encode import CacheDir, Encoder, cache_folder
from llama_index_embeddings_adapted.errors import OptionError, StoreError
from llama_index_embeddings_adapted.folder import to_bytes
from llama_index_embeddings_adapted.similarity import (
    SimilarityCheck,
    document_vectors,
    examine,
    query_probes,
)
from llama_index_embeddings_adapted.store_nodes import ids_in, name_of, nodes_of
from llama_index_embeddings_adapted.vectors import Vectors


def adapt_index(
    index: VectorStoreIndex,
    embed_model: AdaptedEmbedding,
    vector_store: BasePydanticVectorStore,
    *,
    nodes: Sequence[BaseNode] | None = None,
    embed_missing: bool = False,
    batch_size: int = 256,
    check: bool = True,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> VectorStoreIndex:
    """Build the index of an adapted model in a new collection, from vectors the base model gave.

    For adapters that move documents; one that leaves them alone is swapped in without. Vectors of
    the base model come from the cache and, where the old index was built with that model and its
    store returns them, from there; the adapter maps them. The old index is only read: it serves
    until the call returns, and is yours to drop.

    After an error or a kill the same call goes on where it ended: what the new store already holds
    is kept, provided that it came from this adapter.

    Args:
        index: The old index.
        embed_model: What is to serve the new one.
        vector_store: The new store: empty, or left half full by an earlier call.
        nodes: The nodes of the old index, for stores that cannot list them.
        embed_missing: Ask the base model for vectors that are found nowhere. Otherwise that is an
            error, before anything is written.
        batch_size: Nodes per write.
        check: Search the new index, compare with exact search, and warn of
            :class:`~llama_index_embeddings_adapted.similarity.SimilarityCheck` problems.
        cache_dir: See :class:`~llama_index_embeddings_adapted.encode.Encoder`.
        show_progress: Show bars.

    Returns:
        The index over the new store, with ``embed_model``.

    Raises:
        StoreError: Vectors are missing, the nodes cannot be listed, the new store is the old one or
            holds something else, or it does not find what was written.
        OptionError: An argument of another type or out of range.
    """
    _check_arguments(index, embed_model, vector_store, batch_size)
    all_nodes = nodes_of(index) if nodes is None else list(nodes)
    base = embed_model.base_embed_model
    encoder = Encoder(base, cache_dir=cache_dir, show_progress=show_progress)
    try:
        present = _resumed(embed_model, vector_store, all_nodes, cache_folder(cache_dir))
        stored = _holds_base_vectors(index, base)
        found = _base_vectors(encoder, all_nodes, stored=stored, embed_missing=embed_missing)
    finally:
        encoder.close()
    texts = [_text(node) for node in all_nodes]
    vectors = document_vectors(embed_model, found, texts)
    new = _written(
        embed_model, vector_store, all_nodes, vectors, present, batch_size, show_progress
    )
    if check and all_nodes:
        _examined(new, embed_model, all_nodes, vectors).warn(stacklevel=2)
    return new


def _check_arguments(index: Any, embed_model: Any, vector_store: Any, batch_size: int) -> None:
    if not isinstance(index, VectorStoreIndex):
        raise OptionError(f"index: expected a VectorStoreIndex, got {type(index).__name__}.")
    if not isinstance(embed_model, AdaptedEmbedding):
        raise OptionError(
            f"embed_model: expected an AdaptedEmbedding, got {type(embed_model).__name__}."
        )
    if not isinstance(vector_store, BasePydanticVectorStore):
        raise OptionError(
            f"vector_store: expected a LlamaIndex vector store, got {type(vector_store).__name__}."
        )
    if batch_size < 1:
        raise OptionError(f"batch_size: expected at least 1, got {batch_size!r}.")
    if index.vector_store is vector_store:
        raise StoreError(
            "vector_store: expected a new, empty collection beside the old one, got the one of the "
            "index. The old one keeps serving until the new one is complete."
        )


def _resumed(
    embed_model: AdaptedEmbedding,
    store: BasePydanticVectorStore,
    nodes: Sequence[BaseNode],
    cache: Path | None,
) -> set[str]:
    """Return which nodes an earlier call wrote, and leave a mark for a later one.

    Raises:
        StoreError: The store holds nodes, and no earlier call with this adapter put them there.
    """
    marks = {"rebuild": digest_of(embed_model)}
    place = hashlib.sha256(str(name_of(store) or type(store).__qualname__).encode()).hexdigest()
    mark = None if cache is None else cache / "rebuilds" / f"{place[:32]}.json"
    present = ids_in(store, [node.node_id for node in nodes])
    occupied = bool(present) or (present is None and answers_queries(store, embed_model))
    begun = mark is not None and mark.is_file()
    ours = begun and files.read_json_object(mark, error=StoreError) == marks  # type: ignore[arg-type]
    if occupied and (present is None or not ours):
        held = "nodes" if present is None else f"{len(present)} of these {len(nodes)} nodes"
        raise StoreError(
            f"The new store already holds {held}, and not from a call with this adapter that can "
            "be resumed. Pass an empty collection."
        )
    if mark is not None and not ours:
        files.write_json(mark, marks)
    return present or set()


def digest_of(embed_model: AdaptedEmbedding) -> str:
    """Return what document vectors depend on, as a hash."""
    adapter = embed_model.adapter
    parts = [
        fingerprint_of(embed_model.base_embed_model).digest.encode(),
        repr((type(adapter).__name__, adapter.config())).encode(),
        to_bytes(adapter.arrays()),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def answers_queries(store: BasePydanticVectorStore, embed_model: AdaptedEmbedding) -> bool:
    """Return whether a store that cannot list its nodes has any."""
    probe = query_probes(embed_model)[0].tolist()
    try:
        found = store.query(VectorStoreQuery(query_embedding=probe, similarity_top_k=1))
    except Exception:  # stores whose collection is made with the first node raise what they like
        return False
    return bool(found.ids)


def _holds_base_vectors(index: VectorStoreIndex, base: BaseEmbedding) -> bool:
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


def _base_vectors(
    encoder: Encoder, nodes: Sequence[BaseNode], *, stored: bool, embed_missing: bool
) -> Vectors:
    """Return the base model's vectors of all nodes, ``(n, dim)``.

    Raises:
        StoreError: Some are found nowhere, and the base model is not to be asked.
    """
    texts = [_text(node) for node in nodes]
    vectors = np.zeros((len(nodes), encoder.fingerprint.dim), dtype=np.float32)
    rows, known = encoder.known(texts, "document")
    vectors[rows] = known
    missing = np.setdiff1d(np.arange(len(nodes)), rows)
    if stored:
        given = [row for row in missing if nodes[row].embedding is not None]
        if given:
            vectors[given] = np.array([nodes[row].embedding for row in given], dtype=np.float32)
        missing = np.setdiff1d(missing, given)
    if len(missing) and not embed_missing:
        raise StoreError(
            f"{len(missing)} of {len(nodes)} nodes have no vector of the base model, neither in "
            "the cache nor in the old store. Pass embed_missing=True to ask the base model for "
            "them, or the cache_dir that has them."
        )
    if len(missing):
        vectors[missing] = encoder.encode([texts[row] for row in missing], "document")
    return vectors


def _written(
    embed_model: AdaptedEmbedding,
    store: BasePydanticVectorStore,
    nodes: Sequence[BaseNode],
    vectors: Vectors,
    present: set[str],
    batch_size: int,
    show_progress: bool,
) -> VectorStoreIndex:
    """Write what the store does not hold yet; return the index over all of it."""
    storage = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex([], storage_context=storage, embed_model=embed_model)
    rows = [row for row, node in enumerate(nodes) if node.node_id not in present]
    with tqdm(
        total=len(nodes), initial=len(present), desc="Writing nodes", disable=not show_progress
    ) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            copies = [nodes[row].model_copy() for row in batch]
            for copy, row in zip(copies, batch, strict=True):
                copy.embedding = vectors[row].tolist()
            index.insert_nodes(copies)
            bar.update(len(batch))
    return index


def _examined(
    index: VectorStoreIndex,
    embed_model: AdaptedEmbedding,
    nodes: Sequence[BaseNode],
    vectors: Vectors,
) -> SimilarityCheck:
    """Search the new index.

    Raises:
        StoreError: It does not hold the vectors that were to be written.
    """
    place = {node.node_id: row for row, node in enumerate(nodes)}

    def vectors_of(found: Sequence[BaseNode]) -> Vectors:
        strangers = [node.node_id for node in found if node.node_id not in place]
        if strangers:
            raise StoreError(
                f"The new store holds nodes that the index does not have (first: {strangers[0]}). "
                "Pass an empty collection."
            )
        return vectors[[place[node.node_id] for node in found]]

    check = examine(index, query_probes(embed_model), vectors_of)
    if check.similarity == "unknown":
        raise StoreError(
            "The new store's scores are not those of the vectors written to it. Pass an empty "
            "collection, or check=False for a store that scores in a way of its own."
        )
    return check


def _text(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.EMBED)
