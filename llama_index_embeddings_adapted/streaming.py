"""Document vectors of an adapted model, a batch at a time: for more documents than memory holds."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from numpy.lib import format as npy
from tqdm import tqdm

from llama_index_embeddings_adapted import files
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.encode import CacheDir, Encoder, cache_folder
from llama_index_embeddings_adapted.errors import OptionError, StoreError
from llama_index_embeddings_adapted.rebuild import answers_queries, digest_of
from llama_index_embeddings_adapted.similarity import document_vectors
from llama_index_embeddings_adapted.store_nodes import delete_nodes, name_of
from llama_index_embeddings_adapted.vectors import Vectors

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

    What :func:`~llama_index_embeddings_adapted.rebuild.adapt_index` does for an index that fits in
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
        cache_dir: See :class:`~llama_index_embeddings_adapted.encode.Encoder`.
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
        cache_dir: See :class:`~llama_index_embeddings_adapted.encode.Encoder`.
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


def _text(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.EMBED)
