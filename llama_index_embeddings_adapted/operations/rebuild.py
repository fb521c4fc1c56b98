"""A new collection beside the old one, for adapters that move documents: vectors are mapped.

A batch at a time, so that there may be more documents than memory holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode
from llama_index.core.utils import iter_batch
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery
from numpy.lib import format as npy
from tqdm import tqdm

from ..core import files
from ..core.arrays import Vectors, content_hashes
from ..encoding.base_model import fingerprint_of
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..encoding.serialize import base_name
from ..errors import OptionError, StoreError, check_kind, check_whole
from ..serving.embedding import AdaptedEmbedding
from ..serving.views import nodes_of, texts_of
from .similarity import examine_written, query_probes


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
    until the call returns, and is yours to drop. After an error or a kill the same call goes on
    after the last batch, see :func:`adapt_nodes`.

    Args:
        index: The old index.
        embed_model: What is to serve the new one.
        vector_store: The new store: empty, or left half full by an earlier call.
        nodes: The nodes of the old index, for stores that cannot list them.
        embed_missing: Ask the base model for vectors that are found nowhere. Otherwise that is an
            error, before anything is written.
        batch_size: Nodes per write.
        check: Search the new index, and warn of :class:`SimilarityCheck` problems.
        cache_dir, show_progress: See :class:`Encoder`.

    Raises:
        StoreError: Vectors are missing, the nodes cannot be listed, the new store is the old one or
            holds something else, or it does not find what was written.
        OptionError: An argument of another type or out of range.
    """
    check_kind("index", index, VectorStoreIndex, "a VectorStoreIndex")
    check_kind("vector_store", vector_store, BasePydanticVectorStore, "a LlamaIndex vector store")
    if index.vector_store is vector_store:
        raise StoreError(
            "vector_store: expected a new, empty collection beside the old one, got the one of the "
            "index. The old one keeps serving until the new one is complete."
        )
    with _Source(embed_model, batch_size, embed_missing, cache_dir, show_progress) as source:
        all_nodes = nodes_of(index) if nodes is None else list(nodes)
        source.stored = holds_vectors_of(index, embed_model.base_embed_model)
        source.prepare(all_nodes)
        storage = StorageContext.from_defaults(vector_store=vector_store)
        settings: Any = {"embed_model": embed_model, "transformations": index._transformations}
        new = VectorStoreIndex([], storage_context=storage, **settings)
        # By these refresh_ref_docs knows which documents are there, and unchanged.
        sources = {node.ref_doc_id for node in all_nodes if node.ref_doc_id}
        hashes = {name: index.docstore.get_document_hash(name) for name in sources}
        new.docstore.set_document_hashes({name: each for name, each in hashes.items() if each})
        _write(all_nodes, source, vector_store, new.insert_nodes, whole=len(all_nodes))
        if check and all_nodes:
            examine_written(new, source.model, all_nodes, source.vectors_of).warn(stacklevel=2)
    return new


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
    """Write nodes with their vectors to a store, from a stream of any length; return their number.

    What :func:`adapt_index` does, without an old index; one batch is in memory at a time. After an
    error or a kill the same call with the same nodes goes on after the last batch, where the store
    has a name and can delete nodes; the batch that was under way is written anew.

    Args:
        nodes: In any order, the same at each call; a generator will do.
        embed_model, vector_store, embed_missing, batch_size: See :func:`adapt_index`.
        cache_dir, show_progress: See :class:`Encoder`.

    Raises:
        StoreError: Vectors are missing, or an earlier call wrote other nodes; what was written
            before stays.
        OptionError: An argument of another type or out of range.
    """
    with _Source(embed_model, batch_size, embed_missing, cache_dir, show_progress) as source:
        return _write(nodes, source, vector_store, vector_store.add)


