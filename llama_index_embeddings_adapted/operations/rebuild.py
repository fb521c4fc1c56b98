"""A new collection beside the old one, for adapters that move documents: vectors are mapped.

Document vectors of an adapted model, a batch at a time: for more documents than memory holds.

What LlamaIndex's vector stores hold, by whichever of their ways of listing it works.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
)
from numpy.lib import format as npy
from tqdm import tqdm

from llama_index_embeddings_adapted.core import files
from llama_index_embeddings_adapted.core.arrays import Vectors
from llama_index_embeddings_adapted.core.files import to_bytes
from llama_index_embeddings_adapted.encoding.base_model import base_name, fingerprint_of
from llama_index_embeddings_adapted.encoding.cache import CacheDir, cache_folder
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import OptionError, StoreError
from llama_index_embeddings_adapted.operations.similarity import (
    SimilarityCheck,
    document_vectors,
    examine,
    query_probes,
)
from llama_index_embeddings_adapted.serving.embedding import AdaptedEmbedding

_PER_QUERY = 500
_NAMES = ("collection_name", "table_name", "index_name", "_table_name", "_index_name")
_PLACES = ("uri", "_uri", "persist_dir", "host", "port", "connection_string", "path", "url")


def nodes_of(index: VectorStoreIndex) -> list[BaseNode]:
    """Return all nodes of an index, from its document store or else from its vector store.

    Raises:
        StoreError: Neither can list them.
    """
    ids = list(dict.fromkeys(index.index_struct.nodes_dict.values()))
    if ids and all(index.docstore.document_exists(node) for node in ids):
        return index.docstore.get_nodes(ids)
    store = index.vector_store
    try:
        return _all(store)
    except Exception as cause:  # stores raise what they like; the advice is the same
        raise StoreError(
            f"{type(store).__name__} cannot list its nodes ({cause}). Pass nodes=… to adapt_index."
        ) from cause


def _all(store: BasePydanticVectorStore) -> list[BaseNode]:
    try:
        return store.get_nodes(node_ids=None)
    except AssertionError:  # PostgreSQL's takes an empty list for all
        return store.get_nodes(node_ids=[])
    except ValueError:  # Milvus' an empty filter
        return store.get_nodes(node_ids=None, filters=MetadataFilters(filters=[]))


def ids_in(store: BasePydanticVectorStore, ids: Sequence[str]) -> set[str] | None:
    """Return which of these nodes a store holds; None where it cannot tell."""
    found: set[str] = set()
    try:
        for start in range(0, len(ids), _PER_QUERY):
            part = list(ids[start : start + _PER_QUERY])
            found.update(node.node_id for node in store.get_nodes(node_ids=part))
    except Exception:  # LanceDB quotes ids in a way that it does not understand itself
        try:
            found = {node.node_id for node in _all(store)}
        except Exception:  # cannot list, or its collection is made with the first node
            return None
    return found & set(ids)


def delete_nodes(store: BasePydanticVectorStore, ids: Sequence[str]) -> None:
    """Delete nodes, whether a store holds them or not.

    Raises:
        NotImplementedError: The store cannot.
    """
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
            :class:`SimilarityCheck` problems.
        cache_dir: See :class:`Encoder`.
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


T = TypeVar("T")


def adapt_nodes(
    nodes: Iterable[BaseNode],
    embed_model: AdaptedEmbedding,
    vector_store: BasePydanticVectorStore,
    *,
    embed_missing: bool = False,
    batch_size: int = 2048,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> int:
    """Write nodes with their vectors to a store, from a stream of any length.

    What :func:`adapt_index` does for an index that fits in
    memory. Vectors of the base model come from the cache, the adapter maps them, and one batch is
    in memory at a time; what the store keeps there is the store's own affair. After an error or a
    kill the same call with the same nodes goes on after the last batch, where the store has a name
    and can delete nodes; the batch that was under way is written anew.

    Args:
        nodes: In any order, the same at each call; a generator will do.
        embed_model: What is to serve the store.
        vector_store: Empty, or left half full by an earlier call.
        embed_missing: Ask the base model for vectors that the cache does not hold.
        batch_size: Nodes per write.
        cache_dir: See :class:`Encoder`.
        show_progress: Show a bar.

    Returns:
        How many nodes there were, those of earlier calls included.

    Raises:
        StoreError: Vectors are missing, or an earlier call wrote other nodes; what was written
            before stays.
        OptionError: An argument of another type or out of range.
    """
    source = _Source(embed_model, batch_size, embed_missing, cache_dir, show_progress)
    try:
        progress = _Progress(embed_model, vector_store, cache_folder(cache_dir), batch_size)
        with tqdm(desc="Writing nodes", unit="node", disable=not show_progress) as bar:
            for batch in _batches(nodes, batch_size):
                if progress.starts(batch):
                    vectors = source.vectors([_text(node) for node in batch])
                    progress.clear(batch)
                    vector_store.add(_with(batch, vectors))
                    progress.save()
                bar.update(len(batch))
        return progress.finish()
    finally:
        source.close()


def adapt_vectors(
    texts: Iterable[str],
    embed_model: AdaptedEmbedding,
    path: str | Path,
    *,
    embed_missing: bool = False,
    batch_size: int = 8192,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> Vectors:
    """Write the document vectors of texts to a ``.npy`` file, in their order, and map it.

    For stores that are built from arrays, such as FAISS, and for tools of one's own. The file
    appears when it is whole.

    Args:
        texts: Any number; a generator will do.
        embed_model: What is to serve the vectors.
        path: The file.
        embed_missing: Ask the base model for vectors that the cache does not hold.
        batch_size: Texts at a time.
        cache_dir: See :class:`Encoder`.
        show_progress: Show a bar.

    Returns:
        ``(n, dim)``, read-only, mapped from the file.

    Raises:
        StoreError: Vectors are missing.
        OptionError: An argument of another type or out of range, or no text.
    """
    source = _Source(embed_model, batch_size, embed_missing, cache_dir, show_progress)
    try:
        with files.atomic_file(Path(path)) as temporary, temporary.open("r+b") as stream:
            dim, rows = embed_model.adapter.output_dim, 0
            _header(stream, rows, dim)
            with tqdm(desc="Writing vectors", unit="text", disable=not show_progress) as bar:
                for batch in _batches(texts, batch_size):
                    stream.write(np.ascontiguousarray(source.vectors(batch), "<f4").tobytes())
                    rows += len(batch)
                    bar.update(len(batch))
            if not rows:
                raise OptionError("texts: expected at least one, got none.")
            _header(stream, rows, dim)
    finally:
        source.close()
    mapped: Vectors = np.load(path, mmap_mode="r")
    return mapped


class _Source:
    """Vectors of an adapted model, from the cache of its base model's."""

    def __init__(
        self,
        embed_model: AdaptedEmbedding,
        batch_size: int,
        embed_missing: bool,
        cache_dir: CacheDir,
        show_progress: bool,
    ) -> None:
        if not isinstance(embed_model, AdaptedEmbedding):
            raise OptionError(
                f"embed_model: expected an AdaptedEmbedding, got {type(embed_model).__name__}."
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise OptionError(f"batch_size: expected a whole number >= 1, got {batch_size!r}.")
        self._model, self._embed_missing = embed_model, embed_missing
        self._encoder = Encoder(
            embed_model.base_embed_model, cache_dir=cache_dir, show_progress=show_progress
        )

    def vectors(self, texts: list[str]) -> Vectors:
        """Return the document vectors of texts, ``(n, dim)``."""
        if not self._embed_missing:
            missing = self._encoder.missing(texts, "document")
            if missing:
                raise StoreError(
                    f"{len(missing)} of {len(texts)} texts of a batch have no vector in the cache. "
                    "Call embed_corpus first, or pass embed_missing=True."
                )
        return document_vectors(self._model, self._encoder.encode(texts, "document"), texts)

    def close(self) -> None:
        """Release the files of the cache."""
        self._encoder.close()


class _Progress:
    """How far a stream got into a store, on disk, so that another call can go on.

    ``written`` nodes are in the store for certain, and of the ``batch`` after them some may be;
    ``trail`` is a hash of their ids.

    Raises:
        StoreError: The store holds nodes, and no earlier call with this adapter put them there.
    """

    def __init__(
        self,
        embed_model: AdaptedEmbedding,
        store: BasePydanticVectorStore,
        folder: Path | None,
        batch_size: int,
    ) -> None:
        self._store, self._digest, self._batch_size = store, digest_of(embed_model), batch_size
        self._count, self._trail = 0, hashlib.sha256()
        self._mark: Path | None = None
        self._before: dict[str, Any] = {}
        name = name_of(store)
        if folder is not None and name is not None:
            place = hashlib.sha256(name.encode()).hexdigest()[:32]
            self._mark = folder / "rebuilds" / f"{place}.stream.json"
            if self._mark.is_file():
                self._before = files.read_json_object(self._mark, error=StoreError)
        begun = self._before.get("rebuild") == self._digest
        occupied = answers_queries(store, embed_model)
        if occupied and not begun:
            raise StoreError(
                "The store already holds nodes, and not from a call with this adapter that can go "
                "on. Pass an empty collection."
            )
        self._written = int(self._before["written"]) if begun else 0
        self._certain_from = self._written + int(self._before["batch"]) if occupied else 0
        if not begun:
            self.save()

    def starts(self, batch: list[BaseNode]) -> bool:
        """Count a batch in; return whether it has to be written.

        Raises:
            StoreError: The nodes are not those that an earlier call wrote.
        """
        for node in batch:
            self._trail.update(node.node_id.encode() + b"\0")
            self._count += 1
            if self._count == self._written and self._trail.hexdigest() != self._before["trail"]:
                raise StoreError(
                    f"An earlier call wrote {self._written} other nodes, or in another order or "
                    "batch size. Pass the same ones, or an empty collection of another name."
                )
        return self._count > self._written

    def clear(self, batch: list[BaseNode]) -> None:
        """Delete what an earlier call may have written of a batch after it last said so.

        Raises:
            StoreError: The store cannot delete.
        """
        if self._count - len(batch) >= self._certain_from:
            return
        try:
            delete_nodes(self._store, [node.node_id for node in batch])
        except NotImplementedError as cause:
            raise StoreError(
                f"{type(self._store).__name__} cannot delete nodes, so a rebuild that was cut "
                "short cannot go on. Pass an empty collection of another name."
            ) from cause

    def save(self) -> None:
        """Say on disk that all nodes so far are in the store."""
        if self._mark is not None:
            done = {"written": self._count, "trail": self._trail.hexdigest()}
            known = {"rebuild": self._digest, "batch": self._batch_size}
            files.write_json(self._mark, {**known, **done})

    def finish(self) -> int:
        """Forget the mark; return the number of nodes."""
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)
        return self._count


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _with(nodes: list[BaseNode], vectors: Vectors) -> list[BaseNode]:
    copies = [node.model_copy() for node in nodes]
    for copy, vector in zip(copies, vectors.tolist(), strict=True):
        copy.embedding = vector
    return copies


def _header(stream: Any, rows: int, dim: int) -> None:
    """Write the header of a ``.npy`` file; numpy leaves room in it for any number of rows."""
    stream.seek(0)
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    npy.write_array_header_1_0(stream, shape)
