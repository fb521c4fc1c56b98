"""Vectors of the base model while serving: its limiter and cache apply, its events do not.

The wrapper fires LlamaIndex's events once per call, so it must not call the base model's public
methods; what those do besides (rate limit, cache) is done here. Unlike there, a query and a
document of the same text never share a cache entry.

What embeds documents for an adapted model, so that no new adapter makes anybody embed again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.core.arrays import Vectors, as_vectors, content_hashes
from llama_index_embeddings_adapted.core.files import from_bytes, to_bytes
from llama_index_embeddings_adapted.encoding.base_model import (
    Embedding,
    Fingerprint,
    base_name,
    fingerprint_of,
    query_batch,
    whole_batch,
)
from llama_index_embeddings_adapted.encoding.cache import CacheDir, VectorCache, cache_folder
from llama_index_embeddings_adapted.errors import EncodeError, OptionError


class BaseVectors:
    """Asks one base model for vectors, through its cache.

    Args:
        model: The base model.
        cache: A LlamaIndex key-value store that holds vectors of this model under its own name. By
            default the model's own ``embeddings_cache``: its document entries are shared with the
            model, its query entries kept apart.
    """

    def __init__(self, model: BaseEmbedding, cache: Any | None = None) -> None:
        self._model = model
        self.cache = cache

    def query(self, text: str) -> Embedding:
        """Embed one query."""
        model = self._model
        if self.cache is None and model.embeddings_cache is None:  # the fast path
            if model.rate_limiter is not None:
                model.rate_limiter.acquire()
            return model._get_query_embedding(text)
        return self._cached_queries([text])[0]

    def queries(self, texts: Sequence[str], size: int) -> list[Embedding]:
        """Embed queries, ``size`` at a time where the model can."""
        return self._cached_queries(list(texts), size)

    def documents(self, texts: Sequence[str], size: int) -> list[Embedding]:
        """Embed documents, ``size`` at a time."""
        found, missing = self._look_up("document", texts)
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            if self._model.rate_limiter is not None:
                self._model.rate_limiter.acquire()
            answers = self._all(self._model._get_text_embeddings(batch), batch)
            found.update(zip(batch, answers, strict=True))
            self._remember("document", batch, answers)
        return [found[text] for text in texts]

    async def aquery(self, text: str) -> Embedding:
        """Embed one query, asynchronously."""
        found, missing = await self._alook_up("query", [text])
        if missing:
            if self._model.rate_limiter is not None:
                await self._model.rate_limiter.async_acquire()
            answer = await self._model._aget_query_embedding(text)
            await self._aremember("query", [text], [answer])
            return answer
        return found[text]

    async def adocuments(self, texts: Sequence[str], size: int) -> list[Embedding]:
        """Embed documents, asynchronously, ``size`` at a time."""
        found, missing = await self._alook_up("document", texts)
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            if self._model.rate_limiter is not None:
                await self._model.rate_limiter.async_acquire()
            answers = self._all(await self._model._aget_text_embeddings(batch), batch)
            found.update(zip(batch, answers, strict=True))
            await self._aremember("document", batch, answers)
        return [found[text] for text in texts]

    def _cached_queries(self, texts: list[str], size: int = 1) -> list[Embedding]:
        found, missing = self._look_up("query", texts)
        together = query_batch(self._model) if size > 1 else None
        step = size if together else 1
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            if self._model.rate_limiter is not None:
                self._model.rate_limiter.acquire()
            answers = together(batch) if together else [self._model._get_query_embedding(batch[0])]
            answers = self._all(answers, batch)
            found.update(zip(batch, answers, strict=True))
            self._remember("query", batch, answers)
        return [found[text] for text in texts]

    def _all(self, answers: list[Embedding], batch: list[str]) -> list[Embedding]:
        return whole_batch(self._model, answers, batch)

    # LlamaIndex's stores keep one vector as {random id: vector}; so do we, to share its entries.

    def _place(self, role: str) -> tuple[Any, str]:
        """Return the store and the collection of a role; the store is None where there is none."""
        store = self.cache if self.cache is not None else self._model.embeddings_cache
        if store is None:
            return None, ""
        if self.cache is None and role == "document":
            return store, "embeddings"
        return store, f"embeddings:{role}:{fingerprint_of(self._model).digest}"

    def _look_up(self, role: str, texts: Sequence[str]) -> tuple[dict[str, Embedding], list[str]]:
        store, collection = self._place(role)
        distinct = list(dict.fromkeys(texts))
        if store is None:
            return {}, distinct
        entries = {text: store.get(key=text, collection=collection) for text in distinct}
        return _sort_out(entries)

    async def _alook_up(
        self, role: str, texts: Sequence[str]
    ) -> tuple[dict[str, Embedding], list[str]]:
        store, collection = self._place(role)
        distinct = list(dict.fromkeys(texts))
        if store is None:
            return {}, distinct
        entries = {text: await store.aget(key=text, collection=collection) for text in distinct}
        return _sort_out(entries)

    def _remember(self, role: str, texts: list[str], answers: list[Embedding]) -> None:
        store, collection = self._place(role)
        if store is not None:
            self._check(texts, answers)
            for text, answer in zip(texts, answers, strict=True):
                store.put(key=text, val={str(uuid.uuid4()): answer}, collection=collection)

    async def _aremember(self, role: str, texts: list[str], answers: list[Embedding]) -> None:
        store, collection = self._place(role)
        if store is not None:
            self._check(texts, answers)
            for text, answer in zip(texts, answers, strict=True):
                await store.aput(key=text, val={str(uuid.uuid4()): answer}, collection=collection)

    def _check(self, texts: list[str], answers: list[Embedding]) -> None:
        """Refuse to remember what is no vector: it would be served for ever.

        Raises:
            EncodeError: NaN or infinity.
        """
        for text, answer in zip(texts, answers, strict=True):
            if not np.isfinite(answer).all():
                raise EncodeError(
                    f"{base_name(self._model)} gave a vector with NaN or infinity.", text=text
                )


def _sort_out(
    entries: dict[str, dict[str, Embedding] | None],
) -> tuple[dict[str, Embedding], list[str]]:
    found = {text: next(iter(entry.values())) for text, entry in entries.items() if entry}
    return found, [text for text in entries if text not in found]


class DocumentEmbedding(BaseEmbedding):
    """The document side of an adapted model, for ``IngestionPipeline`` and for building indexes.

    A pipeline keeps nodes by the dict of the transformation that made them. That of an adapted
    model names the adapter; this one's names what document vectors depend on, and nothing else.
    Vectors of the base model are kept on disk, by model and text, and taken from there.

    Made by :meth:`AdaptedEmbedding.for_documents`.

    Args:
        base: The base model.
        adapter: What moves its document vectors; None leaves them as they are.
        description: The dict that names both.
        cache_dir: Where the base model's vectors are kept; ``False`` keeps them in memory.
    """

    _vectors: BaseVectors = PrivateAttr()
    _adapter: Adapter | None = PrivateAttr()
    _cache: VectorCache = PrivateAttr()
    _description: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        base: BaseEmbedding,
        adapter: Adapter | None,
        description: dict[str, Any],
        *,
        cache_dir: CacheDir = None,
    ) -> None:
        super().__init__(
            model_name=base.model_name,
            embed_batch_size=base.embed_batch_size,
            callback_manager=base.callback_manager,
            num_workers=base.num_workers,
        )
        fingerprint, folder = fingerprint_of(base), cache_folder(cache_dir)
        self._vectors, self._adapter = BaseVectors(base), adapter
        self._cache = VectorCache(folder, fingerprint)
        self._description = dict(description)
        if adapter is not None or not _is_first(description, fingerprint, folder):
            self._description["fingerprint"] = fingerprint.digest

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex knows this class by."""
        return "DocumentEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the dict of the base model, where the adapter leaves documents alone.

        A second base model with the dict of the first but with other vectors has its fingerprint in
        it, too; so has every adapter that moves documents.
        """
        return dict(self._description)

    def close(self) -> None:
        """Release the files of the vector cache."""
        self._cache.close()

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors, missing = self._known(texts)
        if missing:
            answers = self._vectors.documents(missing, self.embed_batch_size)
            self._learn(vectors, missing, answers)
        return self._moved(vectors, texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors, missing = self._known(texts)
        if missing:
            answers = await self._vectors.adocuments(missing, self.embed_batch_size)
            self._learn(vectors, missing, answers)
        return self._moved(vectors, texts)

    def _get_query_embedding(self, query: str) -> Embedding:
        raise OptionError("This model embeds documents only; ask the adapted model for queries.")

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return self._get_query_embedding(query)

    def _known(self, texts: list[str]) -> tuple[dict[str, Vectors], list[str]]:
        distinct = list(dict.fromkeys(texts))
        rows, found = self._cache.get("document", distinct)
        vectors = {distinct[row]: vector for row, vector in zip(rows, found, strict=True)}
        return vectors, [text for text in distinct if text not in vectors]

    def _learn(
        self, vectors: dict[str, Vectors], texts: list[str], answers: list[Embedding]
    ) -> None:
        rows = as_vectors(np.array(answers), what="document vectors of the base model")
        self._cache.put("document", texts, rows)
        vectors.update(zip(texts, rows, strict=True))

    def _moved(self, vectors: dict[str, Vectors], texts: list[str]) -> list[Embedding]:
        if not texts:
            return []
        rows = np.stack([vectors[text] for text in texts])
        if self._adapter is not None:
            rows = self._adapter.apply(rows, "document", content_hashes(texts))
        answers: list[Embedding] = rows.tolist()
        return answers


_first_seen: dict[str, Fingerprint] = {}


def _is_first(description: dict[str, Any], model: Fingerprint, folder: Path | None) -> bool:
    """Return whether a model is the first with this dict, or has the vectors of the first."""
    key = hashlib.sha256(str(description).encode(errors="surrogatepass")).hexdigest()
    if folder is None:
        return model.agrees_with(_first_seen.setdefault(key, model))
    path = folder / "ingestion" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _claim(path, to_bytes({"probes": model.probes}))
    probes: Any = from_bytes(path.read_bytes(), where=str(path))["probes"]
    return model.agrees_with(Fingerprint(model.name, probes))


def _claim(path: Path, content: bytes) -> None:
    """Write a file, whole, unless somebody else was first."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