def _write(
    nodes: Iterable[BaseNode],
    source: _Source,
    store: BasePydanticVectorStore,
    add: Callable[[list[BaseNode]], object],
    *,
    whole: int | None = None,
) -> int:
    """Write nodes with their vectors, a batch at a time, from where an earlier call ended.

    With ``whole``, the number of all nodes there will ever be, a call after the last does nothing.
    """
    mark, digest, before, written, certain = _begun(source, store)
    count, trail = 0, hashlib.sha256()
    with tqdm(desc="Writing nodes", unit="node", total=whole, disable=source.quiet) as bar:
        for batch in iter_batch(nodes, source.batch_size):
            for node in batch:
                trail.update(node.node_id.encode() + b"\0")
                count += 1
                if count == written and trail.hexdigest() != before["trail"]:
                    raise StoreError(
                        f"An earlier call wrote {written} other nodes, or in another order or "
                        "batch size. Pass the same ones, or an empty collection of another name."
                    )
            if count > written:
                vectors = source.vectors_of(batch).tolist()
                if count - len(batch) < certain:
                    delete_nodes(store, [node.node_id for node in batch])
                pairs = zip(batch, vectors, strict=True)
                add([node.model_copy(update={"embedding": vector}) for node, vector in pairs])
                _save(mark, digest, source.batch_size, count, trail.hexdigest())
            bar.update(len(batch))
    if count < written:
        raise StoreError(
            f"An earlier call wrote {written} nodes, these are {count}. Pass all of them."
        )
    if mark is not None and whole is None:
        mark.unlink(missing_ok=True)
    return count


def _begun(
    source: _Source, store: BasePydanticVectorStore
) -> tuple[Path | None, str, dict[str, Any], int, int]:
    """Return how far an earlier call got, as the disk says.

    Where that is noted, if the store has a name; the hash of what document vectors depend on; the
    note, with a hash of ids; how many nodes are in the store for certain; and how many at most.
    """
    adapter, name = source.model.adapter, name_of(store)
    kind = repr((type(adapter).__name__, adapter.config())).encode()
    parts = source.fingerprint.digest.encode(), kind, files.to_bytes(adapter.arrays())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    mark, before = None, dict[str, Any]()
    if source.folder is not None and name is not None:
        place = hashlib.sha256(name.encode()).hexdigest()[:32]
        mark = source.folder / "rebuilds" / f"{place}.stream.json"
        if mark.is_file():
            before = files.read_json_object(mark, error=StoreError)
    begun = before.get("rebuild") == digest
    occupied = answers_queries(store, query_probes(source.model)[0])
    if occupied and not begun:
        raise StoreError(
            "The store already holds nodes, and not from a call with this adapter that can go "
            "on. Pass an empty collection."
        )
    if not begun:
        _save(mark, digest, source.batch_size, 0, hashlib.sha256().hexdigest())
    # A collection that was dropped since holds nothing, whatever was written once.
    written = int(before["written"]) if occupied else 0
    return mark, digest, before, written, written + int(before["batch"]) if occupied else 0


def _save(mark: Path | None, digest: str, batch_size: int, written: int, trail: str) -> None:
    if mark is not None:
        done = {"rebuild": digest, "batch": batch_size, "written": written, "trail": trail}
        files.write_json(mark, done)


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
    """Write the document vectors of texts to a ``.npy`` file; return them, mapped, ``(n, dim)``.

    For stores that are built from arrays, such as FAISS, and for tools of one's own. The file
    appears when it is whole.

    Args:
        texts: Any number; a generator will do.
        embed_model, embed_missing: See :func:`adapt_index`.
        path: The file.
        batch_size: Texts at a time.
        cache_dir, show_progress: See :class:`Encoder`.

    Raises:
        StoreError: Vectors are missing.
        OptionError: An argument of another type or out of range, or no text.
    """
    with (
        _Source(embed_model, batch_size, embed_missing, cache_dir, show_progress) as source,
        files.atomic_file(Path(path)) as temporary,
        temporary.open("r+b") as stream,
        tqdm(desc="Writing vectors", unit="text", disable=source.quiet) as bar,
    ):
        dim, rows = embed_model.adapter.output_dim, 0
        _header(stream, rows, dim)
        for batch in iter_batch(texts, batch_size):
            stream.write(np.ascontiguousarray(source.vectors_of(batch), "<f4").tobytes())
            rows += len(batch)
            bar.update(len(batch))
        if not rows:
            raise OptionError("texts: expected at least one, got none.")
        _header(stream, rows, dim)
    mapped: Vectors = np.load(path, mmap_mode="r")
    return mapped


