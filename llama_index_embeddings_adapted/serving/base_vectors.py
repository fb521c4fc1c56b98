"""Vectors of the base model while serving: its limiter and cache apply, its events do not.

The wrapper fires LlamaIndex's events once per call, so it must not call the base model's public
methods; what those do besides (rate limit, cache) is done here. Unlike there, a query and a
document of the same text never share a cache entry.

What can be asked both ways is written once: a generator yields calls, each with its asynchronous
twin, and :func:`run_steps` or :func:`arun_steps` makes them.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.types import BaseDocumentStore

from ..core.arrays import Role
from ..data.reading import repaired
from ..encoding.base_model import (
    Embedding,
    clear_trace_map,
    fingerprint_of,
    query_batch,
    whole_batch,
)
from ..encoding.serialize import base_name
from ..errors import EncodeError, OptionError

T = TypeVar("T")

#: A function, its asynchronous twin, and their arguments.
Call = tuple[Callable[..., Any], Callable[..., Awaitable[Any]], tuple[Any, ...]]
Steps = Generator[Call, Any, T]

_CALLS_BETWEEN_CLEARINGS = 256


def run_steps(steps: Steps[T]) -> T:
    """Make the calls that a generator yields; return what it returns."""
    answer: Any = None
    while True:
        try:
            call, _, arguments = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        answer = call(*arguments)


async def arun_steps(steps: Steps[T]) -> T:
    """Await the calls that a generator yields; return what it returns."""
    answer: Any = None
    while True:
        try:
            _, call, arguments = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        answer = await call(*arguments)


Nodes = Mapping[str, BaseNode] | BaseDocumentStore


def check_retriever(name: str, retriever: object) -> None:
    """Refuse, by an :class:`OptionError`, what is no retriever."""
    if not isinstance(retriever, BaseRetriever):
        raise OptionError(
            f"{name}: expected a LlamaIndex retriever, got {type(retriever).__name__}. "
            "Of an index: index.as_retriever(similarity_top_k=100)."
        )


def check_nodes(nodes: object) -> None:
    """Refuse, by an :class:`OptionError`, where no node can be looked up."""
    if not isinstance(nodes, (Mapping, BaseDocumentStore)):
        raise OptionError(
            f"nodes: expected a dict of id → node or a docstore, got {type(nodes).__name__}."
        )


def fetch_nodes(nodes: Nodes, ids: list[str]) -> Steps[dict[str, BaseNode]]:
    """Yield the call that gets nodes by their ids; those that are not known are passed over."""
    if isinstance(nodes, BaseDocumentStore):
        stored = yield nodes.get_nodes, nodes.aget_nodes, (ids, False)
        return {node.node_id: node for node in stored}
    return {name: nodes[name] for name in ids if name in nodes}


class BaseVectors:
    """Asks one base model for vectors, through a LlamaIndex key-value store, if there is one.

    By default that is the model's own ``embeddings_cache``: its document entries are shared with
    the model, its query entries kept apart. ``manager`` is that of the model that is served.
    """

    def __init__(
        self, model: BaseEmbedding, manager: CallbackManager, cache: Any | None = None
    ) -> None:
        self._model, self._manager, self.cache = model, manager, cache
        self._calls = 0

    def query(self, text: str) -> Embedding:
        """Embed one query."""
        return run_steps(self._one(text))

    async def aquery(self, text: str) -> Embedding:
        """Embed one query, asynchronously."""
        return await arun_steps(self._one(text))

    def _one(self, text: str) -> Steps[Embedding]:
        model, text = self._model, repaired(text)  # half a surrogate is no text to a server
        if self.cache is not None or model.embeddings_cache is not None:
            return (yield from self.steps([text], "query", 1))[0]
        self._count()
        if (limiter := model.rate_limiter) is not None:
            yield limiter.acquire, limiter.async_acquire, ()
        vector: Embedding = yield model._get_query_embedding, model._aget_query_embedding, (text,)
        return vector

    def embed(self, texts: Sequence[str], role: Role, size: int) -> list[Embedding]:
        """Embed texts, ``size`` at a time where the model can."""
        return run_steps(self.steps(texts, role, size))

    async def aembed(self, texts: Sequence[str], role: Role, size: int) -> list[Embedding]:
        """Embed texts, asynchronously, ``size`` at a time; queries one by one."""
        return await arun_steps(self.steps(texts, role, size))

    def steps(self, texts: Sequence[str], role: Role, size: int) -> Steps[list[Embedding]]:
        """Yield the calls that embed texts: look up, wait for the limiter, ask, remember."""
        self._count()
        store, collection = self._place(role)
        found: dict[str, Embedding] = {}
        texts = [repaired(text) for text in texts]
        distinct = list(dict.fromkeys(texts))
        for text in distinct if store is not None else ():
            # LlamaIndex's stores keep one vector as {random id: vector}; so do we, to share them.
            if entry := (yield store.get, store.aget, (text, collection)):
                found[text] = next(iter(entry.values()))
        missing = [text for text in distinct if text not in found]
        ask, aask, step = self._ways(role, size)
        limiter = self._model.rate_limiter
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            if limiter is not None:
                yield limiter.acquire, limiter.async_acquire, ()
            answers = whole_batch(self._model, (yield ask, aask, (batch,)), batch)
            found.update(zip(batch, answers, strict=True))
            if store is not None:
                self._check(batch, answers)
                for text, answer in zip(batch, answers, strict=True):
                    entry = {str(uuid.uuid4()): answer}
                    yield store.put, store.aput, (text, entry, collection)
        return [found[text] for text in texts]

    def _ways(
        self, role: Role, size: int
    ) -> tuple[Callable[..., Any], Callable[..., Awaitable[Any]], int]:
        """Return how to ask for a batch, both ways, and how large it may be."""
        model = self._model
        if role == "document":
            return model._get_text_embeddings, model._aget_text_embeddings, size

        async def alone(batch: list[str]) -> list[Embedding]:
            return [await model._aget_query_embedding(text) for text in batch]

        if size > 1 and (together := query_batch(model)) is not None:
            return together, alone, size
        return lambda batch: [model._get_query_embedding(text) for text in batch], alone, 1

    def _place(self, role: Role) -> tuple[Any, str]:
        """Return the store and the collection of a role; the store is None where there is none."""
        store = self.cache if self.cache is not None else self._model.embeddings_cache
        if store is None:
            return None, ""
        if self.cache is None and role == "document":
            return store, "embeddings"
        return store, f"embeddings:{role}:{fingerprint_of(self._model).digest}"

    def _check(self, texts: list[str], answers: list[Embedding]) -> None:
        """Refuse to remember what is no vector: it would be served for ever."""
        for text, answer in zip(texts, answers, strict=True):
            if not np.isfinite(answer).all():
                raise EncodeError(
                    f"{base_name(self._model)} gave a vector with NaN or infinity.", text=text
                )

    def _count(self) -> None:
        self._calls += 1
        if not self._calls % _CALLS_BETWEEN_CLEARINGS:
            clear_trace_map(self._manager)
