"""Vectors of the base model while serving: its limiter and cache apply, its events do not.

The wrapper fires LlamaIndex's events once per call, so it must not call the base model's public
methods; what those do besides (rate limit, cache) is done here. Unlike there, a query and a
document of the same text never share a cache entry.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.base_model import (
    Embedding,
    base_name,
    fingerprint_of,
    query_batch,
    whole_batch,
)
from llama_index_embeddings_adapted.errors import EncodeError


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