class _Source(Encoder):
    """Vectors of an adapted model, from its base's cache, or from nodes if ``stored``."""

    def __init__(
        self,
        embed_model: AdaptedEmbedding,
        batch_size: int,
        embed_missing: bool,
        cache_dir: CacheDir,
        show_progress: bool,
    ) -> None:
        check_kind("embed_model", embed_model, AdaptedEmbedding, "an AdaptedEmbedding")
        check_whole("batch_size", batch_size)
        self.model, self.batch_size, self.quiet = embed_model, batch_size, not show_progress
        self.stored, self._asks = False, embed_missing
        base = embed_model.base_embed_model
        super().__init__(base, cache_dir=cache_dir, show_progress=show_progress)

    def vectors_of(self, items: Sequence[Any]) -> Vectors:
        """Return the document vectors of texts or nodes, ``(n, dim)``, or raise a StoreError."""
        texts, found = self._read(items)
        for row, vector in zip(*self.cache.get("document", texts), strict=True):
            found[row] = vector
        missing = [texts[row] for row, vector in enumerate(found) if vector is None]
        asked = iter(self._ask_for(missing, len(texts)))
        vectors = np.array([next(asked) if v is None else v for v in found], dtype=np.float32)
        return self.model.adapt(vectors, "document", content_hashes(texts))

    def prepare(self, nodes: Sequence[BaseNode]) -> None:
        """Have all vectors at hand, or raise a StoreError, before anything is written."""
        lacking = [text for text, own in zip(*self._read(nodes), strict=True) if own is None]
        self._ask_for(self.cache.missing("document", lacking), len(nodes))

    def _ask_for(self, missing: list[str], count: int) -> Vectors:
        if missing and not self._asks:
            raise StoreError(
                f"{len(missing)} of {count} texts have no vector of the base model, neither in the "
                "cache nor in an old store. Call embed_corpus first, or pass the cache_dir that "
                "has them or embed_missing=True."
            )
        return self.encode(missing, "document")

    def _read(self, items: Sequence[Any]) -> tuple[list[str], list[Any]]:
        """Return texts, and the vectors of the base model that nodes bring along, or None."""
        texts = list(items) if items and isinstance(items[0], str) else texts_of(items)
        return texts, [node.embedding if self.stored else None for node in items]


def _header(stream: Any, rows: int, dim: int) -> None:
    """Write the header of a ``.npy`` file; numpy leaves room in it for any number of rows."""
    stream.seek(0)
    head = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    npy.write_array_header_1_0(stream, head)


_PER_QUERY = 500
_NAMES = ("collection_name", "table_name", "index_name", "_table_name", "_index_name")
_PLACES = ("uri", "_uri", "persist_dir", "host", "port", "connection_string", "path", "url")


def delete_nodes(store: Any, ids: Sequence[str]) -> None:
    """Delete what an earlier call may have written of a batch, or raise a StoreError."""
    if type(store).__name__ == "LanceDBVectorStore":  # whose method quotes ids as if columns
        for part in iter_batch(ids, _PER_QUERY):
            some = ("'" + name.replace("'", "''") + "'" for name in part)
            store.table.delete(f"id in ({', '.join(some)})")
        return
    try:
        store.delete_nodes(list(ids))
    except NotImplementedError as cause:
        raise StoreError(
            f"{type(store).__name__} cannot delete nodes, so a rebuild that was cut "
            "short cannot go on. Pass an empty collection of another name."
        ) from cause


def name_of(store: BasePydanticVectorStore) -> str | None:
    """Return what identifies a store, None if it has no name; it may contain a password."""
    is_chroma = type(store).class_name() == "ChromaVectorStore"
    client: Any = getattr(store, "client", None) if is_chroma else None
    named = [getattr(client, "name", None), *(getattr(store, each, None) for each in _NAMES)]
    places = [getattr(store, place, None) for place in _PLACES]
    if not any(named):
        return None
    name = next(str(each) for each in named if each)
    parts = [type(store).__qualname__, name, *(str(each) for each in places if each)]
    return "|".join([*parts, str(getattr(client, "id", ""))])


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
    # Another object may be the same model; asking an unrelated one would cost its probes.
    return model is base or (
        base_name(model) == base_name(base)
        and fingerprint_of(model).agrees_with(fingerprint_of(base))
    )
